"""A sweep: every job in a process of its own, one parent run in MLflow, true statuses, a table at the end.

Hydra's launchers choose when and where a job starts (one after the other, `hydra/launcher=joblib` side by side,
`hydra/launcher=submitit_slurm` on a cluster), its sweepers which jobs there are (`hydra/sweeper=optuna` searches). The
job itself is `python -m echoink.train` again, so that accelerate's state, GPU memory and MLflow never leak from one job
to the next, and a crash stops one job only.

    sweep_<time>/
      sweep.json        what was asked for, and how it ended
      tracking.json     its parent run in MLflow
      0/ 1/ …           jobs, each a run's folder; output.log has a job's screen where several run at once
      unfinished/       what an earlier attempt at a job left, after sweep.resume
      figures/, report.html, report.md
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from echoink.common.errors import UserError
from echoink.common.files import as_json, write_atomic
from echoink.config.compose import Composed
from echoink.run_folder import reader
from echoink.run_folder.environment import environment, git, process_is_gone
from echoink.run_folder.folder import read_summary, status_of

if TYPE_CHECKING:
    from echoink.tracking.logger import Tracker
from echoink.pipeline.sweep_job import BELOW, SWEPT, changed_overrides, common_folders, run_name


def settled(overrides: list[str]) -> tuple[list[str], Path | None]:
    """The overrides of a sweep, those of the one that `sweep.resume=` names where it is given, and its folder.

    Raises:
        UserError: it is no sweep's folder, or other overrides than its own are given beside.
    """
    given = [override for override in overrides if override.startswith("sweep.resume=")]
    folder = Path(given[-1].partition("=")[2].strip("'\"")) if given else None
    if folder is None or str(folder) == "null":
        return overrides, None
    if not (folder / "sweep.json").is_file():
        raise UserError(f"sweep.resume={folder} is no folder of a sweep", "it has a sweep.json")
    before = json.loads((folder / "sweep.json").read_text())["overrides"]
    others = [
        o for o in overrides if o not in before and not o.startswith(("sweep.resume=", "hydra/launcher", "hydra."))
    ]
    if others:
        raise UserError(
            f"sweep.resume={folder} goes on with its own overrides, not with {', '.join(others)}", "start another sweep"
        )
    if any(o.startswith("hydra/sweeper=") for o in before):
        raise UserError("a search cannot be taken up", "start another one")
    return [*before, *(o for o in overrides if o.startswith("hydra") and o not in before)], folder


def _keys(jobs: Sequence[Composed], overrides: Sequence[str]) -> list[str]:
    """The keys that differ between jobs; of a search, those that the command line leaves open."""
    told = [dict(o.partition("=")[::2] for o in job.overrides) for job in jobs]
    names = dict.fromkeys(key for job in told for key in job)
    open_keys = [o.partition("=")[0] for o in overrides if _is_swept(o.partition("=")[2])]
    return list(dict.fromkeys([*(n for n in names if len({job.get(n) for job in told}) > 1), *open_keys]))


def _is_swept(value: str) -> bool:
    if value.startswith(("[", "{", "'", '"')):
        return False
    return "," in value or value.startswith(("range(", "choice(", "interval(", "glob("))


def run(
    launch: Callable[[], None], jobs: Sequence[Composed], folder: Path, overrides: list[str], flags: list[str]
) -> int:
    """Launch all jobs through Hydra under one parent run, settle every status, print the table, write the report.

    Args:
        launch: Hydra's entry point.
        jobs: composed (of a search only the first is known).
        folder: the sweep's.
        overrides: the command line's.
        flags: the command line's other words, such as --multirun.

    Returns:
        Exit status: 0 where every job finished.
    """
    from echoink.common.console import SERVER, say, say_mlflow
    from echoink.report.build import question
    from echoink.tracking import client
    from echoink.tracking.logger import Tracker

    config, keys = jobs[0].config, _keys(jobs, overrides)
    say("EchoInk", f"sweep of {len(jobs)} jobs · {folder}" if len(jobs) > 1 else f"sweep · {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[SWEPT] = " ".join(keys)
    os.environ[BELOW] = json.dumps(common_folders(keys, [job.overrides for job in jobs]))
    chosen = [one.partition("=")[2] for one in overrides if one.startswith("experiment=")]
    definition = {
        "status": "running",
        "name": config.name,
        "overrides": overrides,
        "swept": keys,
        "jobs": len(jobs),
        "question": question(chosen[-1] if chosen else None),
        "command": ["-m", "echoink.train", *flags, *overrides],
        **{key: environment()[key] for key in ("host", "process", "process_started", *git())},
    }
    _define(folder, definition)
    record = client.Record(
        experiment=config.tracking.experiment,
        name=f"sweep {config.name}" + (f": {', '.join(keys)}" if keys else ""),
        params={"swept": " ".join(keys), "jobs": len(jobs), "overrides": " ".join(overrides)},
        tags={"folder": str(folder.resolve()), "commit": definition["commit"] or "none", "experiment": config.name},
        parent=None,
    ).kept(folder)
    uri = client.absolute_uri(config.tracking.uri, Path.cwd()) if config.tracking.enabled else None
    os.environ[client.PARENT] = record.id
    with Tracker(uri, record, folder) as parent:
        try:
            launch()
        except BaseException as error:
            _settle(folder, definition, parent, status_of(error).lower())
            raise
        bad = _settle(folder, definition, parent, None)
        if bad:
            raise SystemExit(bad)
    if parent.run_id:
        ids = [id for path in reader.jobs(folder) if (id := _mlflow_id(read_summary(path)))]
        say_mlflow(parent.uri, client.compare_page(ids, parent.experiment_id))
        say("", f"or its curves: {SERVER}{client.curves_page(ids, parent.experiment_id)}")
    return 0


def _define(folder: Path, definition: dict) -> None:
    write_atomic(folder / "sweep.json", as_json(definition))


def _mlflow_id(summary: dict) -> str | None:
    return (summary.get("mlflow") or {}).get("run_id")


def _settle(folder: Path, definition: dict, parent: "Tracker", status: str | None) -> int:
    """Close what is open, print the table, write figures and report.

    Returns:
        Exit status: 0 where every job finished.
    """
    from echoink.common.console import say
    from echoink.report import figures
    from echoink.report.build import try_to_write

    places, until = reader.jobs(folder), time.monotonic() + 30
    summaries = {path: _closed(path, until) for path in places}
    for path, summary in summaries.items():
        if summary.get("shared") and not _mlflow_id(summary):
            parent.adopt(path)
            summaries[path] = read_summary(path)
    parent.settle_children({id: s["status"] for s in summaries.values() if (id := _mlflow_id(s))})
    bad = [path for path, summary in summaries.items() if summary["status"] != "finished"]
    _define(folder, definition | {"status": status or ("failed" if bad or not summaries else "finished")})
    runs = [run for path in places if (run := reader.read(path))]
    _table(summaries, parent)
    if figure := figures.overlay(runs, folder / "figures" / "curves.png"):
        say("figure", str(figure))
    if any(run.finished and run.result for run in runs) and (page := try_to_write([folder], folder)):
        say("report", str(page))
    return _failed(bad, summaries, folder) if bad or not summaries else 0


def _closed(path: Path, until: float) -> dict:
    """A job's summary, its process waited for; one that was killed before it could say so is called killed.

    Of a job on another machine nothing is known: what it says stands.
    """
    while (summary := read_summary(path))["status"] == "running" and time.monotonic() < until:
        if process_is_gone(path):
            summary = read_summary(path)
            break
        time.sleep(0.2)
    if summary["status"] == "running" and process_is_gone(path):
        summary |= {"status": "killed", "error": "its process ended without a word"}
        write_atomic(path / "summary.json", as_json(summary))
    return summary


def _failed(bad: list[Path], summaries: dict[Path, dict], folder: Path) -> int:
    if not bad:
        print("\nerror: no job was run", file=sys.stderr)
        return 1
    print(f"\nerror: {len(bad)} of {len(summaries)} jobs did not finish", file=sys.stderr)
    for path in bad[:5]:
        log = next((path / name for name in ("train.log", "output.log") if (path / name).is_file()), path)
        print(f"  job {path.name}: {summaries[path].get('error')}\n  → {log}", file=sys.stderr)
    if not (folder / "optimization_results.yaml").is_file():
        print(f"  → again, only these: --multirun sweep.resume={folder}", file=sys.stderr)
    return 1


def _table(summaries: dict[Path, dict], parent: "Tracker") -> None:
    from rich.markup import escape
    from rich.table import Table

    from echoink.common.console import SERVER, console, interval, percent

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "overrides", "status", "base", "final", "95 % interval", "format", "tokens", "s", "MLflow"):
        table.add_column(column, no_wrap=column != "overrides")
    for path, summary in summaries.items():
        base, final = summary.get("base") or {}, summary.get("final") or {}
        run, shown = reader.read(path), final or base
        lengths = run.lengths if run else None
        id = _mlflow_id(summary)
        page = f"{SERVER}/#/experiments/{parent.experiment_id}/runs/{id}"
        table.add_row(
            path.name,
            escape(run_name(changed_overrides(path))),
            summary["status"] + (" (shared)" if summary.get("shared") else ""),
            percent(base.get("accuracy")),
            percent(final.get("accuracy")),
            interval(shown["interval"]) if shown else "–",
            percent(shown.get("format")),
            f"{lengths[0]:.0f} → {lengths[1]:.0f}" if lengths else "–",
            f"{summary.get('seconds') or 0:.0f}",
            f"[link={page}]{id[:8]}[/link]" if id else "–",
        )
    console.print(table)
