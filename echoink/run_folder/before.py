"""What a run's folder held before this process took it up. It is put back if the process ends without a new result.

So a run that is refused or stopped while it loads keeps its results, its configuration and its command.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".before-"
"""The beginning of the name of a folder in which a process keeps a run's files."""

_kept: dict[Path, Path] = {}
"""For each run's folder that this process has taken up, where its files are kept."""


def _files(folder: Path) -> Iterator[Path]:
    for pattern in ("*.json", "*.jsonl", "config.yaml", ".hydra/*", "completions/*", "rewards/*", "checkpoints/*.json"):
        yield from (file for file in folder.glob(pattern) if file.is_file() and file.name != "system.jsonl")


def keep(folder: Path) -> None:
    """Remember a run's files, unless this process has done so already."""
    folder = folder.resolve()
    if folder in _kept or not any((folder / name).is_file() for name in ("summary.json", "config.yaml")):
        return
    for left in folder.glob(f"{PREFIX}*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        _kept[folder] = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        for file in [*_files(folder)]:
            copy = _kept[folder] / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            # Files of rows may be large. They are replaced when they are cut, and new rows end what is kept.
            _link(file, copy) if file.suffix == ".jsonl" else shutil.copy2(file, copy)
    except OSError:  # a full disk, which `preflight.check_disk` reports
        drop(folder)


def _link(file: Path, copy: Path) -> None:
    try:
        os.link(file, copy)
    except OSError:  # a file system without links
        shutil.copy2(file, copy)


def is_kept(folder: Path) -> bool:
    """Whether a run's files are remembered."""
    return folder.resolve() in _kept


def put_back(folder: Path) -> None:
    """Bring a run's files back to what they were, and remove those that are new."""
    folder = folder.resolve()
    part = _kept.pop(folder, None)
    if part is None or not part.is_dir():
        return
    kept = {file.relative_to(part): file for file in part.rglob("*") if file.is_file()}
    for file in [*_files(folder)]:
        if file.relative_to(folder) not in kept:
            file.unlink()
    for name, copy in kept.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(copy, folder / name)
    shutil.rmtree(part, ignore_errors=True)


def put_all_back() -> None:
    """The same for every folder that this process has taken up and added nothing to."""
    for folder in [*_kept]:
        put_back(folder)


def drop(folder: Path) -> None:
    """Forget what a run's folder held: there is a new result."""
    if part := _kept.pop(folder.resolve(), None):
        shutil.rmtree(part, ignore_errors=True)
