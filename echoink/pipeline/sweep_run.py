"""Runs a sweep: every job in its own process, one parent run in MLflow, correct statuses, a table at the end.

Hydra's launchers choose when and where a job starts (one after the other; side by side with `hydra/launcher=joblib`; on
a cluster with `hydra/launcher=submitit_slurm`), its sweepers choose the jobs (`hydra/sweeper=optuna` searches). A job
is `python -m echoink.train` again, so that accelerate's state, GPU memory and MLflow never leak from one job to the
next, and a crash stops only one job.

    sweep_<time>/
      sweep.json        the command and overrides, and how the sweep ended
      tracking.json     its parent run in MLflow
      0/ 1/ …           jobs, each a run's folder; output.log has a job's output if several run at once
      unfinished/       files of earlier attempts at jobs, after sweep.resume
      figures/, report.html, report.md
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.markup import escape
from rich.table import Table

from echoink.common.console import console, interval, percent, say, say_mlflow, server_of
from echoink.common.files import as_json, write_atomic
from echoink.config.compose import SWEPT, Composed
from echoink.config.overrides import quoted
from echoink.pipeline.sweep_job import BELOW, common_folders, run_name
from echoink.planning import preflight
from echoink.report import figures
from echoink.report.build import FIGURE, question, try_to_write
from echoink.run_folder import reader
from echoink.run_folder.environment import environment, git, process_is_gone
from echoink.run_folder.folder import mlflow_id, read_summary, status_of
from echoink.tracking import client
from echoink.tracking.client import Record
from echoink.tracking.logger import Tracker


def _keys(jobs: Sequence[Composed], overrides: Sequence[str]) -> list[str]:
    """The keys that differ between jobs; in a search, those that the command line leaves open."""
    changes = [dict(o.partition("=")[::2] for o in job.overrides) for job in jobs]
    names = dict.fromkeys(key for job in changes for key in job)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    open_keys = [override.get_key_element() for override in parsed if override.is_sweep_override()]
    differ = [name for name in names if len({job.get(name) for job in changes}) > 1]
    return list(dict.fromkeys([*differ, *open_keys, *jobs[0].grid]))


def run(
    launch: Callable[[], None],
    jobs: Sequence[Composed],
    folder: Path,
    overrides: list[str],
    flags: list[str],
    config_dir: str | None = None,
) -> None:
    """Launch all jobs through Hydra under one parent run, settle every status, print the table, write the report.

    Args:
        launch: Hydra's entry point.
        jobs: the composed jobs (of a search only the first is known).
        folder: the sweep's.
        overrides: the command line's.
        flags: the command line's other words, such as --multirun.
        config_dir: the user's configuration folder, which is stored for sweep.resume.

    Raises:
        SystemExit: a job did not finish; the exit status is 1.
        UserError: the store cannot be used.
    """
    config, keys = jobs[0].config, _keys(jobs, overrides)
    what = "search" if jobs[0].is_search else f"sweep of {len(jobs)} jobs" if len(jobs) > 1 else "sweep"
    say("EchoInk", f"{what} · {folder}")
    uri = client.absolute_uri(config.tracking.uri, Path.cwd()) if config.tracking.enabled else None
    if uri:
        preflight.check_store(uri, config.tracking.experiment)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[SWEPT] = " ".join(keys)
    os.environ[BELOW] = json.dumps(common_folders(keys, [job.overrides for job in jobs]))
    definition = {
        "status": "running",
        "name": config.name,
        "overrides": overrides,
        "swept": keys,
        "jobs": len(jobs),
        "search": jobs[0].is_search,
        "question": question(dict(one.partition("=")[::2] for one in overrides).get("experiment")),
        "command": ["-m", "echoink.train", *flags, *overrides],
        "config_dir": str(Path(config_dir).resolve()) if config_dir else None,
        **{key: environment()[key] for key in ("host", "process", "process_started", *git())},
    }
    write_atomic(folder / "sweep.json", as_json(definition))
    record = _record(definition, config.tracking.experiment, folder)
    os.environ[client.PARENT] = record.id
    with Tracker(uri, record, folder) as parent:
        try:
            launch()
        except BaseException as error:
            _settle(folder, definition, parent, status_of(error).lower())
            raise
        if bad := _settle(folder, definition, parent, None):
            raise SystemExit(bad)  # the tracker takes the parent's status from it
    if parent.run_id:
        ids = [id for path in reader.jobs(folder) if (id := mlflow_id(read_summary(path)))]
        say_mlflow(parent.uri, client.curves_page(ids, parent.experiment_id))
        page = client.compare_page(ids, parent.experiment_id)
        say("", f"or all parameters and metrics: {server_of(parent.uri)}{page}")


def _record(definition: dict, experiment: str, folder: Path) -> Record:
    """The record of the sweep's parent run in MLflow, stored in the folder."""
    name, keys, overrides = definition["name"], definition["swept"], definition["overrides"]
    return Record(
        experiment=experiment,
        name=f"sweep {name}" + (f": {', '.join(keys)}" if keys else ""),
        params={"swept": " ".join(keys), "overrides": " ".join(overrides)}
        | ({} if definition["search"] else {"jobs": definition["jobs"]}),
        tags={"folder": str(folder.resolve()), "commit": definition["commit"] or "none", "experiment": name},
        parent=None,
    ).kept(folder)


