"""Values in Hydra's grammar of overrides."""

import re
from functools import cache

from echoink.common.keys import fields_of
from echoink.config.schema import Config

_NO_TEXT = re.compile(r"[+-]?[\d.][\d._]*(e[+-]?[\d_]+)?|true|false|[+-]?(inf|nan)", re.IGNORECASE)
"""What Hydra reads as a number or a boolean."""


@cache
def _keys() -> dict[str, bool]:
    """The known keys, and whether they take text."""
    keys = {key: spec.type in (str, str | None) for key, spec, _ in fields_of(Config())}
    return keys | {"hydra.run.dir": True, "hydra.sweep.dir": True}


def normalized(override: str) -> str:
    """An override as the rest of the package reads it: `++seed=3` is `seed=3` if the key is known. A value is quoted if
    its key takes text and Hydra would read another type: name=2026_11_29.
    """
    key, _, value = override.partition("=")
    if key.startswith("++") and key[2:] in _keys():
        key, override = key[2:], override[2:]
    if not _keys().get(key.lstrip("+")) or not any(map(_NO_TEXT.fullmatch, values := value.split(","))):
        return override
    return f"{key}=" + ",".join(quoted(one) if _NO_TEXT.fullmatch(one) else one for one in values)


def quoted(text: object) -> str:
    """A text, such as a path, as a value in Hydra's grammar of overrides, quoted where it must be."""
    # Outside quotes Hydra's grammar accepts only ASCII letters.
    plain = re.fullmatch(r"(?:[A-Za-z_/]|\.\.?/)[\w./-]*", str(text), re.ASCII)
    if plain and str(text).lower() not in ("null", "true", "false", "inf", "nan"):
        return str(text)
    # Within quotes a backslash is literal, except before a quote, which it escapes.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(text)) + "'"
