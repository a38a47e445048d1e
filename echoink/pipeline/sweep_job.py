"""Runs one job of a sweep in its own process."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from echoink.common import processors, signals
from echoink.common.console import percent, say
from echoink.common.errors import UserError
from echoink.common.files import as_json, read_json, write_atomic
from echoink.config.compose import SWEPT
from echoink.config.overrides import quoted
from echoink.config.schema import Config, to_yaml
from echoink.run_folder import checkpoint, inputs_on_disk, reader, resume, reward_files
from echoink.run_folder.environment import git, is_of_another_host, process_is_gone
from echoink.run_folder.folder import in_use, read_summary
from echoink.run_folder.reader import Run
from echoink.tracking.client import Record, read_record

BELOW = "ECHOINK_SWEPT_BELOW"
"""Environment variable that holds the result of `common_folders` as JSON."""

LONGEST = 100
"""A parameter with a longer value (in characters) is not sent to MLflow."""

PATIENCE = 300
"""Seconds to wait for a job that was told to stop, before a stronger signal."""

_NOT_PART_OF_A_NAME = ("hydra", "resume", "tracking.", "dataset.path", "checkpoint", "sweep.", "eval.cache")


def swept_keys() -> list[str]:
    """The keys that differ between the jobs of this sweep; none outside a sweep."""
    return os.environ.get(SWEPT, "").split()


def run_name(overrides: Sequence[str]) -> str:
    """A run's name from its overrides: "reward.lambda_fmt=0.5, seed=1"; in a sweep, only those that differ."""
    keys = swept_keys()
    shown = [one for one in descriptive(overrides) if not keys or one.partition("=")[0] in keys]
    return ", ".join(map(shortened, shown))[:200]


def shortened(override: str) -> str:
    """An override without the folder that the values of a swept key have in common: "checkpoint=run-a/checkpoints"."""
    key, sign, value = override.partition("=")
    value = value.strip("'")
    below = json.loads(os.environ.get(BELOW, "{}")).get(key)
    return f"{key}{sign}{value.removeprefix(below + '/') if below else value}"


