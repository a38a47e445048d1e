"""The tables of experiments/open_media.md, from the folders of their runs.

    python experiments/open_media.py outputs/open_media/sweep_<time> [outputs/…]

For each run, by the sense that a question wants and by its form: accuracy of the base and of the trained model (sampled
at temperature 1, intervals clustered by recording and picture), and their difference, paired by question
(`statistics.paired`). In percent.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from echoink.common.files import read_rows
from echoink.common.statistics import mean_interval
from echoink.evaluation import metrics
from echoink.evaluation.prediction import Prediction, of_row
from echoink.run_folder import reader
from echoink.run_folder.folder import PREDICTIONS
from echoink.run_folder.reader import Run

HEADS = ("run", "questions", "n", "a guess", "base", "after", "difference", "p", "right since", "wrong since")


def predictions(run: Run, phase: str) -> list[Prediction]:
    """A phase's answers to the questions as they are."""
    rows = read_rows(run.folder / PREDICTIONS)
    return [of_row(row) for row in rows if row["phase"] == phase and row["variant"] == "full"]


def groups(of: Sequence[Prediction]) -> Iterator[tuple[str, set[str]]]:
    """Names and questions: all, by sense, by form."""
    yield "all", {one.id for one in of}
    for field in ("need", "kind"):
        for value in sorted({one.fields[field] for one in of}):
            yield f"{field} {value}", {one.id for one in of if one.fields[field] == value}


def accuracy(of: Sequence[Prediction]) -> str:
    """Of the sampled answers."""
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
            low, high = change.interval
            difference = f"{100 * change.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            cells += [accuracy(after), difference, f"{change.p_value:.2g}", str(change.gained), str(change.lost)]
        yield f"| {' | '.join(cells)} |"


def main(folders: Sequence[str]) -> None:
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for run in reader.find(map(Path, folders)):
        if run.summary.get("base"):
            print("\n".join(table(run)))


if __name__ == "__main__":
    main(sys.argv[1:])
