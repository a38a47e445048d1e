"""From the dataset's configuration to samples that are known to be good."""

from dataclasses import dataclass
from pathlib import Path

from echoink import synthetic
from echoink.config import DatasetConfig, Source
from echoink.console import progress, say
from echoink.errors import UserError
from echoink.samples import Sample, answer_positions, check_media, read_split


@dataclass(frozen=True)
class Splits:
    """The samples of a run."""

    train: list[Sample]
    valid: list[Sample]


def load(config: DatasetConfig, max_audio_seconds: float, train: bool) -> Splits:
    """Read the splits, after writing the synthetic set where it is missing, and decode every file once.

    Args:
        config: the group `dataset`.
        max_audio_seconds: cap on sounds.
        train: whether the training split is needed.

    Raises:
        UserError: naming the folder, the file or the sample.
    """
    root = Path(config.path)
    if config.source is Source.synthetic:
        _write_synthetic(config, root)
    splits = Splits(
        train=read_split(root, "train", config.train) if train else [],
        valid=read_split(root, "valid", config.valid),
    )
    samples = splits.train + splits.valid
    check_media(samples, max_audio_seconds, progress("check", len(samples)))
    return splits


def _write_synthetic(config: DatasetConfig, root: Path) -> None:
    sizes = {"train": config.train, "dev": config.dev, "valid": config.valid}
    if None in sizes.values():
        raise UserError("dataset.train, dataset.dev and dataset.valid are numbers for the synthetic set")
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        total = sum(sizes.values())
        say("data", f"writing {total:,} pictures and sounds to {root}")
        synthetic.write(root, config.seed, sizes, progress("data", total))
    made = read_split(root, "valid", 1)[0].fields.get("data_source")
    if made != f"synthetic-v{synthetic.VERSION}":
        raise UserError(f"{root} holds {made}, not synthetic-v{synthetic.VERSION}", "delete it to have it written anew")


def describe(splits: Splits) -> str:
    """One line: sizes, kinds of question, where the right answers stand."""
    parts = [f"{len(splits.train):,} train"] if splits.train else []
    kinds: dict[str, int] = {}
    for sample in splits.valid:
        if kind := sample.fields.get("kind"):
            kinds[kind] = kinds.get(kind, 0) + 1
    by = " · ".join(f"by {kind} {count}" for kind, count in sorted(kinds.items()))
    parts.append(f"{len(splits.valid):,} valid" + (f" ({by})" if by else ""))
    positions = answer_positions(splits.valid)
    parts.append("answers " + " ".join(f"{letter} {100 * share:.0f}%" for letter, share in positions.items()))
    return " · ".join(parts)
