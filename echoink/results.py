"""What finished runs say together: runs found on disk, arms of an ablation, differences paired by seed.

An arm is all runs that differ in nothing but the seed. Only files are read: `config.yaml`, `summary.json`,
`metrics.jsonl`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from echoink.compose import compose
from echoink.config import to_yaml
from echoink.errors import UserError
from echoink.statistics import Seeds, holm, over_seeds
from echoink.tracking import read_rows

SHORT = {
    "reward.lambda_acc": "λ_acc",
    "reward.lambda_fmt": "λ_fmt",
    "grpo.group_size": "G",
    "grpo.beta": "β",
    "grpo.scale": "scale",
    "grpo.loss": "loss",
    "grpo.advantage": "advantage",
    "trainer.learning_rate": "learning rate",
    "reward.file": "reward",
    "reward.lambda_int": "λ_int",
    "reward.integration": "rule",
    "grpo.modality_dropout": "modality dropout",
    "dataset.shortcut_share": "shortcut",
    "dataset.curriculum": "curriculum",
}
"""How keys are called in labels: the paper's names."""

NOT_THE_METHOD = ("name", "resume", "tracking", "sweep", "eval.cache", "eval.watched", "dry_run", "model.figures")
"""Keys that change nothing of what a run computes."""


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    folder: Path
    summary: dict
    config: dict[str, Any]
    """Dotted keys to values, of what the run computes."""

    @cached_property
    def metrics(self) -> list[dict]:
        """The steps that have rewards."""
        return [row for row in read_rows(self.folder / "metrics.jsonl") if "reward/accuracy" in row]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def finished(self) -> bool:
        return self.summary["status"] == "finished"

    @property
    def result(self) -> dict | None:
        """Of the evaluation that ended it: `final`, or `base` where only that was asked for."""
        return self.summary.get("final") or self.summary.get("base")

    @property
    def lengths(self) -> tuple[float, float] | None:
        """Completion length in tokens over the first and the last tenth of the steps."""
        values = [row["completion/mean_length"] for row in self.metrics]
        tenth = -(-len(values) // 10)
        return (sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth) if values else None


def read(folder: Path) -> Run | None:
    """A run's folder; None where it is none."""
    if not ((folder / "summary.json").is_file() and (folder / "config.yaml").is_file()):
        return None
    return Run(
        folder, json.loads((folder / "summary.json").read_text()), method((folder / "config.yaml").read_text("utf-8"))
    )


def method(config: str) -> dict[str, Any]:
    """The dotted keys of a `config.yaml` on which a run's numbers depend; what an older one lacks has its default."""
    return defaults() | of_yaml(config)


def of_yaml(text: str) -> dict[str, Any]:
    """Dotted keys and values of a configuration on which a run's numbers depend."""
    found = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    return {key: value for key, value in flat(found) if not key.startswith(NOT_THE_METHOD)}


@cache
def defaults() -> dict[str, Any]:
    """The default run's."""
    return of_yaml(to_yaml(compose([])[0].config))


def flat(tree: dict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values of a nested dictionary."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_job(folder: Path) -> bool:
    """Whether a folder is a job of a sweep: they are numbered."""
    return folder.is_dir() and folder.name.isdigit()


def jobs(sweep: Path) -> list[Path]:
    """The folders of a sweep's jobs, in order."""
    return sorted(filter(is_job, sweep.glob("*")), key=lambda path: int(path.name))


def find(folders: Iterable[Path]) -> list[Run]:
    """All runs in or below folders, those of a sweep in its order, each once.

    Raises:
        UserError: a folder is missing or holds no run.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no such folder: {folder}", "give folders of runs or sweeps")
        summaries = [path.parent for path in folder.rglob("summary.json")]
        places = sorted(summaries, key=lambda p: (str(p.parent), int(p.name) if is_job(p) else 0, p.name))
        runs = [run for place in places if "unfinished" not in place.parts and (run := read(place))]
        if not runs:
            raise UserError(f"{folder} holds no run", "a run's folder has summary.json and config.yaml")
        found |= {run.folder.resolve(): run for run in runs}
    return list(found.values())


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys in which runs differ, the seed apart."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "seed")
    return [key for key in keys if len({repr(run.config.get(key)) for run in runs}) > 1]


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the seed only."""

    values: tuple[tuple[str, Any], ...]
    """Of the keys in which the arms differ."""
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """ "λ_fmt 0.5 · scale none"."""
        return " · ".join(f"{SHORT.get(key, key)} {_short(value)}" for key, value in self.values) or "all runs"

    def of_seed(self, name: str) -> dict[int, float]:
        """A number of the final evaluation, such as `accuracy`, by seed."""
        return {run.seed: run.result[name] for run in self.runs if run.finished and run.result[name] is not None}

    def over_seeds(self, name: str) -> Seeds | None:
        """Its mean and t interval over seeds; None where no run has it."""
        values = list(self.of_seed(name).values())
        return over_seeds(values) if values else None


def _short(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and value.endswith(".py"):
        return Path(value).stem
    line = " ".join(str(value).split())
    return line if len(line) <= 40 else line[:39] + "…"


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Group runs into arms, in the order in which they first appear; a seed counts once, its last finished run."""
    keys = differing(runs)
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        group = groups.setdefault(repr([run.config.get(key) for key in keys]), {})
        if run.seed not in group or run.finished:
            group[run.seed] = run
    return [
        Arm(tuple((key, next(iter(group.values())).config.get(key)) for key in keys), tuple(group.values()))
        for group in groups.values()
    ]


def reference(found: Sequence[Arm]) -> Arm:
    """The arm that the others are compared with: the one with the most default values, of equals the first."""
    return max(found, key=lambda arm: sum(defaults().get(key) == value for key, value in arm.values))


@dataclass(frozen=True)
class Difference:
    """An arm against the reference."""

    arm: Arm
    seeds: Seeds | None
    """Differences paired by seed; None where they share fewer than two seeds."""
    adjusted_p: float | None
    """Holm's, over all arms."""


def differences(found: Sequence[Arm], against: Arm, name: str = "accuracy") -> list[Difference]:
    """Every arm but the reference: its difference in a number of the final evaluation, paired by seed.

    Two runs of one seed see the same prompts in the same order and the same noise, so that pairs differ by less than
    runs do. p is the paired t test's, adjusted by Holm over the arms.
    """
    ours = against.of_seed(name)
    others = [arm for arm in found if arm is not against]
    paired = []
    for arm in others:
        theirs = arm.of_seed(name)
        both = [theirs[seed] - ours[seed] for seed in ours if seed in theirs]
        paired.append(over_seeds(both) if len(both) > 1 else None)
    tested = [seeds is not None and seeds.p_value is not None for seeds in paired]
    adjusted = iter(holm([seeds.p_value for seeds, has in zip(paired, tested, strict=True) if has]))
    return [
        Difference(arm, seeds, next(adjusted) if has else None)
        for arm, seeds, has in zip(others, paired, tested, strict=True)
    ]
