"""Recognizes the weights and the rows that a run begins with, without reading them whole."""

import hashlib
import os
from pathlib import Path

from echoink.common.files import parts_of
from echoink.config.schema import Config, Task
from echoink.run_folder import checkpoint


def weight_files(folder: Path) -> list[Path]:
    """The files of weights of a model or an adapter."""
    return [file for kind in ("safetensors", "bin") for file in sorted(folder.glob(f"*.{kind}")) if file.is_file()]


def weights_of(config: Config) -> str | None:
    """A digest of names, sizes and parts of the files of the weights, and one of their config.json; None if no weights
    are in a local folder.
    """
    both = config.task is Task.compare
    places = [config.model.path, config.checkpoint] if both else [config.checkpoint or config.model.path]
    folders = [folder for place in places if place and (folder := checkpoint.chosen(Path(place)))]
    files = [file for folder in folders for file in weight_files(folder)]
    found = hashlib.sha256()
    for file in files:
        found.update(file.name.encode() + b" " + parts_of(file))  # a step of training changes some of the parts
    if not files:
        return None
    settings = hashlib.sha256()
    for file in (folder / "config.json" for folder in folders):
        settings.update(file.read_bytes() if file.is_file() else b"")
    return f"{found.hexdigest()[:16]} {settings.hexdigest()[:16]}"


def rows_of(config: Config) -> str | None:
    """A digest of sizes and parts of the files of rows below `dataset.path`; None if there are none on this disk."""
    root = Path(config.dataset.path)
    files = [root] if root.is_file() else []
    for place, folders, names in os.walk(root):
        if len(Path(place).relative_to(root).parts) == _DEPTH:
            folders.clear()
        files += [Path(place, name) for name in names if name.endswith((".json", ".jsonl", ".parquet", ".arrow"))]
    found = hashlib.sha256()
    for file in sorted(filter(Path.is_file, files)):
        found.update(str(file.relative_to(root)).encode() + b" " + parts_of(file))
    return found.hexdigest()[:16] if files else None


_DEPTH = 3
"""How many folders below `dataset.path` hold files of rows at most, in any layout (`data/readers.py`)."""


def differ(one: str | None, other: str | None) -> bool:
    """Whether two of these digests are of other models. Earlier versions digested the weights alone, or nothing."""
    parts = [(each or "").split() for each in (one, other)]
    return any(a != b for a, b in zip(*parts, strict=False))