def params(overrides: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that overrides change, as MLflow parameters: configuration values, or what `shortened` leaves."""
    found = {}
    for override in descriptive(overrides):
        key, _, value = (short := shortened(override)).partition("=")
        if len(value) <= LONGEST:
            found[key] = values.get(key, value) if short == override else value
    return found


def common_folders(keys: Sequence[str], jobs: Sequence[Sequence[str]]) -> dict[str, str]:
    """For each swept key whose values are paths: their common parent folder.

    Args:
        keys: the swept keys.
        jobs: the overrides of each job.
    """
    found = {}
    for key in keys:
        words = [one.partition("=")[::2] for job in jobs for one in job]
        values = {value.strip("'") for name, value in words if name == key}
        if len(values) > 1 and all("/" in value for value in values):
            same_kind = len({value.startswith("/") for value in values}) == 1
            if same_kind and (common := os.path.commonpath(values)):
                found[key] = common
    return found


def descriptive(overrides: Sequence[str]) -> list[str]:
    """The overrides that describe a run, not where its files go; swept ones are always included."""
    swept = swept_keys()
    return [o for o in overrides if o.partition("=")[0] in swept or not o.startswith(_NOT_PART_OF_A_NAME)]


def side_by_side(settings) -> int:
    """How many jobs Hydra's launcher runs at once on this machine; a job on a cluster counts as alone."""
    choice = settings.runtime.choices["hydra/launcher"]
    if choice not in ("joblib", "submitit_local"):
        return 1
    cores = processors.available()
    wanted = settings.launcher.get("n_jobs") or cores
    if wanted == 1:
        return 1
    return max(2, min(cores if wanted < 0 else wanted, cores))


def _torchrun(processes: int) -> list[str]:
    """The words that start several processes on this machine, up to the module that they run."""
    words = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    # After a signal torchrun waits for the rollout under way; by default it kills its processes after 30 s.
    if tuple(map(int, version("torch").split(".")[:2])) >= (2, 12):
        words += ["--shutdown-timeout", str(2 * PATIENCE)]
    # By itself it would not pass SIGUSR1 and SIGUSR2 on, but end by them.
    return [*words, "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2", "-m"]


def run_job(config: Config, overrides: list[str], folder: Path, flags: list[str], side_by_side: int) -> float:
    """Run one job in its own process; the table reads a failure from the job's folder.

    A job that has finished already, here or (`sweep.share`) elsewhere, is not run again; a job that left a checkpoint
    continues from it.

    Args:
        config: the job's.
        overrides: the job's.
        folder: the job's.
        flags: Hydra's flags: --config-dir.
        side_by_side: how many jobs run at once; with 1 the job writes to the screen.

    Returns:
        The job's final accuracy: the objective of a search. NaN if it failed.

    Raises:
        UserError: the job is still running, or has several processes while jobs run side by side.
    """
    summary = read_summary(folder)
    wanted = reader.method(to_yaml(config))
    before = reader.read(folder)
    same = before is not None and before.config == wanted and not reward_files.changed(config.reward, folder)
    same = same and not _other_inputs(config, before)
    if same and resume.has_ended(summary):
        return _done(folder, "finished before")
    # Another machine's process cannot be seen, but it holds the folder's lock.
    died_elsewhere = is_of_another_host(folder) and not in_use(folder)
    if summary["status"] == "running" and not died_elsewhere and not process_is_gone(folder):
        raise UserError(f"job {folder.name} is still running", "wait for it, or end its process")
    elsewhere = shared(config, Path(config.sweep.share), folder) if config.sweep.share else None
    goes_on = same and not elsewhere and config.trains and bool(checkpoint.steps(folder))
    goes_on &= checkpoint.can_go_on(folder)
    if not goes_on and (config.trains or elsewhere or summary["status"] == "finished"):
        _set_aside(folder)
    if elsewhere:
        _copy(elsewhere, folder)
        return _done(folder, f"from {elsewhere.folder}{_other_code(elsewhere)}")
    processes = config.trainer.processes if config.trains else 1
    if processes > 1 and side_by_side > 1:
        raise UserError(
            f"jobs of {processes} processes each cannot run side by side",
            "leave hydra/launcher out, or set hydra.launcher.n_jobs=1",
        )
    by_torchrun = processes > 1 or (config.trains and config.trainer.sharding.is_deepspeed)
    launcher = _torchrun(processes) if by_torchrun else []
    command = [sys.executable, "-m", *launcher, "echoink.train", *flags, *overrides]
    command += [f"hydra.run.dir={quoted(folder)}"]
    command += ["resume=auto"] if goes_on else []
    there = read_summary(folder)
    code = _run(command, folder, side_by_side)
    summary = read_summary(folder)
    if code != 0 and (summary["status"] in ("running", "missing") or summary == there):  # or it was refused
        status = "killed" if code in (-signal.SIGKILL, -signal.SIGTERM) else "failed"
        summary |= {"status": status, "error": f"the process ended with {code}"}
        write_atomic(folder / "summary.json", as_json(summary))
    return _done(folder, summary["status"])


def _run(command: list[str], folder: Path, side_by_side: int) -> int:
    """The exit status of a job's process. It writes to the screen, or to its folder if other jobs run beside it."""
    alone = side_by_side == 1
    with (
        nullcontext() if alone else open(folder / "output.log", "a", encoding="utf-8") as output,
        _device(folder.parent, alone) as device,
    ):
        environment = {**os.environ, **device}
        if not alone:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, processors.available() // side_by_side)))
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, preexec_fn=signals.end_with_parent
        )
        try:
            return process.wait()
        except BaseException as error:
            # Ctrl-C also reaches the job; a signal to this process alone does not. The job counts two at once as one.
            process.send_signal(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
            say("stopping", f"job {folder.name} ends after its current work; no other is started")
            _wait(process)
            raise


def _done(folder: Path, how: str) -> float:
    summary = read_summary(folder)
    finished = summary["status"] == "finished"
    accuracy = (summary.get("final") or summary.get("base") or {}).get("accuracy") if finished else None
    took = f" · {summary['seconds']:.0f} s" if summary.get("seconds") else ""
    say(f"job {folder.name}", f"{how} · {percent(accuracy)}{took} · {run_name(reader.overrides(folder))}")
    return accuracy if accuracy is not None else float("nan")


def _wait(process: subprocess.Popen) -> None:
    """Wait for a job that was told to stop, which writes its checkpoint and status; after some minutes, force it."""
    for insist in (process.terminate, process.kill):
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            insist()


@contextmanager
def _device(sweep: Path, alone: bool) -> Iterator[dict[str, str]]:
    """Reserve a GPU for a job that runs beside others: the first one that no other job of this sweep holds."""
    there = [] if alone else devices()
    while there:
        for device in there:
            # On this machine's own disk, where there are locks: GPUs belong to a machine.
            named = hashlib.sha256(str(sweep.resolve()).encode()).hexdigest()[:16]
            lock = FileLock(Path(tempfile.gettempdir()) / f"echoink-{named}-gpu-{device}.lock")
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
    """The GPUs that jobs may use: those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists; where one is divided
    by MIG, only the instances.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    instances = re.findall(r"MIG .*UUID: (MIG-\S+?)\)", listed)  # a process uses one instance of a GPU in parts
    return instances or [str(number) for number in range(len(re.findall(r"^GPU \d+:", listed, re.MULTILINE)))]


def shared(config: Config, below: Path, but: Path) -> Run | None:
    """A finished run with this configuration in all of its steps below a folder, except `but`. Keys that an older run
    lacks get defaults.

    The user's own rewards are compared by file content, weights and rows in local folders by parts of their files. The
    code is not compared: `_other_code` says whether it differs.
    """
    if config.trainer.push_to_hub:
        return None  # the other run may not have pushed
    wanted = reader.method(to_yaml(config))
    for path in sorted(reader.below(below, "summary.json")):
        run = reader.read(path) if path.resolve() != but.resolve() else None
        if run is None or not run.finished or run.summary.get("shared") or run.changed:
            continue
        if run.summary["task"] != config.task.name:
            continue
        same = run.config == wanted and not reward_files.changed(config.reward, run.folder)
        if same and not _other_inputs(config, run):
            return run
    return None


def _other_inputs(config: Config, run: Run) -> bool:
    """Whether this disk holds other weights or rows than a run began with, and say so; older runs do not know."""
    places = {"weights": config.checkpoint or config.model.path, "rows": config.dataset.path}
    now = inputs_on_disk.digests(config)
    others = [key for key in places if inputs_on_disk.differ(run.summary.get(key), now[key])]
    for key in others:
        say("sweep", f"{run.folder} began with other {key} than {places[key]} has now")
    return bool(others)


def _other_code(run: Run) -> str:
    file = run.folder / "environment.json"
    then = read_json(file).get("commit") if file.is_file() else None
    now = git()["commit"]
    return f" (commit {(then or 'unknown')[:7]}, here {(now or 'unknown')[:7]})" if then != now else ""


def _copy(run: Run, folder: Path) -> None:
    """Copy a run's files into a job's folder, as a child of this sweep; its checkpoints are only linked."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    skip = shutil.ignore_patterns("checkpoints", ".hydra", "output.log", "train.log", "report.*", "tracking.json", ".*")
    shutil.copytree(run.folder, part, ignore=skip)
    if kept := checkpoint.steps(run.folder):  # each by itself: later steps of that run are not this job's
        (part / checkpoint.FOLDER).mkdir()
        for step in kept:
            (part / checkpoint.FOLDER / step.name).symlink_to(step.resolve(), target_is_directory=True)
        if (best := run.folder / checkpoint.FOLDER / checkpoint.BEST).is_file():
            shutil.copy(best, part / checkpoint.FOLDER)
    before, overrides = read_record(run.folder), reader.overrides(folder)
    Record(
        experiment=before.experiment if before else run.summary["name"],
        name=run_name(overrides),
        params=(before.params if before else {}) | params(overrides, run.config),
        tags=(before.tags if before else {}) | {"folder": str(folder.resolve())},
        inputs=before.inputs if before else [],
        started=before.started if before else run.summary.get("started") or int(run.folder.stat().st_mtime * 1000),
    ).kept(part)
    summary = read_summary(part) | {"shared": str(run.folder.resolve()), "mlflow": None}
    folder.mkdir(parents=True, exist_ok=True)
    for path in part.iterdir():
        if path.name != "summary.json":
            path.rename(folder / path.name)
    write_atomic(folder / "summary.json", as_json(summary))  # last: it marks the copy as complete
    shutil.rmtree(part)


def _set_aside(folder: Path) -> None:
    """Move the files of an earlier attempt to `unfinished/`; nothing is deleted."""
    left = [path for path in folder.glob("*") if path.name != ".hydra"]
    if any(path.name != "train.log" for path in left):  # Hydra opens train.log for the job that starts
        place = folder.parent / "unfinished" / f"{folder.name}-{time.time_ns()}"
        place.mkdir(parents=True)
        for path in left:
            path.rename(place / path.name)
