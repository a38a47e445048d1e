"""Reads runs and sweeps from disk."""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from echoink.common.console import say
from echoink.common.errors import UserError
from echoink.common.files import read_rows
from echoink.config.compose import compose
from echoink.config.paths import NO_RUNS
from echoink.config.schema import to_yaml
from echoink.run_folder import before, reward_files
from echoink.run_folder.folder import read_summary

NOT_THE_METHOD = (
    "name",
    "resume",
    "tracking",
    "sweep",
    "eval.cache",
    "eval.watched",
    "dry_run",
    "model.architecture",
    "model.figures",
    "trainer.save_every",
    "trainer.keep_checkpoints",
    "trainer.completions_every",
    "trainer.push_to_hub",
    "trainer.patience",
    "dataset.workers",
    "generation.vllm.python",
    "generation.vllm.sleep",
    "generation.vllm.alarm",
)
"""Keys and groups that say what a run keeps and how it is started and watched; none changes what it computes."""


@dataclass(frozen=True)
class Run:
    """A run, read from its folder."""

    folder: Path
    summary: dict
    config: dict[str, Any]
    """Dotted keys and values on which the run's numbers depend."""

    @cached_property
    def metrics(self) -> list[dict]:
        """The rows of steps that have rewards."""
        return [row for row in read_rows(self.folder / "metrics.jsonl") if "reward/accuracy" in row]

    @cached_property
    def contents(self) -> dict[str, str | None]:
        """Digests of the files that its configuration pointed to when it began; None if it kept none."""
        data = " ".join(f"{one['context']} {one['digest']}" for one in _inputs(self.folder))  # as sent to MLflow
        return {"rewards/": reward_files.digest(self.folder), "data/": data or None}

    @cached_property
    def questions(self) -> str | None:
        """A digest of the samples that it evaluated (their ids, texts and files); None if it kept none."""
        split = self.config["eval.split"]  # of a training run the training split comes first
        return next((one["digest"] for one in reversed(_inputs(self.folder)) if one["context"] == split), None)

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def changed(self) -> list[str]:
        """Keys whose values in `config` are those of the last steps only: the run was resumed with other values."""
        return self.summary.get("changed") or []

    @property
    def finished(self) -> bool:
        return self.summary["status"] == "finished"

    @property
    def result(self) -> dict | None:
        """The numbers of its last evaluation: `final`, or `base` if that was the only one."""
        return self.summary.get("final") or self.summary.get("base")

    @property
    def lengths(self) -> tuple[float, float] | None:
        """Completion length in tokens over the first and the last tenth of the steps."""
        values = [row["completion/mean_length"] for row in self.metrics]
        return ends(values) if values else None


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The means of the first and of the last tenth."""
    tenth = -(-len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def read(folder: Path) -> Run | None:
    """Read a run's folder; None if it is not one, or if one of its two files is damaged."""
    if not ((folder / "summary.json").is_file() and (folder / "config.yaml").is_file()):
        return None
    summary, config = read_summary(folder), {}
    with suppress(YAMLError, OmegaConfBaseException, UnicodeDecodeError):
        config = of_yaml((folder / "config.yaml").read_text("utf-8"))
    return Run(folder, summary, defaults() | config) if config and summary["status"] != "damaged" else None


def _inputs(folder: Path) -> list[dict]:
    """A run's splits, as sent to MLflow: `context` is the split's name."""
    with suppress(OSError, ValueError):
        return json.loads((folder / "tracking.json").read_text(encoding="utf-8")).get("inputs") or []
    return []


def configuration(run: Path) -> DictConfig:
    """A run's config.yaml.

    Raises:
        UserError: it is empty or damaged.
    """
    file = run / "config.yaml"
    with suppress(YAMLError, UnicodeDecodeError, OmegaConfBaseException):
        found = OmegaConf.load(file)
        if isinstance(found, DictConfig) and found:
            return found
    copy = run / ".hydra/config.yaml"
    raise UserError(f"{file} is empty or damaged", f"restore it from {copy}" if copy.is_file() else "restore it")


def method(config: str) -> dict[str, Any]:
    """The dotted keys of a `config.yaml` on which a run's numbers depend; keys missing in old ones get defaults."""
    return defaults() | of_yaml(config)


def of_yaml(text: str) -> dict[str, Any]:
    """Dotted keys and values of a configuration on which a run's numbers depend."""
    found = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    return {key: value for key, value in flat(found) if not key.startswith(NOT_THE_METHOD)}


@cache
def defaults() -> dict[str, Any]:
    """Those of the default run."""
    return of_yaml(to_yaml(compose([])[0].config))


def flat(tree: dict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values of a nested dictionary."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def overrides(run: Path) -> list[str]:
    """What a run's command line said."""
    file = run / ".hydra/overrides.yaml"
    return [str(word) for word in OmegaConf.load(file)] if file.is_file() else []


def is_job(folder: Path) -> bool:
    """Whether a folder is a job of a sweep, whose name is a number."""
    return folder.is_dir() and folder.name.isdigit()


def sweep_of(run: Path) -> Path | None:
    """The sweep that a run is a job of; None where it is none."""
    return run.parent if is_job(run) and (run.parent / "sweep.json").is_file() else None


def jobs(sweep: Path) -> list[Path]:
    """The folders of a sweep's jobs, in order."""
    return sorted(filter(is_job, sweep.glob("*")), key=lambda path: int(path.name))


def below(folder: Path, name: str) -> list[Path]:
    """The folders in or below one that hold a file of that name, except for copies of runs' files."""
    found, seen, starts = [], set(), [folder]
    for start in starts:  # outputs may be links to a large disk; what is behind links comes last
        for place, folders, files in os.walk(start):
            real = os.path.realpath(place)
            if real in seen:  # it is also somewhere without a link, or this is a circle of links
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(each for each in set(folders) - NO_RUNS if not each.startswith(before.PREFIX))
            starts += [Path(place, each) for each in folders if os.path.islink(os.path.join(place, each))]
            found += [Path(place)] if name in files else []
    return found


def find(folders: Iterable[Path]) -> list[Run]:
    """All runs in or below folders, each once; a sweep's jobs in their order.

    Raises:
        UserError: a folder is missing or holds no run.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no such folder: {folder}", "give folders of runs or sweeps")
        summaries = below(folder, "summary.json")
        places = sorted(summaries, key=lambda p: (str(p.parent), int(p.name) if is_job(p) else 0, p.name))
        runs = []
        for place in places:
            if run := read(place):
                runs.append(run)
            elif (place / "config.yaml").is_file():
                say("warning", f"{place} is passed over: its summary.json or config.yaml is empty or damaged")
        if not runs:
            raise UserError(f"{folder} holds no run", "a run's folder has summary.json and config.yaml")
        found |= {run.folder.resolve(): run for run in runs}
    return list(found.values())
