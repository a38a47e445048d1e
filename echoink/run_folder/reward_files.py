"""Keeps the user's reward files that a run was begun with: `rewards/<name in metrics>.py` in its folder."""

import hashlib
import shutil
from pathlib import Path

from echoink.config.schema import RewardConfig

FOLDER = "rewards"


def _files(reward: RewardConfig) -> dict[str, tuple[str, Path]]:
    """The key that names a file, and the file, by the name of its copy."""
    found = {"custom.py": ("reward.file", Path(reward.file))} if reward.file else {}
    return found | {f"{each.metric_name}.py": ("reward.files", Path(each.path)) for each in reward.files}


def keep(reward: RewardConfig, run: Path) -> None:
    """Copy the files, as they are now, into a run's folder."""
    for name, (_, file) in _files(reward).items():
        (run / FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(file, run / FOLDER / name)


def digest(run: Path) -> str | None:
    """A digest of the files that a run keeps; None if there are none."""
    kept = sorted((run / FOLDER).glob("*.py"))
    content = [(file.name, file.read_bytes()) for file in kept]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:8] if kept else None


def changed(reward: RewardConfig, run: Path) -> dict[str, str]:
    """The files that have changed since a run began, by key; empty for a run without copies."""
    return {
        key: str(file)
        for name, (key, file) in _files(reward).items()
        if (copy := run / FOLDER / name).is_file() and copy.read_bytes() != file.read_bytes()
    }
