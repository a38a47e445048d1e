"""Pictures of a run, made from its folder alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

PANELS = (
    ("reward/accuracy", "accuracy reward"),
    ("completion/mean_length", "completion length (tokens)"),
    ("reward/format", "format reward"),
)
"""The curves of the paper's Figure 4, and the format reward."""

INK = "#1f4e79"


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with its start-up bias removed, as experiment trackers draw it.

    s_t = (1 - w) Σ_k w^(t-k) v_k / (1 - w^(t+1))
    """
    smoothed, total = [], 0.0
    for count, value in enumerate(values, 1):
        total = weight * total + (1 - weight) * value
        smoothed.append(total / (1 - weight**count))
    return smoothed


def curves(run: Path) -> Path | None:
    """Draw `figures/curves.png` from `metrics.jsonl`: raw faint, smoothed bold. None where nothing was logged yet.

    Evaluations, if `summary.json` has them, are points with their 95 % intervals on the accuracy panel.
    """
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    rows = [row for row in rows if "reward/accuracy" in row]
    if not rows:
        return None
    steps = [row["step"] for row in rows]
    summary = run / "summary.json"
    summary = json.loads(summary.read_text()) if summary.is_file() else {}
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(12, 3.4), constrained_layout=True)
    for axis, (name, label) in zip(axes, PANELS, strict=True):
        values = [row[name] for row in rows]
        axis.plot(steps, values, color=INK, alpha=0.25, linewidth=1)
        axis.plot(steps, smooth(values), color=INK, linewidth=2)
        axis.set(xlabel="step", title=label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if name != "completion/mean_length":
            axis.set_ylim(0, 1.02)
    for phase, step in (("base", 0), ("final", steps[-1])):
        if found := summary.get(phase):
            low, high = found["interval"]
            error = [[found["accuracy"] - low], [high - found["accuracy"]]]
            axes[0].errorbar(step, found["accuracy"], error, fmt="o", color="#b5412b", capsize=3)
    target = run / "figures" / "curves.png"
    figure.savefig(target, dpi=130)
    pyplot.close(figure)
    return target
