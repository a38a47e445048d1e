"""What a report says about listening and looking: accuracy without each sense, and completions that the reflection
rules find.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from echoink.common.files import read_rows
from echoink.config.schema import Variant
from echoink.evaluation import reflection
from echoink.evaluation.prediction import BASE, FINAL, SAMPLED
from echoink.report.arms import Arm
from echoink.run_folder.folder import PREDICTIONS
from echoink.run_folder.reader import Run

CASES = 2
"""How many cases of each rule are shown."""


def matrix(arms: Sequence[Arm]) -> tuple[list[str], list[tuple[str, list[dict | None]]]] | None:
    """The names of the columns, and a row of cells for the base and for each arm; None where no run has ablations.

    A cell has `accuracy` and its `fall` from full on the same samples, both means over seeds. The first column is
    `full`, the last is the accuracy of a guess; neither has a fall.
    """
    done = [(arm, [run for run in arm.runs if run.finished and (run.result or {}).get("ablations")]) for arm in arms]
    done = [(arm, runs) for arm, runs in done if runs]
    if not done:
        return None
    asked = {name for _, runs in done for run in runs for name in run.result["ablations"]}
    names = [name for name in Variant.__members__ if name in asked]
    rows = []
    bases = [
        run.summary["base"] for _, runs in done for run in runs if (run.summary.get("base") or {}).get("ablations")
    ]
    several = [run for run in done[0][1] if run.summary.get("final")]
    if bases and several and len({run.config["model.path"] for _, runs in done for run in runs}) == 1:
        rows.append(("base", _row(bases, names)))
    rows += [
        (arm.label if len(done) > 1 else "trained" if several else "model", _row([run.result for run in runs], names))
        for arm, runs in done
    ]
    return ["full", *names, "a guess"], rows


def _row(results: Sequence[dict], names: Sequence[str]) -> list[dict | None]:
    def cell(ones: Sequence[dict], of: str = "accuracy") -> dict | None:
        falls = [one["drop"]["difference"] for one in ones if "drop" in one]
        return {"accuracy": fmean(one[of] for one in ones), "fall": fmean(falls) if falls else None} if ones else None

    ablated = [[found["ablations"][name] for found in results if name in found["ablations"]] for name in names]
    return [cell(results), *map(cell, ablated), cell(results, "chance")]


def found_by_rules(run: Run) -> list[dict[str, Any]]:
    """The first right answers of a run's last evaluation that each rule finds, with the rule and why it holds.

    `revised` and `reaffirmed` are signs of `reflection`. `cross-modal`: the answer speaks of both senses, and with the
    sound removed or swapped, and with the picture so too, the question was answered readably but wrongly.
    """
    rows = read_rows(run.folder / PREDICTIONS)
    phase = FINAL if run.summary.get("final") else BASE
    mine = [row for row in rows if row["phase"] == phase and row["draw"] == SAMPLED]
    wrong: dict[str, set[str]] = {}
    for row in mine:
        if not row["correct"] and row["letters"]:
            wrong.setdefault(row["id"], set()).add(row["variant"])
    found: dict[str, list[dict]] = {"revised": [], "reaffirmed": [], "cross-modal": []}
    for row in mine:
        if row["variant"] != Variant.full.name or not row["correct"]:
            continue
        signs = reflection.reflect(row["completion"], row["options"])
        lost = wrong.get(row["id"], set())
        deaf, blind = ({f"no_{kind}", f"swapped_{kind}"} & lost for kind in ("audio", "image"))
        for rule, holds, words in (
            ("revised", signs.revised, f"doubt: {signs.cue!r}, then another answer"),
            ("reaffirmed", signs.reaffirmed, f"doubt: {signs.cue!r}, then the same answer"),
            (
                "cross-modal",
                signs.audio and signs.image and deaf and blind,
                f"speaks of sound and sight, and is wrong with {' and '.join(sorted(deaf | blind))}",
            ),
        ):
            if holds and len(found[rule]) < CASES:
                found[rule].append({**row, "rule": rule, "why": words})
    return [case for cases in found.values() for case in cases]
