"""Keys of a configuration or of a command's settings: fields with a meaning and a range in their metadata."""

import dataclasses
import math
import operator
from collections.abc import Iterator
from typing import Any, get_args

from omegaconf import MISSING

from echoink.common.errors import UserError

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_TESTS = {"ge": (">=", operator.ge), "gt": (">", operator.gt), "le": ("<=", operator.le), "lt": ("<", operator.lt)}


def key(doc: str, default: Any = MISSING, **bounds: float) -> Any:
    """A field: its one-line meaning, its default (a list, a dictionary or a type: a new one for each instance), and a
    number's range (`ge`, `gt`, `le`, `lt`).
    """
    if isinstance(default, list | dict):
        given = {"default_factory": default.copy}
    else:
        given = {"default_factory": default} if isinstance(default, type) else {"default": default}
    return dataclasses.field(**given, metadata={"doc": doc, **bounds})


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Every leaf of a configuration: dotted key, field, value."""
    for spec in dataclasses.fields(config):
        if "former" in spec.metadata:  # a former name; validate.py moves its values
            continue
        value = getattr(config, spec.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", spec, value


def meaning(spec: dataclasses.Field) -> str:
    """The meaning of a key with its range or its choices, for `--help`."""
    bounds = [f"{sign} {spec.metadata[name]}" for name, sign in _SIGNS.items() if name in spec.metadata]
    choices = [name for one in (spec.type, *get_args(spec.type)) for name in getattr(one, "__members__", ())]
    return spec.metadata["doc"] + (f" ({', '.join(choices or bounds)})" if choices or bounds else "")


def check_range(key: str, spec: dataclasses.Field, value: Any) -> None:
    """Raises `UserError` where a number is not finite or outside its field's range."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if not math.isfinite(value):
        raise UserError(f"{key}={value} is not a finite number", spec.metadata["doc"])
    for name, (sign, holds) in _TESTS.items():
        if name in spec.metadata and not holds(value, spec.metadata[name]):
            raise UserError(f"{key}={value} must be {sign} {spec.metadata[name]}", spec.metadata["doc"])


def refuse_home(key: str, value: str) -> None:
    """Refuse `~/…`: no shell expands it after `key=`, and a folder called ~ would be made."""
    if value == "~" or value.startswith("~/"):
        raise UserError(f"{key}={value}: ~ is not expanded here", f'"{key}=$HOME{value[1:]}"')
