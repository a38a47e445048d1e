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
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from echoink import checkpoint, results, resume, tracking
from echoink.compose import Composed, quoted
from echoink.config import Config, Task, to_yaml
from echoink.errors import UserError
from echoink.results import Run

if TYPE_CHECKING:
    from echoink.tracker import Tracker

SWEPT = "ECHOINK_SWEPT"
"""Environment variable by which a sweep tells its jobs which keys differ between them."""

PATIENCE = 300
"""Seconds that a job which was told to stop may take."""

_NOT_PART_OF_A_NAME = ("hydra", "resume", "tracking.", "dataset.path", "checkpoint", "sweep.", "eval.cache")


def swept_keys() -> list[str]:
    """The keys that differ between the jobs of this sweep; none outside a sweep."""
    return os.environ.get(SWEPT, "").split()


def run_name(overrides: Sequence[str]) -> str:
    """What the overrides change, as the name of a run: "reward.lambda_fmt=0.5, seed=1"; in a sweep, what differs."""
    keys = swept_keys()
    return ", ".join(one for one in told(overrides) if not keys or one.partition("=")[0] in keys)[:200]


def told(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what a run is, not where its files go."""
    return [override for override in overrides if not override.startswith(_NOT_PART_OF_A_NAME)]


def side_by_side(settings) -> int:
    """How many jobs Hydra's launcher runs at once on this machine; a job on a cluster has its own."""
    choice = settings.runtime.choices["hydra/launcher"]
    if choice not in ("joblib", "submitit_local"):
        return 1
    cores = os.cpu_count() or 1
    wanted = settings.launcher.get("n_jobs") or cores
    return max(2, min(cores if wanted < 0 else wanted, cores))


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


# --- one job ---


def run_job(config: Config, overrides: list[str], folder: Path, flags: list[str], side_by_side: int) -> float:
    """Run one job in its own process; a failure is left in the job's folder for the table.

    A job that has finished already, here or (`sweep.share`) elsewhere, is not run again; one that left a checkpoint
    goes on from it.

    Args:
        config: the job's.
        overrides: what the job is.
        folder: its folder.
        flags: Hydra's flags, --config-dir.
        side_by_side: how many jobs run at once; 1 leaves the screen to the job.

    Returns:
        The job's final accuracy: the objective of a search. NaN where it failed.
    """
    summary = tracking.read_summary(folder)
    wanted = results.method(to_yaml(config))
    before = results.read(folder)
    same = before is not None and before.config == wanted
    if same and resume.has_ended(summary):
        return _done(folder, "finished before")
    if summary["status"] == "running" and not tracking.process_is_gone(folder):
        raise UserError(f"job {folder.name} is still running", f"wait for it; if it is not, delete {folder}")
    elsewhere = shared(config, Path(config.sweep.share), folder) if config.sweep.share else None
    goes_on = same and not elsewhere and config.task is Task.train and bool(checkpoint.steps(folder))
    goes_on &= checkpoint.can_go_on(folder)
    if not goes_on and (config.task is Task.train or elsewhere or summary["status"] == "finished"):
        _set_aside(folder)
    if elsewhere:
        _copy(elsewhere, folder)
        return _done(folder, f"from {elsewhere.folder}{_other_code(elsewhere)}")
    together = config.trainer.processes if config.task is Task.train else 1
    if together > 1 and side_by_side > 1:
        raise UserError(
            f"jobs of {together} processes each do not run side by side", "leave hydra/launcher out, or one at a time"
        )
    launcher = (
        ["torch.distributed.run", "--standalone", "--nproc_per_node", str(together), "-m"] if together > 1 else []
    )
    command = [sys.executable, "-m", *launcher, "echoink.train", *flags, *overrides]
    command += [f"hydra.run.dir={quoted(folder)}"]
    command += ["resume=auto"] if goes_on else []
    alone = side_by_side == 1
    with (
        nullcontext() if alone else open(folder / "output.log", "a") as output,
        _device(folder.parent, alone) as device,
    ):
        environment = {**os.environ, **device}
        if not alone:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // side_by_side)))
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, preexec_fn=_end_with_parent)
        try:
            code = process.wait()
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):  # Ctrl-C has reached the job as well
                process.terminate()
            _wait(process)
            raise
    summary = tracking.read_summary(folder)
    if code != 0 and summary["status"] in ("running", "missing"):
        status = "killed" if code in (-signal.SIGKILL, -signal.SIGTERM) else "failed"
        summary |= {"status": status, "error": f"the process ended with {code}"}
        tracking.write_whole(folder / "summary.json", tracking.as_json(summary))
    return _done(folder, summary["status"])


