"""The rewards of the user's own that a run was begun with: `rewards/<name in metrics>.py` in its folder."""

import hashlib
import shutil
from pathlib import Path

from echoink.config.schema import RewardConfig

FOLDER = "rewards"


def _files(reward: RewardConfig) -> dict[str, tuple[str, Path]]:
    """For each copy's name: the key that names the file, and the file."""
    found = {"custom.py": ("reward.file", Path(reward.file))} if reward.file else {}
    return found | {f"{each.metric_name}.py": ("reward.files", Path(each.path)) for each in reward.files}


def keep(reward: RewardConfig, run: Path) -> None:
    """Copy the files, as they are now, into a run's folder."""
    for name, (_, file) in _files(reward).items():
        (run / FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(file, run / FOLDER / name)


def digest(run: Path) -> str | None:
    """Of the files that a run keeps; None where there are none."""
    kept = sorted((run / FOLDER).glob("*.py"))
    content = [(file.name, file.read_bytes()) for file in kept]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:8] if kept else None


def changed(reward: RewardConfig, run: Path) -> dict[str, str]:
    """By key, the files that have changed since a run began; empty for a run without copies."""
    return {
        key: str(file)
        for name, (key, file) in _files(reward).items()
        if (copy := run / FOLDER / name).is_file() and copy.read_bytes() != file.read_bytes()
    }
