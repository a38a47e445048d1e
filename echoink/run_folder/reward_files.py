"""The rewards of the user's own that a run was begun with: `rewards/<name in metrics>.py` in its folder."""

from pathlib import Path

from echoink.config.schema import RewardConfig

FOLDER = "rewards"


def _files(reward: RewardConfig) -> dict[str, tuple[str, Path]]:
    """By the name of each copy the key that names the file, and the file."""
    found = {"custom.py": ("reward.file", Path(reward.file))} if reward.file else {}
    return found | {f"{each.metric_name}.py": ("reward.files", Path(each.path)) for each in reward.files}


def texts(reward: RewardConfig) -> dict[str, str]:
    """By the place of each copy in the run's folder what the file holds now."""
    return {f"{FOLDER}/{name}": file.read_text(encoding="utf-8") for name, (_, file) in _files(reward).items()}


def changed(reward: RewardConfig, run: Path) -> dict[str, str]:
    """By key the files that are no longer what a run was begun with; of a run without copies nothing is known."""
    return {
        key: str(file)
        for name, (key, file) in _files(reward).items()
        if (copy := run / FOLDER / name).is_file() and copy.read_bytes() != file.read_bytes()
    }
