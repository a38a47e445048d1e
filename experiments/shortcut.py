"""Prints the tables of experiments/integration.md from the folders of their runs.

    python experiments/shortcut.py outputs/shortcut
    python experiments/shortcut.py outputs/described

For each arm, over seeds: accuracy of the final answers to validation questions that need both modalities, also split by
whether the cue's letter is wrong or right; the share of the gap between plain GRPO with and without the shortcut in
training that an arm closes (mean over seeds of arm - plain, divided by the mean of clean - plain; Fieller's interval,
paired by seed, includes the errors of both); the share of answers with the cue's letter; the routes of their texts
(`route`); accuracy on `ear` and `eye` questions; accuracy under swaps; tokens; seconds per step. All shares are in
percent.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path

import numpy as np
from scipy.stats import t

from echoink.common.files import read_rows
from echoink.common.statistics import over_seeds
from echoink.data import synthetic
from echoink.data.synthetic import Scene
from echoink.run_folder import reader
from echoink.run_folder.folder import PREDICTIONS
from echoink.run_folder.reader import Run


class Route(Enum):
    """How an answer to a `both` question was reached, as its text says."""

    reasoned = "reasoned"
    """Both counts are right, and so is the remainder of their sum."""
    cue = "cue"
    """The timbre or the colour is said to tell the letter."""
    false_sum = "false_sum"
    """Both media are described, and the stated remainder of their sum is wrong."""
    hasty = "hasty"
    """Nothing is described."""
    other = "other"
    """None of these, such as wrong counts."""


def route(text: str, scene: Scene, options: int) -> Route:
    """The route of a completion: the ground truth for measures of fusion."""
    counts = re.search(r"hear (\d) (\w+), see (\d) (\w+) (\w+)", text)
    if counts is None:
        return Route.hasty if "no need to check" in text else Route.other
    if "check" in text:
        return Route.cue
    rest = re.search(r"mod \d = (\d)", text)
    if rest is None:
        return Route.other
    seen = (int(counts[1]), int(counts[3])) == (scene.sounds, scene.shapes)
    if int(rest[1]) != synthetic.remainder(int(counts[1]), int(counts[3]), options):
        return Route.false_sum
    return Route.reasoned if seen else Route.other


def ratio(values: Sequence[float], of: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of mean(values) / mean(of), paired by seed, with the errors of both (Fieller 1954).

    None if the denominator may be 0 at that level: then no ratio can be given.
    """
    x, y = np.asarray(values, float), np.asarray(of, float)
    if len(x) < 2:
        return None
    covariance = np.cov(x, y) / len(x)
    wide = float(t.ppf((1 + confidence) / 2, len(x) - 1)) ** 2
    a = y.mean() ** 2 - wide * covariance[1, 1]
    b = x.mean() * y.mean() - wide * covariance[0, 1]
    c = x.mean() ** 2 - wide * covariance[0, 0]
    if a <= 0:
        return None
    root = max(0.0, b * b - a * c) ** 0.5
    return (float((b - root) / a), float((b + root) / a))


PLAIN, CLEAN = "plain GRPO", "no shortcut in training"


def arm(run: Run) -> str:
    """The name of a run's arm."""
    config, where = run.config, "" if run.config["dataset.shortcut_share"] else f", {CLEAN}"
    if config["reward.lambda_int"]:
        return f"{config['reward.integration']}, λ_int {config['reward.lambda_int']:g}{where}"
    if config["reward.file"]:
        return f"{Path(config['reward.file']).stem}{where}"
    if config["grpo.modality_dropout"]:
        return f"modality dropout {config['grpo.modality_dropout']:g}{where}"
    if config.get("dataset.curriculum"):
        return "curriculum by need"
    return PLAIN if config["dataset.shortcut_share"] else CLEAN


class Answers:
    """The answers of one phase of a run, by variant; with cue and route for questions that need both modalities."""

    def __init__(self, run: Run, phase: str):
        self._rows: dict[str, list[dict]] = defaultdict(list)
        sense, seed = run.config.get("dataset.shortcut") or "ear", run.config["dataset.seed"]
        for row in read_rows(run.folder / PREDICTIONS):
            if row["phase"] == phase and row["draw"] == "sampled":
                kind, options = row["fields"]["kind"], row["options"]
                row["kind"] = kind
                if kind == "both":
                    scene, _ = synthetic.draw(synthetic.generator(seed, "valid", int(row["id"])), kind)
                    row["cue"] = options[synthetic.cue(scene, sense, len(options))][0]
                    row["route"] = route(row["completion"], scene, len(options))
                self._rows[row["variant"]].append(row)

    def share(self, of: Callable[[dict], float], where: Callable[[dict], bool], variant: str = "full") -> float | None:
        """Mean of a number over the rows of a variant; None if there are none."""
        found = [of(row) for row in self._rows[variant] if where(row)]
        return sum(found) / len(found) if found else None


