"""What a run's folder held before a process took it up. It is put back if the process ends without adding a result.

So a run that is refused, stopped or killed while it loads keeps its results, its configuration and its command. Files
of rows are kept as hard links: they are replaced when they change, except for new rows, and then there is a result.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from echoink.common.files import write_atomic

FOLDER = ".before"
_OWNER = "owner"
"""The file that names the process that took the folder up."""
_ME = uuid.uuid4().hex


def _files(folder: Path) -> Iterator[Path]:
    for pattern in ("*.json", "*.jsonl", "config.yaml", ".hydra/*", "completions/*", "rewards/*", "checkpoints/*.json"):
        yield from (file for file in folder.glob(pattern) if file.is_file() and file.name != "system.jsonl")


def keep(folder: Path) -> None:
    """Remember a run's files, unless this process has done so already."""
    if is_kept(folder) or not (folder / "summary.json").is_file():
        return
    put_back_what_was_killed(folder)
    for left in folder.glob(f"{FOLDER}*"):  # of a process that was killed while it kept or dropped
        shutil.rmtree(left, ignore_errors=True)
    part = folder / f"{FOLDER}-{_ME}"
    for file in [*_files(folder)]:
        copy = part / "files" / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            (os.link if file.suffix == ".jsonl" else shutil.copy2)(file, copy)
        except OSError:  # a file system without links
            shutil.copy2(file, copy)
    write_atomic(part / _OWNER, _ME)
    part.rename(folder / FOLDER)


def is_kept(folder: Path) -> bool:
    """Whether this process has remembered a run's files and not put them back or dropped them."""
    file = folder / FOLDER / _OWNER
    return file.is_file() and file.read_text(encoding="utf-8") == _ME


def put_back(folder: Path) -> None:
    """Bring the folder's files back to what they were."""
    kept = folder / FOLDER / "files"
    for copy in [path for path in kept.rglob("*") if path.is_file()]:
        target = folder / copy.relative_to(kept)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(copy, target)
    drop(folder)


def put_back_what_was_killed(folder: Path) -> None:
    """The same, if another process took the folder up and was killed before it added anything."""
    if (folder / FOLDER / _OWNER).is_file() and not is_kept(folder):
        put_back(folder)


def drop(folder: Path) -> None:
    """Forget what was there: the run has a new result."""
    if (folder / FOLDER).is_dir():
        gone = folder / f"{FOLDER}-{uuid.uuid4().hex}"
        (folder / FOLDER).rename(gone)  # at once: half of it must not be put back
        shutil.rmtree(gone, ignore_errors=True)
