"""Figures of runs, sweeps and datasets, made from their folders alone."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

from echoink.common.files import read_rows
from echoink.data.splits import read_split
from echoink.media.loaders import SAMPLING_RATE, load_image, load_sound
from echoink.report import arms
from echoink.report.arms import Arm
from echoink.run_folder.folder import read_summary
from echoink.run_folder.reader import Run

ACCURACY = "reward/accuracy"

PANELS = (
    (ACCURACY, "accuracy reward"),
    ("completion/mean_length", "completion length (tokens)"),
    ("reward/format", "format reward"),
)
"""The curves of the paper's Figure 4, and the format reward."""

SUPERVISED = (
    ("train/loss", "loss"),
    (ACCURACY, "accuracy of the responses"),
    ("reward/format", "format of the responses"),
)
"""The curves of supervised fine-tuning, whose responses are given: their rewards say whether they are right."""

EVALUATED = ("evaluation, 95 %", "development split")

COLOURS = ("#1f4e79", "#c05a1c", "#3a7d44", "#7d3c98", "#b03a48", "#4a4a4a", "#8a6d1a", "#2a7f8e")


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with its start-up bias removed, as experiment trackers draw it.

    s_t = (1 - w) Σ_k w^(t-k) v_k / (1 - w^(t+1))
    """
    smoothed, total = [], 0.0
    for count, value in enumerate(values, 1):
        total = weight * total + (1 - weight) * value
        smoothed.append(total / (1 - weight**count))
    return smoothed


def curves(run: Path, *targets: Path) -> Path | None:
    """Draw the curves of a run from its `metrics.jsonl`: raw values faint, smoothed values bold.

    On the panel of accuracy, evaluations in `summary.json` are points with 95 % intervals; those in `dev.jsonl`, on the
    development split, are squares.

    Args:
        run: the run's folder.
        targets: the files to write, each PNG or SVG by its name.

    Returns:
        The first of them; None where nothing was logged yet.
    """
    rows = [row for row in read_rows(run / "metrics.jsonl") if ACCURACY in row]
    if not rows:
        return None
    summary = read_summary(run)
    panels = SUPERVISED if summary.get("task") == "sft" else PANELS
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 3.4), constrained_layout=True)
    steps = [row["step"] for row in rows]
    for axis, (name, title) in zip(axes, panels, strict=True):
        values = _values(rows, name)
        axis.plot(steps, values, color=COLOURS[0], alpha=0.25, linewidth=1)
        axis.plot(steps, smooth(values), color=COLOURS[0], linewidth=2, **_mark(steps))
        _dress(axis, name, title)
        if name == ACCURACY:
            _evaluations(axis, run, summary, steps[-1])
    return _save(figure, targets)


def _mark(steps: Sequence[int]) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4} if len(steps) == 1 else {}  # a line through one point is invisible


def _values(rows: Sequence[dict], name: str) -> list[float]:
    """A metric at each step; of a step that was skipped, whose loss was not finite, the value before it."""
    values: list[float] = []
    for row in rows:
        values.append(row.get(name, values[-1] if values else 0.0))
    return values


def _save(figure: pyplot.Figure, targets: Sequence[Path]) -> Path:
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=130)
        figure.set_layout_engine(None)  # the first layout is kept: finding it is a drawing of its own
    pyplot.close(figure)
    return targets[0]


def _dress(axis: pyplot.Axes, name: str, title: str) -> None:
    axis.set(xlabel="step", title=title)
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if name.startswith("reward/"):
        axis.set_ylim(0, 1.02)


def overlay(runs: Sequence[Run], *targets: Path) -> Path | None:
    """Draw the curves of an ablation: each run faint, each arm's mean over seeds bold, with their range as a band.

    Curves of several seeds are smoothed first; then their mean and range are taken at each step.

    Args:
        runs: those of the ablation; runs without a step are left out.
        targets: the files to write, each PNG or SVG by its name.

    Returns:
        The first of them; None where no run has a step.
    """
    found = arms.arms([run for run in runs if run.metrics])
    if not found:
        return None
    many = len(found) > len(COLOURS)
    panels = SUPERVISED if all(run.summary.get("task") == "sft" for run in runs) else PANELS
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 3.6), constrained_layout=True)
    for axis, (name, title) in zip(axes, panels, strict=True):
        for number, arm in enumerate(found):
            colour = pyplot.get_cmap("viridis")(number / (len(found) - 1)) if many else COLOURS[number]
            _arm(axis, arm, name, colour)
        _dress(axis, name, title)
    if len(found) > 1:
        columns = max(1, min(4, 150 // (max(len(arm.label) for arm in found) + 6)))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return _save(figure, targets)


def _arm(axis: pyplot.Axes, arm: Arm, name: str, colour) -> None:
    curves = []
    for run in arm.runs:
        raw = _values(run.metrics, name)
        axis.plot([row["step"] for row in run.metrics], raw, color=colour, alpha=0.1, linewidth=0.8)
        curves.append(smooth(raw))
    steps = [row["step"] for row in max((run.metrics for run in arm.runs), key=len)]
    there = [[curve[at] for curve in curves if at < len(curve)] for at in range(len(steps))]
    means = [sum(values) / len(values) for values in there]
    axis.plot(steps, means, color=colour, linewidth=2, label=arm.label, **_mark(steps))
    if len(curves) > 1:
        axis.fill_between(
            steps, [min(v) for v in there], [max(v) for v in there], color=colour, alpha=0.15, linewidth=0
        )


def _evaluations(axis: pyplot.Axes, run: Path, summary: dict, last: int) -> None:
    for phase, step in (("base", 0), ("final", last)):
        if found := summary.get(phase):
            low, high = found["interval"]
            # Where the accuracy is 0 or 1 the interval ends there, up to rounding.
            error = [[max(0.0, found["accuracy"] - low)], [max(0.0, high - found["accuracy"])]]
            label = EVALUATED[0] if phase == "base" or not summary.get("base") else None
            axis.errorbar(step, found["accuracy"], error, fmt="o", color="#b5412b", capsize=3, label=label)
    if points := read_rows(run / "dev.jsonl"):
        steps, found = [row["step"] for row in points], [row["dev/accuracy"] for row in points]
        axis.plot(steps, found, "s--", color="#3a7d44", ms=4, label=EVALUATED[1])
    own = [(handle, name) for handle, name in zip(*axis.get_legend_handles_labels(), strict=True) if name in EVALUATED]
    if own:
        axis.legend(*zip(*own, strict=True), frameon=False, fontsize="small", loc="lower right")


def sheet(dataset: Path, target: Path) -> Path:
    """Draw the first validation samples of a dataset: picture, waveform, question, options, right answer.

    Args:
        dataset: the dataset's folder.
        target: the PNG to write.
    """
    samples = read_split(dataset, "valid", 6)
    figure, axes = pyplot.subplots(
        2, len(samples), figsize=(2.6 * len(samples), 4.3), height_ratios=(3, 1), constrained_layout=True, squeeze=False
    )
    for (top, bottom), sample in zip(axes.T, samples, strict=True):
        sound = load_sound(sample.audio, 10).samples if sample.audio else []
        if sample.image:
            top.imshow(load_image(sample.image))
        top.set_axis_off()
        words = (option.replace(" ", "\N{NO-BREAK SPACE}") for option in sample.options)
        options = "   ".join(f"[{word}]" if word[0] in sample.gold else word for word in words)
        top.set_title(f"{_wrapped(sample.problem)}\n{_wrapped(options)}", fontsize=7.5, loc="left", parse_math=False)
        bottom.plot([t / SAMPLING_RATE for t in range(len(sound))], sound, color=COLOURS[0], linewidth=0.5)
        bottom.set(ylim=(-1, 1), yticks=[], xlabel="seconds")
        bottom.locator_params(axis="x", nbins=3)
        bottom.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(target, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return target


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 38)
