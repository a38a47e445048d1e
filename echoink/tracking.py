"""The run folder: every line goes to disk before anything else sees it, and that folder is the truth of a run.

Rows of numbers, `{"step": …, "timestamp": …, "<metric>": …}`, are in `metrics.jsonl` (training), `dev.jsonl` and
`eval.jsonl` (evaluations) and `system.jsonl` (the machine); MLflow (`tracker.py`) is a view of them.
"""

import json
import math
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from filelock import FileLock, Timeout

from echoink import signals
from echoink.errors import UserError

ROWS = ("metrics.jsonl", "dev.jsonl", "eval.jsonl", "system.jsonl")
"""The files of numbers."""

NOT_METRICS = ("step", "epoch", "timestamp", "phase")
"""What else a row of numbers has."""

PREDICTIONS = "predictions.jsonl"
"""The answers of evaluations."""

LOCK = ".lock"
"""Held by the process that writes to a run's folder."""

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "mlflow", "hydra-core", "omegaconf")


class RunFolder:
    """The files of one run, and its `summary.json`: a context manager that settles the run's status on disk.

    Args:
        path: made here.
        task: train or eval.
        name: of the configuration.
        seed: of the run.
        writes: whether this process writes; of several only the first does.
    """

    def __init__(self, path: Path, task: str, name: str, seed: int, writes: bool = True):
        self.path, self.writes = path, writes
        (path / "completions").mkdir(parents=True, exist_ok=True)
        (path / "figures").mkdir(exist_ok=True)
        self.summary: dict[str, Any] = {"status": "running", "task": task, "name": name, "seed": seed}
        later = ("steps", "seconds", "base", "final", "paired", "train", "mlflow", "checkpoint", "best", "error")
        self.summary |= dict.fromkeys(later)
        before = read_summary(path)
        self.summary["started"] = before.get("started") or milliseconds()
        self.summary["mlflow"] = before.get("mlflow")
        self._started = time.perf_counter() - (before.get("seconds") or 0)

    def __enter__(self) -> "RunFolder":
        if self.writes:
            take(self.path)
        self.write_summary()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.settle(error)
        lock(self.path).release()

    def settle(self, error: BaseException | None) -> None:
        """Write how the run ended; the first word stands."""
        if self.summary.get("ended"):
            return
        with signals.held():
            self.summary["status"] = status_of(error).lower()
            self.summary["error"] = error and f"{type(error).__name__}: {error}"
            self.summary["ended"] = milliseconds()
            self.write_summary()

    def write_summary(self) -> None:
        """Bring `summary.json` up to date."""
        self.summary["seconds"] = round(time.perf_counter() - self._started, 1)
        self.write_json("summary.json", self.summary)

    def append(self, name: str, rows: Iterable[dict]) -> None:
        """Append rows to a JSON Lines file and flush it."""
        if not self.writes:
            return
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(as_lines(rows))

    def write_rows(self, name: str, rows: Iterable[dict]) -> None:
        """Write a JSON Lines file whole: aside, then renamed."""
        self.write_text(name, as_lines(rows))

    def numbers(self, name: str, row: dict) -> dict:
        """Append a row of numbers to one of `ROWS`, the finite ones, and give it back with its timestamp."""
        row = {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}
        row["timestamp"] = milliseconds()
        self.append(name, [row])
        return row

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file whole: aside, then renamed."""
        self.write_text(name, as_json(content))

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole: aside, then renamed."""
        if not self.writes:
            return
        write_whole(self.path / name, text)

    def read(self, name: str) -> list[dict]:
        """The rows of a JSON Lines file; none where it is missing."""
        return read_rows(self.path / name)


def read_summary(folder: Path) -> dict[str, Any]:
    """A folder's `summary.json`; its status is `missing` where there is none."""
    file = folder / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"status": "missing"}


def lock(folder: Path) -> FileLock:
    """The lock of a run's folder: one in a process, which lives as long as the process."""
    return _lock(folder.resolve())


@cache
def _lock(folder: Path) -> FileLock:
    return FileLock(folder / LOCK)


def take(folder: Path) -> None:
    """Keep other processes from writing to a folder.

    Raises:
        UserError: one does.
    """
    try:
        with suppress(NotImplementedError):  # some file systems of clusters know no locks
            lock(folder).acquire(timeout=2)
    except Timeout:
        raise UserError(
            f"another process is writing to {folder}", "wait for it, or choose another hydra.run.dir"
        ) from None


def write_aside(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file aside, then rename it: a reader finds it whole, whoever else writes it at the same time."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with open(part, "wb") as content:
        write(content)
    os.replace(part, file)


def write_whole(file: Path, text: str) -> None:
    """Write a text like that."""
    write_aside(file, lambda content: content.write(text.encode()))


def as_json(content: Any) -> str:
    """A JSON file's text, for people too."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_lines(rows: Iterable[dict]) -> str:
    """The text of a JSON Lines file."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def milliseconds() -> int:
    """Now, as MLflow counts time."""
    return int(time.time() * 1000)


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSON Lines file; none where it is missing. Only a line feed ends a row, not U+2028 in a text.

    What a process is still writing at its end, or was killed in, is no row yet.
    """
    content = path.read_bytes() if path.is_file() else b""
    *whole, rest = content.split(b"\n")
    rows = [json.loads(line) for line in whole if line]
    with suppress(ValueError):
        rows.append(json.loads(rest))
    return rows


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, machine, git commit, command."""
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = None
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "process": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "host": socket.gethostname(),
        "versions": versions,
        **git(),
    }


def process_is_gone(folder: Path) -> bool:
    """Whether the process that wrote a run's or a sweep's folder has ended; of another machine's nothing is known."""
    files = [file for name in ("environment.json", "sweep.json") if (file := folder / name).is_file()]
    found = json.loads(files[0].read_text(encoding="utf-8")) if files else {}
    if found.get("host") != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(found["process"]).create_time() - found["process_started"]) > 1
    except psutil.NoSuchProcess:
        return True


def git() -> dict[str, str | bool | None]:
    """Commit of the checkout that this package runs from, and whether it has uncommitted changes."""

    def ask(*words: str) -> str | None:
        try:
            found = subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return found.stdout.strip()

    root = ask("rev-parse", "--show-toplevel")
    ours = root is not None and Path(root).resolve() == Path(__file__).resolve().parent.parent
    commit = ask("rev-parse", "HEAD") if ours else None  # not that of a project that merely installed the package
    return {"commit": commit, "uncommitted_changes": bool(ask("status", "--porcelain")) if commit else None}


def status_of(error: BaseException | None) -> str:
    """MLflow's word for how a run ended: FINISHED, KILLED after Ctrl-C or a signal, else FAILED."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in (130, 143)):
        return "KILLED"
    return "FAILED"
