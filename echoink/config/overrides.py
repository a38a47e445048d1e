"""Values in Hydra's grammar of overrides."""

import re
from functools import cache

from echoink.common.keys import fields_of
from echoink.config.schema import Config

_NO_TEXT = re.compile(r"[+-]?[\d.][\d._]*(e[+-]?[\d_]+)?|true|false|[+-]?(inf|nan)", re.IGNORECASE)
"""What Hydra reads as a number or a boolean."""


@cache
def _text_keys() -> set[str]:
    keys = {key for key, spec, _ in fields_of(Config()) if spec.type in (str, str | None)}
    return keys | {"hydra.run.dir", "hydra.sweep.dir"}


def as_text(override: str) -> str:
    """An override, its value quoted where its key takes text and Hydra would read another type: name=2026_11_29."""
    key, _, value = override.partition("=")
    if key.lstrip("+") not in _text_keys() or not any(map(_NO_TEXT.fullmatch, values := value.split(","))):
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
