"""What Hydra and OmegaConf find wrong, in one line with a hint."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException

from echoink.common.errors import UserError
from echoink.common.keys import fields_of
from echoink.config.foreign_names import HERE
from echoink.config.origin import place_of
from echoink.config.overrides import quoted
from echoink.config.paths import conf_dir
from echoink.config.schema import Config

_PLACES = {
    "model": "; for one of your own: model=<one of these> model.path=<folder or hub id>",
    "dataset": "; for one of your own: dataset=rows dataset.path=<folder>",
}
"""Hints for groups where one may give a path as the name of a file."""


def hint_for(name: str) -> str:
    """What to write instead of a name that is not a key."""
    return known_like(name, all_keys())


def known_like(tried: str, keys: Sequence[str]) -> str:
    """A hint: the same key in another group, else our name for it, else the closest key and those of its group."""
    if there := [key for key in keys if key.rpartition(".")[2] == tried.rpartition(".")[2]]:
        return f"did you mean {' or '.join(there)}?"
    if here := HERE.get(tried.rpartition(".")[2]):
        return f"here it is {here}"
    same_depth = [key for key in keys if key.count(".") == tried.count(".")]
    siblings = [key for key in same_depth if key.rpartition(".")[0] == tried.rpartition(".")[0]]
    return f"{closest(tried, same_depth)}known: {', '.join(siblings or same_depth)}"


def all_keys() -> list[str]:
    """Dotted keys of groups and values."""
    paths = [key.split(".") for key, _, _ in fields_of(Config())]
    return list(dict.fromkeys(".".join(path[: place + 1]) for path in paths for place in range(len(path))))


def explained(error: Exception, overrides: Sequence[str], own: Path | None = None) -> UserError:
    """What Hydra or OmegaConf found, in one line, with the closest valid name; `own` is the user's --config-dir."""
    # Hydra and OmegaConf give details only in their messages, so these are parsed, the most telling ones first.
    text = str(error)
    cause = error.__cause__ or error
    if inside := place_of(text, own, conf_dir()):
        return _inside_file(error, *inside)
    if isinstance(error, MissingConfigException) and "Available options" in text:
        what, _, listing = text.partition("Available options")
        names = listing.partition("Config search path")[0].split("\n")[1:]
        names = [name.strip() for name in names if name.strip()]
        tried = what.split("'")[-2].split("/")[-1]
        hint = f"{closest(tried, names)}available: {', '.join(names)}"
        group = what.split("'")[-2].split("/")[0]
        return UserError(what.strip().splitlines()[-1], hint + _PLACES.get(group, ""))
    if isinstance(error, OverrideParseException):
        key, sign, value = error.override.partition("=")
        if value == "~" or value.startswith("~/"):
            hint = f'no shell expands ~ there: "{key}=$HOME{value[1:]}"'
        elif sign and value.strip() and key == key.strip() and not value.startswith(("'", '"', " ")):
            hint = f'quote the value for Hydra and for the shell: "{key}={quoted(value)}"'
        else:
            hint = "write an override as key=value, without spaces around ="
        return UserError(f"cannot read the override {error.override!r}", hint)
    if "Ambiguous value for argument" in text:
        return UserError(text.splitlines()[0], "add --multirun for a sweep, or quote the value")
    given = [override.partition("=")[0] for override in overrides]
    for key in given:
        if key.lstrip("+").partition("@")[0] in [group.name for group in groups()] and key.startswith("+"):
            return UserError(f"{key} adds a group that is already there", f"write {key.lstrip('+')}=… without +")
    keys = all_keys()
    tried = getattr(cause, "full_key", None) or next((key for key in given if key.lstrip("+~") in text), "")
    tried = tried.lstrip("+~")
    if "reward.files" in given and tried and tried not in keys and "." not in tried:
        return UserError(f"reward.files: unknown key {tried}", "known: path, weight, name")
    if tried and re.sub(r"\[\d+\]$", "", tried) not in keys:
        return UserError(f"unknown key {tried}", known_like(tried, keys))
    if tried and "is not a ListConfig" in str(cause):
        return UserError(f"{tried} takes a list", f"{tried}=[…], its items separated by commas")
    detail = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    return UserError(f"{tried}: {detail}" if tried else detail, "python -m echoink.train --help explains every key")


def _inside_file(error: Exception, where: str, key: str, detail: str) -> UserError:
    """A mistake inside a configuration file."""
    if isinstance(error, MissingConfigException):
        tried = re.search(r"Could not find '([^']+)'", str(error))
        hint = "in a file of a group, another group is named from the root: - override /adapter: lora"
        return UserError(
            f"{where}: its defaults name {tried.group(1) if tried else 'a file'}, which is not there", hint
        )
    if detail.startswith("Key ") and key in ("experiment", *(group.name for group in groups())):
        return UserError(f"{where} lands under the key {key}", "its first line must be: # @package _global_")
    if detail.startswith("Key "):
        keys = all_keys()
        return UserError(f"{where}: unknown key {key}", known_like(key, keys))
    return UserError(
        f"{where}: {key + ': ' if key else ''}{detail}", "python -m echoink.train --help explains every key"
    )


def closest(tried: str, names: Sequence[str]) -> str:
    """The beginning of a hint: the name closest to what was tried; empty where none is close."""
    close = difflib.get_close_matches(tried, names, 1, 0.75)
    return f"did you mean {close[0]}? " if close else ""


def groups() -> list[Path]:
    """The folders of `conf/` from which the command line chooses files."""
    names = {spec.name for spec in dataclasses.fields(Config)} | {"experiment"}
    return sorted(path for path in conf_dir().iterdir() if path.is_dir() and path.name in names)
