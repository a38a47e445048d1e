"""Recognizes the weights that a run begins with, without reading them whole."""

import hashlib
from pathlib import Path

from echoink.common.files import parts_of
from echoink.config.schema import Config, Task
from echoink.run_folder import checkpoint


def begun_with(config: Config) -> str | None:
    """A digest of names, sizes and parts of the files of the weights, and one of their config.json; None if no weights
    are in a local folder.
    """
    both = config.task is Task.compare
    places = [config.model.path, config.checkpoint] if both else [config.checkpoint or config.model.path]
    folders = [folder for place in places if place and (folder := checkpoint.chosen(Path(place)))]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors")) if file.is_file()]
    found = hashlib.sha256()
    for file in files:
        found.update(file.name.encode() + b" " + parts_of(file))  # a step of training changes some of the parts
    if not files:
        return None
    settings = hashlib.sha256()
    for file in (folder / "config.json" for folder in folders):
        settings.update(file.read_bytes() if file.is_file() else b"")
    return f"{found.hexdigest()[:16]} {settings.hexdigest()[:16]}"


def differ(one: str | None, other: str | None) -> bool:
    """Whether two of these digests are of other models. Earlier versions digested the weights alone, or nothing."""
    parts = [(each or "").split() for each in (one, other)]
    return any(a != b for a, b in zip(*parts, strict=False))
