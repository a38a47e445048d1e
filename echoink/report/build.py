"""A report of runs, made from their folders alone: report.html (one file, no network) and report.md."""

import logging
import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from echoink.common.console import say
from echoink.common.errors import UserError
from echoink.common.files import read_json, read_rows
from echoink.common.statistics import over_seeds
from echoink.config.paths import conf_dir
from echoink.evaluation import reflection
from echoink.evaluation.tables import VALUES
from echoink.media.previews import encoded, picture, sound
from echoink.report import arms as report_arms
from echoink.report import case_studies, figures
from echoink.report.arms import Arm, Difference
from echoink.run_folder import reader
from echoink.run_folder.reader import Run

EXAMPLES = 4
"""How many samples that got better are shown, and how many that got worse."""

FIGURE = "figures/curves.png"
"""Path of the curves in the report's folder."""

SECONDS = 10
"""A longer sound is cut to this length in a report."""

SIDE = 360
"""Pixels of a picture's longer side in a report."""


def write(folders: Sequence[Path], target: Path) -> list[Path]:
    """Write the report of the runs in or below folders.

    Args:
        folders: runs, sweeps, or folders above them.
        target: the folder that gets report.html, report.md and figures/.

    Returns:
        The files written.

    Raises:
        UserError: a folder is missing or holds no run.
    """
    runs = reader.find(folders)
    figure, drawn = target / FIGURE, target / "figures/.curves.svg"
    if len(runs) > 1:
        has_curves = figures.overlay(runs, figure, drawn)
    else:
        has_curves = figures.curves(runs[0].folder, figure, drawn)
    content = story(runs, [folder for folder in folders if (folder / "sweep.json").is_file()])
    content["figure"] = FIGURE if has_curves else None
    content["curves"] = encoded(drawn.read_bytes()) if has_curves else None
    drawn.unlink(missing_ok=True)
    templates = Environment(
        loader=PackageLoader("echoink.report", "templates"),
        autoescape=lambda name: name is not None and ".html" in name,  # model output is text, never markup
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters |= {each.__name__: each for each in (points, percent, span, fenced, cell, draws)}
    target.mkdir(parents=True, exist_ok=True)
    written = [target / name for name in ("report.html", "report.md")]
    for file in written:
        file.write_text(templates.get_template(f"{file.name}.jinja").render(content), encoding="utf-8")
    return written


def try_to_write(folders: Sequence[Path], target: Path) -> None:
    """Write the report of a job that has ended and say where it is; a failure is logged and does not fail the job."""
    page = None
    try:
        page = write(folders, target)[0]
    except Exception:  # a report is only a view: the numbers are on disk
        logging.getLogger("echoink").exception("no report of %s", target)
    for label, file in (("figure", target / FIGURE), ("report", page)):
        if file and file.is_file():
            say(label, str(file))


def story(runs: Sequence[Run], sweeps: Sequence[Path]) -> dict[str, Any]:
    """The values that the templates show.

    Args:
        runs: those of the report.
        sweeps: folders of sweeps, for their questions and commands.
    """
    arms = report_arms.arms(runs)
    trained = [arm for arm in arms if any(run.finished and run.result for run in arm.runs)]
    reference = report_arms.reference(trained) if trained else None
    found = {id(d.arm): d for d in (report_arms.differences(trained, reference) if reference else [])}
    rows = [_row(arm, found.get(id(arm)), arm is reference) for arm in arms]
    shown = min((reference or arms[0]).runs, key=lambda run: (not run.finished, run.seed))  # the first finished one
    asked = [{"name": folder.name} | read_json(folder / "sweep.json") for folder in sweeps]
    return {
        "title": " and ".join(dict.fromkeys(one["name"] for one in asked or (run.summary for run in runs))),
        "questions": [question for one in asked if (question := one.get("question"))],
        "asked": _asked(shown)
        + ("" if report_arms.same_questions(trained) else "; not all arms answered the same questions"),
        "rows": rows,
        "extra_rewards": list(dict.fromkeys(name for row in rows for name in row["rewards"])),
        "reference": reference.label if reference else "",
        "several": len(arms) > 1,
        "verdicts": [verdict(d, reference) for d in found.values()],
        "paired": [
            (f"{run.folder.name}: " if len(runs) > 1 else "", run.summary["paired"])
            for run in runs
            if run.summary.get("paired") and (len(runs) == 1 or run.summary["task"] == "compare")
        ],
        "settings": _settings(runs),
        "breakdowns": _breakdowns(shown),
        "most_values": VALUES,
        "varied": [report_arms.SHORT.get(key, key) for key in report_arms.differing(runs)],
        "senses": case_studies.matrix(arms),
        "cases": [{**case, "exhibits": exhibits(case["media"])} for case in case_studies.found_by_rules(shown)],
        "rules": reflection.VERSION,
        "examples": _examples(shown),
        "example_run": f"{(reference or arms[0]).label}, seed {shown.seed}" if len(runs) > 1 else "",
        "watched": _watched(shown),
        "commands": list(dict.fromkeys(_command(one["command"]) for one in asked)) or _commands(runs),
        "machine": _machine(runs),
        "unfinished": [_ended(run) for run in runs if not run.finished],
        "repeated": [str(run.folder) for arm in arms for run in arm.repeated],
    }


def _ended(run: Run) -> str:
    """A run that did not finish: its folder, its status and why."""
    error = run.summary.get("error")
    return f"{run.folder.name}: {run.summary['status']}" + (f" ({error})" if error else "")


def _asked(run: Run) -> str:
    """What an accuracy measures: "one sampled answer to each of 1,000 samples of valid"."""
    if not run.result:
        return ""
    split = run.config.get("eval.split", "valid")
    guess = f"; a guess is right in {percent(run.result['chance'])} %" if run.result.get("chance") else ""
    groups = run.result.get("clusters")
    media = f", in {groups:,} groups that share media; intervals count groups" if groups else ""
    drawn = run.result.get("draw", "sampled")
    return f"one {drawn} answer to each of {run.result['n']:,} samples of {split}{media}{guess}"


def _row(arm: Arm, difference: Difference | None, is_reference: bool) -> dict[str, Any]:
    """An arm's row of the table; `rewards` has the means of rewards other than accuracy and format, by name."""
    done = [run for run in arm.runs if run.finished and run.result]
    by_seed = arm.of_seed("accuracy")
    final = over_seeds(list(by_seed.values())) if by_seed else None
    interval = final.interval if final else None
    if len(done) == 1:
        interval = tuple(done[0].result["interval"])
    if interval:  # Student's t may leave [0, 1]
        interval = (max(0.0, interval[0]), min(1.0, interval[1]))
    base = [run.summary["base"]["accuracy"] for run in done if run.summary.get("base")]
    lengths = [run.lengths for run in done if run.lengths]
    return {
        "label": arm.label,
        "seeds": ", ".join(str(seed) for seed in sorted(run.seed for run in arm.runs)),
        "base": mean(base),
        "final": final and final.mean,
        "interval": interval,
        "per_seed": " / ".join(f"{100 * by_seed[seed]:.1f}" for seed in sorted(by_seed)),
        "greedy": mean(arm.of_seed("greedy_accuracy").values()),
        "format": mean(arm.of_seed("format").values()),
        "rewards": _extra_rewards(done),
        "lengths": (mean(x[0] for x in lengths), mean(x[1] for x in lengths)) if lengths else None,
        "difference": difference,
        "is_reference": is_reference,
    }


def mean(values: Iterable[float]) -> float | None:
    """The mean; None where there are no values."""
    values = list(values)
    return sum(values) / len(values) if values else None


def _breakdowns(run: Run) -> list[dict[str, Any]]:
    """Accuracy by every field of the samples: for each value n, accuracy and interval, and the base's accuracy."""
    base = (run.summary.get("base") or {}).get("by", {})
    final = (run.result or {}).get("by", {})
    return [
        {
            "field": field,
            "rows": [
                {**group, "value": value or "none", "base": base.get(field, {}).get(value, {}).get("accuracy")}
                for value, group in groups.items()
            ],
        }
        for field, groups in final.items()
    ]


def _extra_rewards(runs: Sequence[Run]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in runs:
        own = {"custom": run.result["custom"]} if run.result.get("custom") is not None else {}
        for name, value in {**own, **run.result.get("rewards", {})}.items():
            found.setdefault(name, []).append(value)
    return {name: mean(values) for name, values in found.items()}


def verdict(found: Difference, reference: Arm) -> str:
    """What a difference shows, in one sentence.

    Example: "β 0.04: no difference shown (+0.3 points, p = 0.8 after Holm, 3 seeds); at 95 % none is larger than 1.9
    points."
    """
    if not found.same_questions:
        return f"{found.arm.label}: other questions were evaluated than with {reference.label}: not comparable."
    if found.seeds is None:
        return f"{found.arm.label}: fewer than two seeds shared with {reference.label}, so nothing can be said."
    n, change = len(found.seeds.values), 100 * found.seeds.mean
    if found.seeds.interval is None:
        return f"{found.arm.label}: {change:+.1f} points in each of {n} seeds; equal differences give no interval."
    low, high = (100 * end for end in found.seeds.interval)
    p = f"p = {found.adjusted_p:.2g} after Holm"
    if found.adjusted_p < 0.05:
        way = "better" if change > 0 else "worse"
        return f"{found.arm.label}: {abs(change):.1f} points {way} [{low:+.1f}, {high:+.1f}], {p} ({n} seeds)."
    if low > 0 or high < 0:
        return f"{found.arm.label}: undecided: {change:+.1f} points [{low:+.1f}, {high:+.1f}], but {p} ({n} seeds)."
    largest = max(abs(low), abs(high))
    return (
        f"{found.arm.label}: no difference shown ({change:+.1f} points, {p}, {n} seeds); "
        f"at 95 % none is larger than {largest:.1f} points."
    )


def _settings(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """The settings of all runs that differ from the defaults: key, value, default."""
    varied, defaults = {*report_arms.differing(runs), "seed"}, reader.defaults()
    return [
        (key, str(value), str(defaults[key]))
        for key, value in runs[0].config.items()
        if key in defaults and key not in varied and key != "resume_allow" and str(value) != str(defaults[key])
        if len({str(run.config.get(key)) for run in runs}) == 1
    ]


def _examples(run: Run) -> list[dict]:
    flips = read_rows(run.folder / "flips.jsonl")
    chosen = []
    for direction in ("gained", "lost"):
        rows = [row for row in flips if row["direction"] == direction]
        samples = [{**row, "exhibits": exhibits(row.get("media", {}))} for row in _varied(rows)[:EXAMPLES]]
        chosen.append({"direction": direction, "count": len(rows), "samples": samples})
    return chosen if flips else []


def _varied(rows: Sequence[dict]) -> list[dict]:
    """The rows, with one row of each question first."""
    first = {row["problem"]: row["id"] for row in reversed(rows)}
    return sorted(rows, key=lambda row: first[row["problem"]] != row["id"])


def exhibits(media: dict[str, str]) -> list[dict[str, str]]:
    """A sample's media for a page: kind, path, and the data or else words to show."""
    shown = []
    for kind, place in media.items():
        data = words = ""
        try:
            if kind == "image":
                data = "data:image/jpeg;base64," + encoded(picture(Path(place), SIDE))
            elif kind == "audio":
                data = "data:audio/wav;base64," + encoded(sound(Path(place), SECONDS))
            else:
                words = place
        except UserError as error:
            words = error.problem
        shown.append({"kind": kind, "data": data, "words": words, "place": place})
    return shown


def _watched(run: Run) -> list[dict]:
    """The same prompts over training: question, media, and an answer per step."""
    prompts: dict[str, dict] = {}
    for row in read_rows(run.folder / "watched.jsonl"):
        prompt = prompts.setdefault(row["id"], {**row, "exhibits": exhibits(row["media"]), "answers": []})
        prompt["answers"].append(row)
    for prompt in prompts.values():  # keep the first, the last, and up to four where the answer turned
        answers = prompt["answers"]
        turns = [i for i in range(1, len(answers)) if answers[i]["correct"] != answers[i - 1]["correct"]]
        kept = sorted({0, len(answers) - 1, *turns[:4]})
        prompt["shown"] = [answers[i] for i in kept]
    return list(prompts.values())


def _command(words: Sequence[str]) -> str:
    return "python " + shlex.join(words)


def _commands(runs: Sequence[Run]) -> list[str]:
    found = []
    for run in runs[:20]:
        file = run.folder / "environment.json"
        if file.is_file():
            words = read_json(file)["command"]
            kept = [word for word in words[1:] if not word.startswith(("hydra.run.dir", "tracking."))]
            found.append(_command(["-m", "echoink.train", *kept]))
    return list(dict.fromkeys(found))


def _machine(runs: Sequence[Run]) -> list[str]:
    """Commits, platforms and library versions of the runs."""
    files = [run.folder / "environment.json" for run in runs]
    found = [read_json(file) for file in files if file.is_file()]
    lines = []
    for name, read in (
        ("commit", lambda e: (e["commit"] or "unknown")[:7] + (" with changes" if e["uncommitted_changes"] else "")),
        ("machine", lambda e: f"{e['platform']}, {e['processors']} processors, Python {e['python']}"),
        ("device", lambda e: e.get("device") or "not recorded"),
        ("versions", lambda e: ", ".join(f"{k} {v}" for k, v in e["versions"].items() if v)),
    ):
        if texts := dict.fromkeys(read(one) for one in found):
            lines.append(f"{name}: {'; '.join(texts)}")
    return lines


def percent(value: float | None) -> str:
    """0.8577 → "85.8"."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """0.0123 → "+1.2"."""
    return "–" if value is None else f"{100 * value:+.1f}"


def draws(paired: dict[str, Any]) -> str:
    """A note where a difference is of several draws, while the table beside it shows one answer per sample."""
    k = paired.get("draws", 1)
    return f" (means of {k} draws; the table has the first)" if k > 1 else ""


def span(bounds: Sequence[float] | None, sign: bool = False) -> str:
    """[0.842, 0.873] → "[84.2, 87.3]"."""
    return "" if bounds is None else "[" + ", ".join(f"{100 * b:{'+' if sign else ''}.1f}" for b in bounds) + "]"


def cell(text: str) -> str:
    """Text for a cell or a line of Markdown: one line, without markup."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\|<>*`])", r"\\\1", line).replace("](", "]\\(")


def fenced(text: str) -> str:
    """Text as a Markdown code block whose fence the text cannot close."""
    fence = "~" * max(3, 1 + max(map(len, re.findall("~+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def question(experiment: str | None) -> str:
    """An experiment's question, from the comment at the top of its file; empty where there is none."""
    file = conf_dir() / "experiment" / f"{experiment}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if experiment and file.is_file() else []
    return " ".join(line[2:] for line in takewhile(lambda line: line.startswith("# "), lines[1:]))