def both(row: dict) -> bool:
    return row["kind"] == "both"


def right(row: dict) -> float:
    return row["score"]


COLUMNS: dict[str, Callable[[Answers], float | None]] = {
    "both": lambda a: a.share(right, both),
    "cue contradicts": lambda a: a.share(right, lambda r: both(r) and r["cue"] != r["gold"]),
    "cue agrees": lambda a: a.share(right, lambda r: both(r) and r["cue"] == r["gold"]),
    "at the cue": lambda a: a.share(lambda r: r["letters"] == r["cue"], both),
    "reasoned": lambda a: a.share(lambda r: r["route"] is Route.reasoned, both),
    "by the cue": lambda a: a.share(lambda r: r["route"] in (Route.cue, Route.hasty), both),
    "false sum": lambda a: a.share(lambda r: r["route"] is Route.false_sum, both),
    "by ear": lambda a: a.share(right, lambda r: r["kind"] == "ear"),
    "by eye": lambda a: a.share(right, lambda r: r["kind"] == "eye"),
    "both, swapped_audio": lambda a: a.share(right, both, "swapped_audio"),
    "both, swapped_image": lambda a: a.share(right, both, "swapped_image"),
}


def main(folders: Sequence[str]) -> None:
    arms: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in reader.find(map(Path, folders)):
        if run.finished and run.summary.get("final"):
            arms[arm(run)][run.seed] = run
    answers = {name: {seed: Answers(run, "final") for seed, run in runs.items()} for name, runs in arms.items()}
    accuracy = {name: {s: COLUMNS["both"](each) for s, each in found.items()} for name, found in answers.items()}
    heads = ("arm", "seeds", "accuracy, both", "gap closed", *list(COLUMNS)[1:], "tokens", "s/step, of it integration")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, runs in sorted(arms.items(), key=lambda each: (each[0] != PLAIN, each[0] != CLEAN, each[0])):
        means = [mean([read(each) for each in answers[name].values()]) for read in list(COLUMNS.values())[1:]]
        steps = [row for run in runs.values() for row in run.metrics]
        step, extra = (sum(row.get(f"time/{k}", 0) for row in steps) / len(steps) for k in ("step", "integration"))
        tokens = mean([run.result["mean_tokens"] for run in runs.values()], "{:.0f}", 1)
        found = over_seeds(list(accuracy[name].values()))
        cells = [name, ", ".join(map(str, sorted(runs))), interval(found.mean, found.interval)]
        cells += [closed(accuracy, name), *means, tokens, f"{step:.2f}, {extra:.2f}"]
        print(f"| {' | '.join(cells)} |")
    for run in (run for runs in arms.values() for run in runs.values()):
        if run.summary.get("base"):
            found = [mean([read(Answers(run, "base"))]) for read in COLUMNS.values()]
            print(
                f"| the base | | {found[0]} | | {' | '.join(found[1:])} | {run.summary['base']['mean_tokens']:.0f} | |"
            )
            break
    for name, runs in arms.items():
        for metric in ("integration/fires", "integration/gain", "integration/paid", "reward/integration"):
            rows = [[r[metric] for r in run.metrics if metric in r] for run in runs.values()]
            if all(rows):
                tenth = [max(1, len(values) // 10) for values in rows]
                first = sum(sum(v[:t]) / t for v, t in zip(rows, tenth, strict=True)) / len(rows)
                last = sum(sum(v[-t:]) / t for v, t in zip(rows, tenth, strict=True)) / len(rows)
                print(f"{name}: {metric} {first:.3f} → {last:.3f} (first and last tenth of training)")


def closed(accuracy: dict[str, dict[int, float]], name: str) -> str:
    """Share of the gap that an arm closes, over the seeds that it shares with both ends of the gap."""
    if name in (PLAIN, CLEAN) or not {PLAIN, CLEAN} <= accuracy.keys():
        return ""
    plain, clean = accuracy[PLAIN], accuracy[CLEAN]
    seeds = [seed for seed in accuracy[name] if seed in plain and seed in clean]
    gains, gap = [accuracy[name][s] - plain[s] for s in seeds], [clean[s] - plain[s] for s in seeds]
    return interval(sum(gains) / sum(gap), ratio(gains, gap)) if seeds and sum(gap) else ""


def mean(values: Sequence[float | None], form: str = "{:.1f}", of: float = 100) -> str:
    return "" if None in values else form.format(of * sum(values) / len(values))


def interval(value: float, ends: tuple[float, float] | None) -> str:
    """In percent, with its interval where there is one."""
    return f"{100 * value:.1f}" + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")


if __name__ == "__main__":
    main(sys.argv[1:])
