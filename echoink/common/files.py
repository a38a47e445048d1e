"""Writes files whole or not at all; reads and writes JSON Lines."""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from echoink.common.errors import UserError, first_line


def write_aside(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a temporary file, then rename it: readers find it whole, even if others write it too."""
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}")  # processes on two machines may have one PID
    try:
        with open(part, "wb") as content:
            write(content)
            content.flush()
            os.fsync(content.fileno())  # else a machine that crashes may leave an empty file under the name
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_atomic(file: Path, text: str) -> None:
    """Write a text by `write_aside`."""
    write_aside(file, lambda content: content.write(text.encode()))


def as_json(content: Any) -> str:
    """A JSON file's text, which people can read too."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_json(file: Path) -> Any:
    """The content of a JSON file that this package has written.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged: {first_line(error)}", "restore it from a copy, or delete it") from error


def as_lines(rows: Iterable[dict]) -> str:
    """The text of a JSON Lines file."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def milliseconds() -> int:
    """The current time in milliseconds, as MLflow counts it."""
    return int(time.time() * 1000)


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSON Lines file; none where it is missing. Only a line feed ends a row, not U+2028 in a text.

    A last line that is still being written, or was cut by a kill, is no row.
    """
    content = path.read_bytes() if path.is_file() else b""
    *whole, rest = content.split(b"\n")
    rows = [json.loads(line) for line in whole if line]
    with suppress(ValueError):
        rows.append(json.loads(rest))
    return rows


def cut_lines(file: Path, keep: Callable[[dict], bool]) -> None:
    """Keep only the rows of a JSON Lines file that `keep` accepts; drop a line that a kill has cut off."""
    if not file.is_file():
        return
    # Bytes are kept, not parsed and written anew: so rows stay the same to the last digit.
    with open(file, "rb") as lines:
        kept = b"".join(line for line in lines if line.endswith(b"\n") and keep(json.loads(line)))
    if kept != file.read_bytes():
        write_aside(file, lambda part: part.write(kept))


PARTS, LENGTH = 16, 2**16
"""How many parts of a file `parts_of` reads, and how long each is, in bytes."""


def parts_of(file: Path) -> bytes:
    """The size of a file and parts of it, from its first byte to its last: what tells two large files apart."""
    size = file.stat().st_size
    found = [str(size).encode()]
    with open(file, "rb") as content:
        for part in range(PARTS):
            content.seek(part * max(0, size - LENGTH) // (PARTS - 1))
            found.append(content.read(LENGTH))
    return b" ".join(found)
