"""A sweep: every job in a process of its own, one parent run in MLflow, true statuses, a table at the end.

Hydra's launchers choose when and where a job starts; the job itself is `python -m echoink.train` again, so that
accelerate's state, GPU memory and MLflow never leak from one job to the next, and a crash stops one job only.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from echoink.compose import quoted
from echoink.config import Config

SWEPT = "ECHOINK_SWEPT"
"""Environment variable by which a sweep tells its jobs which keys differ between them."""

_NOT_PART_OF_A_NAME = ("hydra", "tracking.", "dataset.path", "checkpoint")


def swept_keys() -> list[str]:
    """The keys that differ between the jobs of this sweep; none outside a sweep."""
    return os.environ.get(SWEPT, "").split()


def run_name(overrides: list[str]) -> str:
    """What the overrides change, as the name of a run: "reward.lambda_fmt=0.5, seed=1"; in a sweep, what differs."""
    keys = swept_keys()
    told = [
        override
        for override in overrides
        if (override.partition("=")[0] in keys if keys else not override.startswith(_NOT_PART_OF_A_NAME))
    ]
    return ", ".join(told)[:200]


def run_job(overrides: list[str], folder: Path, flags: list[str]) -> float | None:
    """Run one job in its own process, its output on ours; a failure is left in the job's folder for the table.

    Args:
        overrides: what the job is.
        folder: its folder.
        flags: Hydra's flags, --config-dir.

    Returns:
        The job's final accuracy, None where it failed.
    """
    command = [sys.executable, "-m", "echoink.train", *flags, *overrides, f"hydra.run.dir={quoted(folder)}"]
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):  # Ctrl-C has reached the job as well
            process.terminate()
        _wait(process)
        raise
    summary = read_summary(folder)
    if code != 0 and summary["status"] in ("running", "missing"):
        status = "killed" if code in (-signal.SIGKILL, -signal.SIGTERM) else "failed"
        summary |= {"status": status, "error": f"the process ended with {code}"}
        (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return (summary.get("final") or summary.get("base") or {}).get("accuracy")


def _wait(process: subprocess.Popen) -> None:
    """Let a job that was told to stop settle its own status; insist after half a minute."""
    for insist in (process.terminate, process.kill):
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            insist()


def read_summary(folder: Path) -> dict:
    """A job's `summary.json`; its status is `missing` where there is none."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {"status": "missing"}


def run(launch: Callable[[], None], config: Config, folder: Path, jobs: int, overrides: list[str]) -> int:
    """Launch all jobs through Hydra under one parent run, settle every status, print the table.

    Args:
        launch: Hydra's entry point.
        config: of the first job, for the tracking settings.
        folder: the sweep's folder.
        jobs: how many jobs there will be (a search decides later: at least 1).
        overrides: the command line's.

    Returns:
        Exit status: 0 where every job finished.
    """
    from echoink import report, tracking
    from echoink.console import say, say_mlflow

    say("EchoInk", f"sweep of {jobs} jobs · {folder}")
    name = "sweep " + (run_name(overrides) or config.name)
    os.environ[SWEPT] = " ".join(key for key, _, value in (o.partition("=") for o in overrides) if _is_swept(value))
    uri = tracking.absolute_uri(config.tracking.uri, Path.cwd()) if config.tracking.enabled else None
    swept = {key.lstrip("+"): value for key, _, value in (o.partition("=") for o in overrides)}
    with tracking.Tracker(uri, config.tracking.experiment, name, swept, {"folder": str(folder.resolve())}) as parent:
        if parent.run_id:
            os.environ[tracking.PARENT] = f"{parent.experiment_id} {parent.run_id}"
        try:
            launch()
        finally:
            found = sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
            summaries = {path: read_summary(path) for path in found}
            parent.settle_children({s["mlflow"]["run_id"]: s["status"] for s in summaries.values() if s.get("mlflow")})
            _table(summaries)
            if figure := report.curves({report.label(path): path for path in found}, folder / "figures" / "curves.png"):
                parent.artifact(figure, "figures")
                say("figure", str(figure))
        bad = [path for path, summary in summaries.items() if summary["status"] != "finished"]
        if bad or not summaries:
            first = summaries[bad[0]] if bad else {}
            raise SystemExit(_failed(bad, first))
    if parent.run_id:
        runs = [summary["mlflow"]["run_id"] for summary in summaries.values() if summary.get("mlflow")]
        say_mlflow(parent.uri, tracking.compare_page(runs, parent.experiment_id))
    return 0


def _is_swept(value: str) -> bool:
    if value.startswith(("[", "{", "'", '"')):
        return False
    return "," in value or value.startswith(("range(", "choice(", "interval(", "glob("))


def _failed(bad: list[Path], first: dict) -> int:
    if not bad:
        print("\nerror: no job was run", file=sys.stderr)
    else:
        print(
            f"\nerror: {len(bad)} jobs did not finish; the first: {first.get('error')}\n  → {bad[0] / 'train.log'}",
            file=sys.stderr,
        )
    return 1


def _table(summaries: dict[Path, dict]) -> None:
    from rich.table import Table

    from echoink import report
    from echoink.console import console, interval, percent

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "overrides", "status", "base", "final", "95 % interval", "format", "tokens", "seconds"):
        table.add_column(column)
    for path, summary in summaries.items():
        base, final = summary.get("base") or {}, summary.get("final") or {}
        table.add_row(
            path.name,
            report.label(path),
            summary["status"],
            percent(base.get("accuracy")),
            percent(final.get("accuracy")),
            interval(final["interval"]) if final else "–",
            percent(final.get("format")),
            f"{base['mean_tokens']:.0f} → {final['mean_tokens']:.0f}" if base and final else "–",
            f"{summary.get('seconds') or 0:.0f}",
        )
    console.print(table)