def _done(folder: Path, how: str) -> float:
    from echoink.console import percent, say

    summary = tracking.read_summary(folder)
    accuracy = (summary.get("final") or summary.get("base") or {}).get("accuracy")
    took = f" · {summary['seconds']:.0f} s" if summary.get("seconds") else ""
    say(f"job {folder.name}", f"{how} · {percent(accuracy)}{took} · {run_name(_overrides(folder))}")
    return float("nan") if accuracy is None else accuracy


def _wait(process: subprocess.Popen) -> None:
    """Let a job that was told to stop write its checkpoint and settle its status; insist after some minutes."""
    for insist in (process.terminate, process.kill):
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            insist()


def _end_with_parent() -> None:
    """A worker that is killed takes its job along (Linux only; elsewhere the job ends by itself)."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def _device(sweep: Path, alone: bool) -> Iterator[dict[str, str]]:
    """A GPU of its own for a job beside others: the first that no other job of this sweep holds."""
    there = [] if alone else devices()
    while there:
        for device in there:
            lock = FileLock(sweep / f".gpu-{device}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield {"CUDA_VISIBLE_DEVICES": device}
            finally:
                lock.release()
            return
        time.sleep(1)
    yield {}


def devices() -> list[str]:
    """The GPUs that jobs may use: those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU")]


def shared(config: Config, below: Path, but: Path) -> Run | None:
    """A finished run below a folder that had this configuration; a key that it lacks, for it is older, had its default.

    The dataset is compared by its path and settings, the code not at all: `_other_code` says where it differs.
    """
    wanted = results.method(to_yaml(config))
    for path in sorted(below.rglob("summary.json")):
        run = results.read(path.parent) if path.parent.resolve() != but.resolve() else None
        if run is None or not run.finished or run.summary.get("shared") or run.summary["task"] != config.task.name:
            continue
        if run.config == wanted:
            return run
    return None


def _other_code(run: Run) -> str:
    file = run.folder / "environment.json"
    then = json.loads(file.read_text()).get("commit") if file.is_file() else None
    now = tracking.git()["commit"]
    return f" (commit {(then or 'unknown')[:7]}, here {(now or 'unknown')[:7]})" if then != now else ""


def _copy(run: Run, folder: Path) -> None:
    """A run's files for another sweep, of which it becomes a child; checkpoints stay where they are, behind a link."""
    from echoink.stored import Record, read_record

    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    skip = shutil.ignore_patterns("checkpoints", ".hydra", "output.log", "train.log", "report.*", "tracking.json", ".*")
    shutil.copytree(run.folder, part, ignore=skip)
    if (run.folder / "checkpoints").is_dir():
        (part / "checkpoints").symlink_to((run.folder / "checkpoints").resolve(), target_is_directory=True)
    before, name = read_record(run.folder), run_name(_overrides(folder))
    Record(
        experiment=before.experiment if before else run.summary["name"],
        name=name,
        params=(before.params if before else {}) | dict(one.partition("=")[::2] for one in name.split(", ") if one),
        tags=(before.tags if before else {}) | {"folder": str(folder.resolve())},
        inputs=before.inputs if before else [],
        started=before.started if before else run.summary.get("started") or int(run.folder.stat().st_mtime * 1000),
    ).kept(part)
    summary = tracking.read_summary(part) | {"shared": str(run.folder.resolve()), "mlflow": None}
    folder.mkdir(parents=True, exist_ok=True)
    for path in part.iterdir():
        if path.name != "summary.json":
            path.rename(folder / path.name)
    tracking.write_whole(folder / "summary.json", tracking.as_json(summary))  # last: it says that the job is there
    shutil.rmtree(part)


def _set_aside(folder: Path) -> None:
    """Move what an earlier attempt left out of a job's way; nothing is deleted."""
    left = [path for path in folder.glob("*") if path.name != ".hydra"]
    if any(path.name != "train.log" for path in left):  # which Hydra opens for the job that starts
        place = folder.parent / "unfinished" / f"{folder.name}-{time.time_ns()}"
        place.mkdir(parents=True)
        for path in left:
            path.rename(place / path.name)


# --- all jobs ---


