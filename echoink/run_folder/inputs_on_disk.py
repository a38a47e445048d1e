"""Recognizes the weights and the rows that a run begins with, without reading them whole."""

import hashlib
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
    files = [root] if root.is_file() else sorted({file for pattern in _ROWS for file in root.glob(pattern)})
    found = hashlib.sha256()
    for file in filter(Path.is_file, files):
        found.update(str(file.relative_to(root)).encode() + b" " + parts_of(file))
    return found.hexdigest()[:16] if files else None


_ROWS = ("*.json", "*.jsonl", "*.parquet", "*.arrow", "*/*.jsonl", "*/*.parquet", "*/*.arrow")
_ROWS += tuple(f"{folders}omni_rl_format_*.json" for folders in ("*/", "*/*/", "*/*/*/"))
"""Where files of rows are below `dataset.path`, in any layout (`data/readers.py`)."""


def digests(config: Config) -> dict[str, str | None]:
    """What a run's summary notes of its weights and rows."""
    return {"weights": weights_of(config), "rows": rows_of(config)}


def differ(one: str | None, other: str | None) -> bool:
    """Whether two of these digests are of other weights or rows. Earlier versions noted fewer parts, or nothing."""
    parts = [(each or "").split() for each in (one, other)]
    return any(a != b for a, b in zip(*parts, strict=False))
