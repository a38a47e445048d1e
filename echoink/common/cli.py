"""What all commands but `echoink.train` and `echoink.benchmark` share: help, settings, one clear error."""

import difflib
import errno
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from echoink.common import signals
from echoink.common.errors import UserError
from echoink.common.keys import check_range, fields_of, meaning, refuse_home
from echoink.common.startup import take_any_text

Settings = TypeVar("Settings")


def run(
    main: Callable[[Sequence[str]], int | None],
    doc: str | Callable[[Sequence[str]], str],
    needs_words: bool = True,
    again: str = "the same command starts over",
) -> None:
    """Run a command on the command line's words; its module's docstring is its help.

    Args:
        main: takes the words, may return an exit status.
        doc: the help, or a function that returns it for the words.
        needs_words: whether the command prints its help if no words are given.
        again: how to continue after Ctrl-C.
    """
    take_any_text()
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words) or (needs_words and not words):
        print((doc if isinstance(doc, str) else doc(words)).strip())
        sys.exit()
    try:
        sys.exit(main(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        named = error.filename2 or error.filename
        place = f": {named}" if named is not None else ""
        hint = "make room, change the permissions, or give another place"
        print(f"error: {error.strerror}{place}\n  → {hint}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nstopped by Ctrl-C; {again}", file=sys.stderr)
        sys.exit(130)


_OF_THE_MACHINE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC),
    *(errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOTDIR),
)
"""Errors that a disk, a permission or the place that was named causes, and no fault of the code."""


def train(words: Sequence[str]) -> int:
    """Run `python -m echoink.train` in its own process; return its exit status.

    Ctrl-C reaches both processes: the run saves a checkpoint and ends, and this process waits for it. If this process
    is killed, the run ends too (on Linux).
    """
    command, interrupted = [sys.executable, "-m", "echoink.train", *words], False
    process = subprocess.Popen(command, preexec_fn=signals.end_with_parent)
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            interrupted = True
        else:
            break
    if interrupted:
        raise KeyboardInterrupt
    return status


def without_config_dir(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The words without `--config-dir DIR` or `--config-dir=DIR`, and the folder that it names.

    Raises:
        UserError: it names none.
    """
    rest, found = [], None
    given = iter(words)
    for word in given:
        name, sign, value = word.partition("=")
        if name not in ("--config-dir", "-cd"):
            rest.append(word)
        elif not (found := value if sign else next(given, None)):
            raise UserError(f"{name} without a folder", "--config-dir mine")
    return rest, found


def help_of(doc: str | None, schema: type) -> str:
    """A docstring, and the settings with their defaults and meanings; `???` must be given."""
    lines = [inspect.cleandoc(doc or ""), "", "Settings, their defaults (??? must be given), and what they mean:", ""]
    for key, spec, value in fields_of(schema()):
        plain = value.name if isinstance(value, Enum) else value
        shown = plain if isinstance(plain, str) else json.dumps(plain).replace('"', "")
        lines.append(f"    {key}={shown}".ljust(36) + f" {meaning(spec)}")
    return "\n".join(lines)


def places_and_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are files or folders, and the `key=value` settings; a word that exists on disk is no setting."""
    places = [word for word in words if "=" not in word or Path(word).exists()]
    return places, [word for word in words if word not in places]


def _keep_text(settings: object, word: str, types: Mapping[str, Any]) -> None:
    """Keep a text setting as it was written: of output=1.10 YAML makes a number, and of output=x #y it reads x."""
    key, _, value = word.partition("=")
    if types.get(key) not in (str, str | None) or value[0] in "'\"" or value.lower() in ("null", "~"):
        return
    *groups, name = key.split(".")
    for group in groups:
        settings = getattr(settings, group)
    setattr(settings, name, value)


def settings(schema: type[Settings], words: Sequence[str]) -> Settings:
    """`key=value` words as a schema's dataclass.

    Raises:
        UserError: an unknown key, a value of another type, or a key that is missing.
    """
    known, read = [str(key) for key in OmegaConf.structured(schema)], []
    for word in words:
        key, sign, value = word.partition("=")
        refuse_home(key, value)
        if sign and not value.strip():
            raise UserError(f"{key}= is empty", f"give a value, or {key}=null; is a variable of the shell not set?")
        if not sign or key.partition(".")[0] not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}=? " if close else ""
            raise UserError(f"cannot read {word}", f"{hint}known: {' '.join(f'{name}=' for name in known)}")
        try:
            read.append(OmegaConf.from_dotlist([word]))
        except YAMLError as error:
            raise UserError(f"cannot read {word}", f'quote the value within the word: {key}="…"') from error
    try:
        given = OmegaConf.merge(OmegaConf.structured(schema), *read)
        if missing := sorted(OmegaConf.missing_keys(given)):
            raise UserError(f"give {' and '.join(f'{key}=…' for key in missing)}", "--help explains them")
        found = OmegaConf.to_object(given)
        types = {key: spec.type for key, spec, _ in fields_of(found)}
        for word in words:
            _keep_text(found, word, types)
    except ConfigKeyError as error:
        known = ", ".join(f"{error.full_key.rpartition('.')[0]}.{key}" for key in error.parent_node)
        raise UserError(f"unknown key {error.full_key}", f"known: {known}") from error
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0], "--help explains the settings") from error
    for name, spec, value in fields_of(found):
        check_range(name, spec, value)
    return found
