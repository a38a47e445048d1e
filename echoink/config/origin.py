"""Where a mistake in a configuration file is: the file, the line, the key."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from echoink.common.errors import UserError

_BOOLEANS = ("yes", "no", "on", "off")


_CHOICE = re.compile(r"\+?([\w/-]+)(?:@[\w.]*)?=([\w./-]{1,200})")
"""An override that may choose a file: group=name, not a dotted key, not a long value."""


def chosen_files(overrides: Iterable[str], folder: Path | None) -> list[Path]:
    """The files of a configuration folder that `group=name` overrides choose; none without a folder."""
    chosen = [match.groups() for override in overrides if folder and (match := _CHOICE.fullmatch(override))]
    return [path for group, name in chosen if (path := folder / group / f"{name}.yaml").is_file()]


def line_of(path: Path, key: str) -> int | None:
    """The line, from 1, of a dotted key in a YAML file, or of the longest part of the key that is there."""
    best, depth = None, 0
    for found, node, _ in _keys(path):
        parts = found.split(".")
        if key.split(".")[: len(parts)] == parts and len(parts) > depth:
            best, depth = node.start_mark.line + 1, len(parts)
    return best


def keys_of(path: Path) -> list[str]:
    """The dotted keys of a YAML file."""
    return [key for key, _, _ in _keys(path)]


def refuse_surprises(path: Path) -> None:
    """Refuse unquoted values that YAML 1.1 reads differently than they look: 010 is 8, `off` is false.

    Raises:
        UserError: naming file, line and key.
    """
    for key, node, value in _keys(path):
        if not isinstance(value, yaml.ScalarNode) or value.style is not None:
            continue
        where = f"{path}, line {node.start_mark.line + 1}: {key}: {value.value}"
        if re.fullmatch(r"[-+]?0[0-7_]*[1-7][0-7_]*", value.value) and value.tag.endswith(":int"):
            raise UserError(
                f"{where} is read as {int(value.value, 8)} (octal)", f"write {int(value.value.replace('_', ''))}"
            )
        if re.fullmatch(r"[-+]?\d+(:[0-5]?\d)+", value.value) and value.tag.endswith(":int"):
            raise UserError(f"{where} is read as a number in base 60", f'write "{value.value}" in quotes')
        if value.value.lower() in _BOOLEANS:
            raise UserError(f"{where} is read as true or false", f'write true, false, or "{value.value}" in quotes')


def place_of(text: str, config_dir: Path | None, conf: Path) -> tuple[str, str, str] | None:
    """What Hydra says about a mistake inside a file: its place, the key, and what is wrong in one line; else None.

    Args:
        text: the message of Hydra's error.
        config_dir: the user's configuration folder.
        conf: the package's configuration folder.
    """
    named = re.match(r"In '([^']+)'", text)
    if named is None or named.group(1) == "config":
        return None
    folders = [folder for folder in (config_dir, conf) if folder is not None]
    path = next((file for folder in folders if (file := folder / f"{named.group(1)}.yaml").is_file()), None)
    if path is None:
        return None
    key = found.group(1).strip() if (found := re.search(r"full_key:(.*)", text)) else ""
    lines = [line.strip() for line in text.splitlines()[1:]]
    detail = next((line for line in lines if line and not line.startswith("full_key")), text.splitlines()[0])
    line = line_of(path, key) if key else None
    return f"{path}" + (f", line {line}" if line else ""), key, detail


def _keys(path: Path) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Dotted keys of a YAML file with the nodes of key and value, parents before children."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):  # Hydra reports it
        return

    def walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = f"{prefix}{key.value}"
                yield name, key, value
                yield from walk(value, f"{name}.")

    yield from walk(root, "")