def _overrides(job: Path) -> list[str]:
    from omegaconf import OmegaConf

    file = job / ".hydra" / "overrides.yaml"
    return OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else []


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
    from echoink import report, stored
    from echoink.console import SERVER, say, say_mlflow
    from echoink.tracker import Tracker

    config, keys = jobs[0].config, _keys(jobs, overrides)
    say("EchoInk", f"sweep of {len(jobs)} jobs · {folder}" if len(jobs) > 1 else f"sweep · {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[SWEPT] = " ".join(keys)
    chosen = [one.partition("=")[2] for one in overrides if one.startswith("experiment=")]
    definition = {
        "status": "running",
        "name": config.name,
        "overrides": overrides,
        "swept": keys,
        "jobs": len(jobs),
        "question": report.question(chosen[-1] if chosen else None),
        "command": ["-m", "echoink.train", *flags, *overrides],
        **{key: tracking.environment()[key] for key in ("host", "process", "process_started", *tracking.git())},
    }
    _define(folder, definition)
    record = stored.Record(
        experiment=config.tracking.experiment,
        name=f"sweep {config.name}" + (f": {', '.join(keys)}" if keys else ""),
        params={"swept": " ".join(keys), "jobs": len(jobs), "overrides": " ".join(overrides)},
        tags={"folder": str(folder.resolve()), "commit": definition["commit"] or "none", "experiment": config.name},
        parent=None,
    ).kept(folder)
    uri = stored.absolute_uri(config.tracking.uri, Path.cwd()) if config.tracking.enabled else None
    os.environ[stored.PARENT] = record.id
    with Tracker(uri, record, folder) as parent:
        try:
            launch()
        except BaseException as error:
            _settle(folder, definition, parent, tracking.status_of(error).lower())
            raise
        bad = _settle(folder, definition, parent, None)
        if bad:
            raise SystemExit(bad)
    if parent.run_id:
        ids = [id for path in results.jobs(folder) if (id := _mlflow_id(tracking.read_summary(path)))]
        say_mlflow(parent.uri, stored.compare_page(ids, parent.experiment_id))
        say("", f"or its curves: {SERVER}{stored.curves_page(ids, parent.experiment_id)}")
    return 0


def _define(folder: Path, definition: dict) -> None:
    tracking.write_whole(folder / "sweep.json", tracking.as_json(definition))


def _mlflow_id(summary: dict) -> str | None:
    return (summary.get("mlflow") or {}).get("run_id")


def _settle(folder: Path, definition: dict, parent: "Tracker", status: str | None) -> int:
    """Close what is open, print the table, write figures and report.

    Returns:
        Exit status: 0 where every job finished.
    """
    from echoink import figures, report
    from echoink.console import say

    places, until = results.jobs(folder), time.monotonic() + 30
    summaries = {path: _closed(path, until) for path in places}
    for path, summary in summaries.items():
        if summary.get("shared") and not _mlflow_id(summary):
            parent.adopt(path)
            summaries[path] = tracking.read_summary(path)
    parent.settle_children({id: s["status"] for s in summaries.values() if (id := _mlflow_id(s))})
    bad = [path for path, summary in summaries.items() if summary["status"] != "finished"]
    _define(folder, definition | {"status": status or ("failed" if bad or not summaries else "finished")})
    runs = [run for path in places if (run := results.read(path))]
    _table(summaries, parent)
    if figure := figures.overlay(runs, folder / "figures" / "curves.png"):
        say("figure", str(figure))
    if any(run.finished and run.result for run in runs) and (page := report.try_to_write([folder], folder)):
        say("report", str(page))
    return _failed(bad, summaries, folder) if bad or not summaries else 0


def _closed(path: Path, until: float) -> dict:
    """A job's summary, its process waited for; one that was killed before it could say so is called killed.

    Of a job on another machine nothing is known: what it says stands.
    """
    while (summary := tracking.read_summary(path))["status"] == "running" and time.monotonic() < until:
        if tracking.process_is_gone(path):
            summary = tracking.read_summary(path)
            break
        time.sleep(0.2)
    if summary["status"] == "running" and tracking.process_is_gone(path):
        summary |= {"status": "killed", "error": "its process ended without a word"}
        tracking.write_whole(path / "summary.json", tracking.as_json(summary))
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

    from echoink.console import SERVER, console, interval, percent

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "overrides", "status", "base", "final", "95 % interval", "format", "tokens", "s", "MLflow"):
        table.add_column(column, no_wrap=column != "overrides")
    for path, summary in summaries.items():
        base, final = summary.get("base") or {}, summary.get("final") or {}
        run, shown = results.read(path), final or base
        lengths = run.lengths if run else None
        id = _mlflow_id(summary)
        page = f"{SERVER}/#/experiments/{parent.experiment_id}/runs/{id}"
        table.add_row(
            path.name,
            escape(run_name(_overrides(path))),
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
