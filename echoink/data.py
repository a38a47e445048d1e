"""From the dataset's configuration to samples that are known to be good."""

import json
from dataclasses import dataclass
from pathlib import Path

from echoink import synthetic
from echoink.config import DatasetConfig, EvalConfig, Source, TrainerConfig
from echoink.console import progress, say
from echoink.errors import UserError
from echoink.samples import Sample, answer_positions, check_media, read_split


@dataclass(frozen=True)
class Splits:
    """The samples of a run."""

    train: list[Sample]
    valid: list[Sample]
    """What is evaluated: the validation split, or the development split with eval.split=dev."""


def load(config: DatasetConfig, evaluation: EvalConfig, max_audio_seconds: float, train: bool) -> Splits:
    """Read the splits, after writing the synthetic set where it is missing, and decode every file once.

    Args:
        config: the group `dataset`.
        evaluation: the group `eval`: its split and limit.
        max_audio_seconds: cap on sounds.
        train: whether the training split is needed.

    Raises:
        UserError: naming the folder, the file or the sample.
    """
    root = Path(config.path)
    if config.source is Source.synthetic:
        _write_synthetic(config, root)
    split = evaluation.split.name
    samples = read_split(root, split, getattr(config, split))
    splits = Splits(train=read_split(root, "train", config.train) if train else [], valid=samples[: evaluation.limit])
    samples = splits.train + splits.valid
    check_media(samples, max_audio_seconds, progress("check", len(samples)))
    return splits


def training_steps(config: TrainerConfig, updates_per_rollout: int, prompts: int) -> int:
    """Optimizer steps of a run: as configured, or `epochs` over the prompts with the last step of each filled up.

    Raises:
        UserError: there are fewer prompts than a step takes.
    """
    if prompts < config.prompts_per_step:
        raise UserError(
            f"{prompts} training samples are fewer than trainer.prompts_per_step={config.prompts_per_step}",
            "add samples or take fewer per step",
        )
    per_epoch = -(-prompts // config.prompts_per_step) * updates_per_rollout
    return config.steps or max(1, round(per_epoch * config.epochs))


def _write_synthetic(config: DatasetConfig, root: Path) -> None:
    sizes = {"train": config.train, "dev": config.dev, "valid": config.valid}
    if None in sizes.values():
        raise UserError("dataset.train, dataset.dev and dataset.valid are numbers for the synthetic set")
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        total = sum(sizes.values())
        say("data", f"writing {total:,} pictures and sounds to {root}")
        synthetic.write(root, config.seed, sizes, progress("data", total))
    file, wanted = root / synthetic.RECIPE, synthetic.recipe(config.seed, sizes)
    made = json.loads(file.read_text()) if file.is_file() else None
    if made != wanted:
        raise UserError(
            f"{root} was made as {made}, not as {wanted}", "give another dataset.path or delete that folder"
        )


def describe(splits: Splits) -> str:
    """One line: sizes, kinds of question, where the right answers stand."""
    parts = [f"{len(splits.train):,} train"] if splits.train else []
    kinds: dict[str, int] = {}
    for sample in splits.valid:
        if kind := sample.fields.get("kind"):
            kinds[kind] = kinds.get(kind, 0) + 1
    by = " · ".join(f"by {kind} {count}" for kind, count in sorted(kinds.items()))
    parts.append(f"{len(splits.valid):,} to evaluate" + (f" ({by})" if by else ""))
    positions = answer_positions(splits.valid)
    parts.append("answers " + " ".join(f"{letter} {100 * share:.0f}%" for letter, share in positions.items()))
    return " · ".join(parts)
