"""Pictures, made from folders alone.

python -m echoink.report outputs/tiny/<run>                 figures/curves.png of a run
python -m echoink.report outputs/tiny/sweep_<time>          the same of a sweep, a line per job
python -m echoink.report outputs/data/<set> sheet.png       samples of a dataset: picture, sound, question, answer
"""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from omegaconf import OmegaConf

from echoink import command
from echoink.errors import UserError
from echoink.tracking import read_rows

PANELS = (
    ("reward/accuracy", "accuracy reward"),
    ("completion/mean_length", "completion length (tokens)"),
    ("reward/format", "format reward"),
)
"""The curves of the paper's Figure 4, and the format reward."""

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


def curves(runs: dict[str, Path], target: Path) -> Path | None:
    """Draw the curves of runs from their `metrics.jsonl`: raw faint, smoothed bold. None where nothing was logged yet.

    Evaluations in the `summary.json` of a single run are points with 95 % intervals on the accuracy panel, those on the
    development split squares.

    Args:
        runs: folders by the label of their line.
        target: the PNG to write.
    """
    found = {
        label: [row for row in read_rows(run / "metrics.jsonl") if PANELS[0][0] in row] for label, run in runs.items()
    }
    found = {label: rows for label, rows in found.items() if rows}
    if not found:
        return None
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(12, 3.4), constrained_layout=True)
    for axis, (name, title) in zip(axes, PANELS, strict=True):
        for number, (label, rows) in enumerate(found.items()):
            colour = COLOURS[number % len(COLOURS)]
            steps, values = [row["step"] for row in rows], [row[name] for row in rows]
            axis.plot(steps, values, color=colour, alpha=0.25 if len(found) == 1 else 0.12, linewidth=1)
            axis.plot(steps, smooth(values), color=colour, linewidth=2, label=label)
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if name != "completion/mean_length":
            axis.set_ylim(0, 1.02)
    if len(found) > 1:
        axes[0].legend(frameon=False, fontsize="small")
    else:
        _evaluations(axes[0], *((runs[label], rows[-1]["step"]) for label, rows in found.items()))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    pyplot.close(figure)
    return target


def _evaluations(axis: pyplot.Axes, run_and_last_step: tuple[Path, int]) -> None:
    run, last = run_and_last_step
    summary = json.loads((run / "summary.json").read_text()) if (run / "summary.json").is_file() else {}
    for phase, step in (("base", 0), ("final", last)):
        if found := summary.get(phase):
            low, high = found["interval"]
            error = [[found["accuracy"] - low], [high - found["accuracy"]]]
            axis.errorbar(step, found["accuracy"], error, fmt="o", color="#b5412b", capsize=3)
    if points := read_rows(run / "dev.jsonl"):
        axis.plot(
            [row["step"] for row in points], [row["dev/accuracy"] for row in points], "s--", color="#3a7d44", ms=4
        )


def sheet(dataset: Path, target: Path, count: int = 6) -> Path:
    """Draw the first validation samples of a dataset: picture, waveform, question, options, right answer.

    Args:
        dataset: its folder.
        target: the PNG to write.
        count: how many.
    """
    from echoink.media import SAMPLING_RATE, load_audio, load_image
    from echoink.splits import read_split

    samples = read_split(dataset, "valid", count)
    figure, axes = pyplot.subplots(
        2, len(samples), figsize=(2.6 * len(samples), 4.3), height_ratios=(3, 1), constrained_layout=True, squeeze=False
    )
    for (top, bottom), sample in zip(axes.T, samples, strict=True):
        sound = load_audio(sample.audio, 10)
        top.imshow(load_image(sample.image))
        top.set_axis_off()
        words = (option.replace(" ", "\N{NO-BREAK SPACE}") for option in sample.options)
        options = "   ".join(f"[{word}]" if word[0] in sample.gold else word for word in words)
        top.set_title(f"{_wrapped(sample.problem)}\n{_wrapped(options)}", fontsize=7.5, loc="left")
        bottom.plot([t / SAMPLING_RATE for t in range(len(sound))], sound, color=COLOURS[0], linewidth=0.5)
        bottom.set(ylim=(-0.6, 0.6), yticks=[], xlabel="seconds")
        bottom.locator_params(axis="x", nbins=3)
        bottom.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(target, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return target


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 38)


def label(job: Path) -> str:
    """What sets a job of a sweep apart: the overrides that its sweep varies, from the job's folder."""
    file = job / ".hydra" / "overrides.yaml"
    told = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else []
    others = [path for path in job.parent.glob("*/.hydra/overrides.yaml") if path != file]
    shared = [set(OmegaConf.to_container(OmegaConf.load(path))) for path in others]
    return ", ".join(o for o in told if not shared or any(o not in s for s in shared) if not o.startswith("hydra."))


def main(arguments: list[str]) -> None:
    """Draw what the given folder holds; see the module's docstring.

    Raises:
        UserError: the folder is neither a run, a sweep nor a dataset.
    """
    folder = Path(arguments[0])
    jobs = sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    target = Path(arguments[1]) if len(arguments) > 1 else folder / "figures" / "curves.png"
    if jobs:
        print(curves({label(job): job for job in jobs}, target))
    elif (folder / "metrics.jsonl").is_file():
        print(curves({folder.name: folder}, target))
    elif (folder / "omni_rl_format_valid.json").is_file():
        print(sheet(folder, target if len(arguments) > 1 else Path("sheet.png")))
    else:
        raise UserError(f"{folder} is neither a run, a sweep nor a dataset", "see python -m echoink.report --help")


if __name__ == "__main__":
    command.run(main, __doc__)
