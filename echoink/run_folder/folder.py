"""The run folder, a run's source of truth: every row is written to disk before it goes anywhere else.

Rows of numbers, `{"step": …, "timestamp": …, "<metric>": …}`, are in `metrics.jsonl` (training), `dev.jsonl` and
`eval.jsonl` (evaluations) and `system.jsonl` (the machine); MLflow (`tracking/logger.py`) is a view of them.
"""

import errno
import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from echoink.common import signals
from echoink.common.errors import UserError
from echoink.common.files import as_json, as_lines, milliseconds, read_rows, write_atomic
from echoink.run_folder import before

ROWS = ("metrics.jsonl", "dev.jsonl", "eval.jsonl", "system.jsonl")
"""The files of numbers."""

NOT_METRICS = ("step", "epoch", "timestamp", "phase")
"""The other keys of a row of numbers."""

PREDICTIONS = "predictions.jsonl"
"""The answers of evaluations."""

LOCK = ".lock"
"""Held by the process that writes to a run's folder."""


class RunFolder:
    """The files of one run, and its `summary.json`: a context manager that writes the run's final status.

    Args:
        path: of the folder, which is created here.
        task: of the configuration, or plan.
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
        said = self._before = read_summary(path)
        self.summary["started"] = said.get("started") or milliseconds()
        self.summary |= {key: said.get(key) for key in ("mlflow", "weights", "rows")}
        if said.get("changed"):
            self.changed(said["changed"])
        self._started = time.perf_counter() - (said.get("seconds") or 0)
        self._settled = False

    def __enter__(self) -> "RunFolder":
        if self.writes:
            take(self.path)
            before.keep(self.path)
        self.write_summary()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.settle(error)
        lock(self.path).release()

    def settle(self, error: BaseException | None) -> None:
        """Write how the run ended; the first call wins. If it failed before it added a result, the folder is again what
        it was.
        """
        if self._settled or self.summary.get("ended"):
            return
        with signals.held():
            self._settled = True
            if error and self.writes and before.is_kept(self.path):
                before.put_back(self.path)
                self.summary = self._before
                return
            if self.writes:
                before.drop(self.path)
            self.summary["status"] = status_of(error).lower()
            self.summary["error"] = error and reason(error)
            self.summary["ended"] = milliseconds()
            self.write_summary()

    def write_summary(self) -> None:
        """Bring `summary.json` up to date."""
        self.summary["seconds"] = round(time.perf_counter() - self._started, 1)
        self.write_json("summary.json", self.summary)

    def changed(self, keys: Iterable[str]) -> None:
        """Note configuration keys whose values changed between the steps of the run."""
        if found := sorted({*self.summary.get("changed", ()), *keys}):
            self.summary["changed"] = found

    def append(self, name: str, rows: Iterable[dict]) -> None:
        """Append rows to a JSON Lines file and flush it."""
        if not self.writes:
            return
        if name != "system.jsonl":
            before.drop(self.path)
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(as_lines(rows))

    def write_rows(self, name: str, rows: Iterable[dict]) -> None:
        """Write a JSON Lines file whole or not at all."""
        self.write_text(name, as_lines(rows))

    def numbers(self, name: str, row: dict) -> dict:
        """Append a row's finite numbers to one of `ROWS`; return the row with its timestamp."""
        row = finite(row) | {"timestamp": milliseconds()}
        self.append(name, [row])
        return row

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file whole or not at all."""
        self.write_text(name, as_json(content))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        if not self.writes:
            return
        write_atomic(self.path / name, text)

    def read(self, name: str) -> list[dict]:
        """The rows of a JSON Lines file; none where it is missing."""
        return read_rows(self.path / name)


def finite(row: dict) -> dict:
    """A row without infinite or NaN values."""
    return {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}


def read_summary(folder: Path) -> dict[str, Any]:
    """A folder's `summary.json`; its status is `missing` where there is none, `damaged` where it cannot be read."""
    file = folder / "summary.json"
    if not file.is_file():
        return {"status": "missing"}
    try:
        return {"status": "damaged"} | json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        return {"status": "damaged"}


def mlflow_id(summary: dict[str, Any]) -> str | None:
    """The run's id in MLflow; None where it has none."""
    return (summary.get("mlflow") or {}).get("run_id")


def lock(folder: Path) -> FileLock:
    """The lock of a run's folder: one object per process, for the process's lifetime."""
    return _lock(folder.resolve())


@cache
def _lock(folder: Path) -> FileLock:
    # A soft lock is a file that a killed process leaves: nothing would clear it on another machine.
    return FileLock(folder / LOCK, fallback_to_soft=False)


@contextmanager
def where_there_are_locks() -> Iterator[None]:
    """Pass over file systems without locks: Lustre, NFS and others, depending on how they are mounted."""
    try:
        yield
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise


def in_use(folder: Path) -> bool:
    """Whether another process writes to a run's folder, or nobody can."""
    held = lock(folder)
    try:
        with where_there_are_locks():
            held.acquire(timeout=0)
            held.release()
    except (Timeout, OSError):
        return True
    return False


def take(folder: Path) -> None:
    """Keep other processes from writing to a folder.

    Raises:
        UserError: another process is writing to it.
    """
    try:
        with where_there_are_locks():
            lock(folder).acquire(timeout=2)
    except Timeout:
        raise UserError(f"another process is writing to {folder}", "wait for it, or choose another folder") from None


def reason(error: BaseException) -> str:
    """Why a run ended, in a line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by Ctrl-C"
    if isinstance(error, SystemExit) and error.code in (130, 143):
        return "told to stop by a signal"
    return f"{type(error).__name__}: {error}"


def status_of(error: BaseException | None) -> str:
    """MLflow's word for how a run ended: FINISHED, KILLED after Ctrl-C or a signal, else FAILED."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in (130, 143)):
        return "KILLED"
    return "FAILED"
