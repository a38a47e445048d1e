"""Recognizes the weights that a run begins with, without reading them whole."""

import hashlib
from pathlib import Path

from echoink.config.schema import Config, Task
from echoink.run_folder import checkpoint

PARTS, LENGTH = 16, 2**16
"""How many parts of a file are read, and how long each is, in bytes: so many that a step of training changes some."""


def begun_with(config: Config) -> str | None:
    """A digest of names, sizes and parts of the files of the weights; None if none of them is in a local folder."""
    both = config.task is Task.compare
    places = [config.model.path, config.checkpoint] if both else [config.checkpoint or config.model.path]
    folders = [folder for place in places if place and (folder := checkpoint.chosen(Path(place)))]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors")) if file.is_file()]
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with open(file, "rb") as content:
            for part in range(PARTS):
                content.seek(part * max(0, size - LENGTH) // (PARTS - 1))
                found.update(content.read(LENGTH))
    return found.hexdigest()[:16] if files else None