def _settle(folder: Path, definition: dict, parent: Tracker, status: str | None) -> int:
    """Close runs that are still open, print the table, write figures and report.

    Returns:
        Exit status: 0 if every job finished, else 1.
    """
    places, until = reader.jobs(folder), time.monotonic() + 30
    summaries = {path: _closed(path, until) for path in places}
    for path, summary in summaries.items():
        if summary.get("shared") and not mlflow_id(summary):
            parent.adopt(path)
            summaries[path] = read_summary(path)
    parent.settle_children({id: s["status"] for s in summaries.values() if (id := mlflow_id(s))})
    bad = [path for path, summary in summaries.items() if summary["status"] != "finished"]
    ended = definition | {"status": status or ("failed" if bad or not summaries else "finished")}
    write_atomic(folder / "sweep.json", as_json(ended))
    runs = [run for path in places if (run := reader.read(path))]
    _table(summaries, parent)
    if any(run.finished and run.result for run in runs):
        try_to_write([folder], folder)
    elif figure := figures.overlay(runs, folder / FIGURE):
        say("figure", str(figure))
    stopped = status is not None and len(summaries) < definition["jobs"]
    return _failed(bad, summaries, folder, definition) if bad or not summaries or stopped else 0


def _closed(path: Path, until: float) -> dict:
    """Wait for a job's process and return its summary; a job that was killed without writing its end is marked killed.

    A job on another machine cannot be checked: its status stays.
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


def _failed(bad: list[Path], summaries: dict[Path, dict], folder: Path, definition: dict) -> int:
    left = max(0, definition["jobs"] - len(summaries))  # jobs that were never started; unknown for a search
    if not summaries:
        print("\nerror: no job was run", file=sys.stderr)
        return 1
    never = f", {left} of them not begun" if left else ""
    print(f"\nerror: {len(bad) + left} of {len(summaries) + left} jobs did not finish{never}", file=sys.stderr)
    for path in bad[:5]:
        log = next((path / name for name in ("train.log", "output.log") if (path / name).is_file()), path)
        running = "it still runs, here or on another machine" if summaries[path]["status"] == "running" else None
        why = summaries[path].get("error") or running or "no reason is known"
        print(f"  job {path.name}: {summaries[path]['status']}, {why}\n  → {log}", file=sys.stderr)
    if not definition["search"]:
        again = f"python -m echoink.train --multirun {shlex.quote(f'sweep.resume={quoted(folder)}')}"
        print(f"  → run only these: {again}", file=sys.stderr)
    return 1


def _table(summaries: dict[Path, dict], parent: Tracker) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "overrides", "status", "base", "final", "95 % interval", "format", "tokens", "s", "MLflow"):
        table.add_column(column, no_wrap=column != "overrides")
    for path, summary in summaries.items():
        base, final = summary.get("base") or {}, summary.get("final") or {}
        run = reader.read(path)
        lengths = run.lengths if run else None
        id = mlflow_id(summary)
        page = f"{server_of(parent.uri)}{client.run_page(id, parent.experiment_id)}" if id and parent.uri else ""
        table.add_row(
            path.name,
            escape(run_name(reader.overrides(path))),
            summary["status"] + (" (shared)" if summary.get("shared") else ""),
            percent(base.get("accuracy")),
            percent(final.get("accuracy")),
            interval(final["interval"]) if final else "–",
            percent(final.get("format")),
            f"{lengths[0]:.0f} → {lengths[1]:.0f}" if lengths else "–",
            f"{summary.get('seconds') or 0:.0f}",
            f"[link={page}]{id[:8]}[/link]" if id else "–",
        )
    console.print(table)
