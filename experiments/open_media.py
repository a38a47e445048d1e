"""Prints the tables of experiments/open_media.md from the folders of their runs.

    python experiments/open_media.py outputs/open_media/sweep_<time> [outputs/…]
    python experiments/open_media.py answers outputs/open_media/<time>
    python experiments/open_media.py figure outputs/open_media/sweep_<time>     # experiments/figures/open_media.png

For each run, by the modality that a question needs and by its form: accuracy of the base and of the trained model
(sampled at temperature 1, intervals clustered by recording and picture) and their difference, paired by question
(`statistics.paired`), in percent. Then the differences over all runs; each run is one seed.

answers: ten answers of the trained model to audio questions, five right and five wrong, drawn with seed 0.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from echoink.common.files import read_rows
from echoink.common.statistics import mean_interval, over_seeds
from echoink.evaluation import metrics
from echoink.evaluation.prediction import GREEDY, Prediction, of_row
from echoink.report.figures import COLOURS
from echoink.run_folder import reader
from echoink.run_folder.folder import PREDICTIONS
from echoink.run_folder.reader import Run

HEADS = (
    *("run", "questions", "n", "a guess", "base", "after", "difference", "p"),
    *("right since", "wrong since", "greedy", "p greedy"),
)


def predictions(run: Run, phase: str) -> list[Prediction]:
    """The answers of a phase to the full questions."""
    rows = read_rows(run.folder / PREDICTIONS)
    return [of_row(row) for row in rows if row["phase"] == phase and row["variant"] == "full"]


def groups(of: Sequence[Prediction]) -> Iterator[tuple[str, set[str]]]:
    """Names of groups and the ids of their questions: all, by need, by form."""
    yield "all", {one.id for one in of}
    for field in ("need", "kind"):
        for value in sorted({one.fields[field] for one in of}):
            yield f"{field} {value}", {one.id for one in of if one.fields[field] == value}


def accuracy(of: Sequence[Prediction]) -> str:
    """Accuracy of the sampled answers, with its interval."""
    rows = metrics.headline(of)
    ends = mean_interval([one.score for one in rows], [one.cluster for one in rows])
    return f"{100 * sum(one.score for one in rows) / len(rows):.1f} [{100 * ends.low:.1f}, {100 * ends.high:.1f}]"


def table(run: Run) -> Iterator[str]:
    base, final = predictions(run, "base"), predictions(run, "final")
    for name, ids in groups(base):
        before, after = ([one for one in phase if one.id in ids] for phase in (base, final))
        guess = sum(metrics.chance(one) for one in metrics.headline(before)) / len(ids)
        cells = [f"seed {run.seed}", name, str(len(ids)), f"{100 * guess:.0f}", accuracy(before)]
        if after:
            change = metrics.compare(before, after)
            greedy = metrics.compare(before, after, GREEDY)
            low, high = change.interval
            difference = f"{100 * change.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            cells += [accuracy(after), difference, f"{change.p_value:.2g}", str(change.gained), str(change.lost)]
            low, high = greedy.interval
            cells += [f"{100 * greedy.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", f"{greedy.p_value:.2g}"]
        yield f"| {' | '.join(cells)} |"


def over_runs(runs: Sequence[Run]) -> Iterator[str]:
    """The differences of all runs, with Student's t over runs."""
    changes: dict[str, list[float]] = {}
    for run in runs:
        base, final = predictions(run, "base"), predictions(run, "final")
        for name, ids in groups(base):
            before, after = ([one for one in phase if one.id in ids] for phase in (base, final))
            changes.setdefault(name, []).append(100 * metrics.compare(before, after).difference)
    for name, values in changes.items():
        found = over_seeds(values)
        shown = " · ".join(f"{value:+.1f}" for value in values)
        ends = "–" if found.interval is None else "[{:+.1f}, {:+.1f}]".format(*found.interval)
        p_value = "–" if found.p_value is None else f"{found.p_value:.2g}"
        yield f"| {name} | {shown} | {found.mean:+.1f} {ends} | {p_value} |"


def answers(run: Run) -> Iterator[str]:
    """Answers of the trained model, drawn at random, with their recordings and pictures."""
    by_ear = [one for one in metrics.headline(predictions(run, "final")) if one.fields["need"] == "audio"]
    before = {one.id: one for one in metrics.headline(predictions(run, "base"))}
    rng = np.random.default_rng(0)
    for right in (True, False):
        of = [one for one in by_ear if one.correct is right]
        for one in (of[place] for place in sorted(rng.choice(len(of), min(5, len(of)), replace=False))):
            heard, seen = one.fields.get("audio_source", ""), one.fields.get("image_source", "")
            texts = [before[one.id].completion, one.completion]
            said = [f"`{' '.join(text.replace('|', '¦').split())}`" for text in texts]
            cells = [one.id, f"{one.problem} {' '.join(one.options)}", heard, seen, one.gold, *said]
            yield f"| {' | '.join(cells)} | {'right' if right else 'wrong'} |"


def figure(runs: Sequence[Run]) -> Path:
    """Draw accuracy by the modality that a question needs: the base, the trained model of each seed, a guess."""
    shown, axis = pyplot.subplots(figsize=(8, 3.4), constrained_layout=True)
    senses = {"audio": "the ear", "both": "both", "image": "the eye", "none": "words alone"}
    width = 0.8 / (len(runs) + 1)
    for place, need in enumerate(senses):
        base = [one for one in metrics.headline(predictions(runs[0], "base")) if one.fields["need"] == need]
        bars = [("base", base)]
        for run in runs:
            after = metrics.headline(predictions(run, "final"))
            bars.append(("after, a bar for each seed", [one for one in after if one.fields["need"] == need]))
        for number, (label, of) in enumerate(bars):
            mean = sum(one.score for one in of) / len(of)
            ends = mean_interval([one.score for one in of], [one.cluster for one in of])
            axis.bar(
                place + (number - len(runs) / 2) * width,
                100 * mean,
                0.9 * width,
                color=COLOURS[min(number, 1)],
                alpha=1 if number == 0 else 0.75,
                yerr=[[100 * max(0.0, mean - ends.low)], [100 * max(0.0, ends.high - mean)]],
                error_kw={"elinewidth": 1, "ecolor": "#4a4a4a"},
                label=label if place == 0 and number < 2 else None,
            )
        guess = 100 * sum(map(metrics.chance, base)) / len(base)
        axis.hlines(guess, place - 0.45, place + 0.45, "black", "dotted", label=None if place else "a guess")
    axis.set_xticks(range(len(senses)), [f"questions for {name}" for name in senses.values()])
    axis.set_ylabel("accuracy, %")
    axis.legend(frameon=False)
    target = Path(__file__).parent / "figures" / "open_media.png"
    shown.savefig(target, dpi=150)
    return target


def main(words: Sequence[str]) -> None:
    asks = words[0] if words and words[0] in ("answers", "figure") else None
    runs = [
        run
        for run in reader.find(map(Path, words[1:] if asks else words))
        if run.summary.get("base") and run.summary.get("final")
    ]
    if asks == "figure":
        print(figure(runs))
        return
    if asks:
        heads = ("id", "question", "recording", "picture", "gold", "base", "after", "")
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        print("\n".join(answers(runs[0])))
        return
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for run in runs:
        print("\n".join(table(run)))
    if len(runs) > 1:
        print("\n| questions | difference of each seed | mean | p |\n|---|---|---|---|")
        print("\n".join(over_runs(runs)))


if __name__ == "__main__":
    main(sys.argv[1:])
