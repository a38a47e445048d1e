"""Checks the ranges of settings: `ge`, `gt`, `le`, `lt` in the metadata of their fields."""

import dataclasses
import math
from typing import Any

from echoink.common.errors import UserError


def check_range(key: str, spec: dataclasses.Field, value: Any) -> None:
    """Raises `UserError` where a number is not finite or outside its field's range."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if not math.isfinite(value):
        raise UserError(f"{key}={value} is not a finite number", spec.metadata["doc"])
    tests = {
        "ge": (">=", value.__ge__),
        "gt": (">", value.__gt__),
        "le": ("<=", value.__le__),
        "lt": ("<", value.__lt__),
    }
    for name, (sign, holds) in tests.items():
        if name in spec.metadata and holds(spec.metadata[name]) is not True:
            raise UserError(f"{key}={value} must be {sign} {spec.metadata[name]}", spec.metadata["doc"])
