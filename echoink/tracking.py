"""Tracking: the run folder first, MLflow second.

`RunFolder` writes every line to disk before anything else; that folder is the truth of a run. `Tracker` is the view of
it in MLflow: one run per job, whose status is true also after an exception, `sys.exit` and Ctrl-C, because it is a
context manager and MLflow's own exit hook (which says FINISHED) is never relied on.
"""

import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from echoink.errors import UserError

PARENT = "ECHOINK_PARENT_RUN"
"""Environment variable by which a sweep tells its jobs their parent run."""

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
        self.path, self._writes = path, writes
        (path / "completions").mkdir(parents=True, exist_ok=True)
        (path / "figures").mkdir(exist_ok=True)
        self.summary: dict[str, Any] = {"status": "running", "task": task, "name": name, "seed": seed}
        later = ("steps", "seconds", "base", "final", "paired", "train", "mlflow", "checkpoint", "best", "error")
        self.summary |= dict.fromkeys(later)
        self._started = time.perf_counter()

    def __enter__(self) -> "RunFolder":
        self.write_summary()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        with uninterrupted():
            self.summary["status"] = status_of(error).lower()
            self.summary["error"] = error and f"{type(error).__name__}: {error}"
            self.write_summary()

    def write_summary(self) -> None:
        """Bring `summary.json` up to date."""
        self.summary["seconds"] = round(time.perf_counter() - self._started, 1)
        self.write_json("summary.json", self.summary)

    def append(self, name: str, rows: Iterable[dict]) -> None:
        """Append rows to a JSON Lines file and flush it."""
        if not self._writes:
            return
        with open(self.path / name, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file whole: aside, then renamed."""
        self.write_text(name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole: aside, then renamed."""
        if not self._writes:
            return
        part = self.path / f".{name}"
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.path / name)

    def read(self, name: str) -> list[dict]:
        """The rows of a JSON Lines file; none where it is missing."""
        return read_rows(self.path / name)


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSON Lines file; none where it is missing. Only a line feed ends a row, not U+2028 in a text."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n") if line]


def check_continues(folder: Path, task: str, config: str) -> None:
    """Whether a folder is new, or holds an evaluation of the same configuration that can be taken up.

    A line of predictions.jsonl that was cut off by a kill is dropped.

    Raises:
        UserError: it holds another run.
    """
    if (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} holds a training run already", "choose another hydra.run.dir")
    answers = folder / "predictions.jsonl"
    if not answers.is_file():
        return
    before = (folder / "config.yaml").read_text() if (folder / "config.yaml").is_file() else ""
    if task == "train" or before != config:
        old, new = before.splitlines(), config.splitlines()
        changed = [line.strip() for line in new if line not in old]
        raise UserError(
            f"{folder} holds another run" + (f"; here {', '.join(changed[:4])}" if changed else ""),
            "an evaluation goes on only with the same configuration; choose another hydra.run.dir",
        )
    whole, _, torn = answers.read_bytes().rpartition(b"\n")
    if torn:
        part = answers.with_suffix(".part")
        part.write_bytes(whole + b"\n" if whole else b"")
        os.replace(part, answers)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM off while a status is settled; only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


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
        "versions": versions,
        **git(),
    }


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


def absolute_uri(uri: str, root: Path) -> str:
    """A relative `sqlite:///path` made absolute from `root`; other URIs as they are."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return prefix + str((root / uri.removeprefix(prefix)).resolve())
    return uri


def connect(uri: str):
    """An MLflow client on a store that is ready, also when several processes start on a fresh SQLite file at once."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import mlflow

    mlflow.set_tracking_uri(uri)
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
        return client
    return mlflow.MlflowClient(uri)


def experiment_id(client, name: str, uri: str) -> str:
    """The experiment's id, made if need be; the artifacts of a SQLite store go beside it."""
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=location and f"{location}/{name}")
    except MlflowException:  # another process was first
        return client.get_experiment_by_name(name).experiment_id


def compare_page(runs: list[str], experiment: str) -> str:
    """MLflow's page that compares runs, below the server's address."""
    return f"/#/compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"


class Tracker:
    """One MLflow run for one job; a context manager that settles the run's status.

    A store that fails costs a warning, never the training: all is on disk.

    Args:
        uri: absolute tracking URI, or None to track nothing.
        experiment: MLflow experiment.
        run_name: what the run is called.
        params: short parameters.
        tags: searchable facts.

    Attributes:
        refused: what the store said when it last failed; None where it took everything.
    """

    def __init__(self, uri: str | None, experiment: str, run_name: str, params: dict[str, Any], tags: dict[str, str]):
        self.uri, self.run_id, self.experiment_id = uri, None, None
        self.refused: str | None = None
        self._open = (experiment, run_name, params, tags)
        self._log = logging.getLogger("echoink")

    def __enter__(self) -> "Tracker":
        if self.uri is not None:
            self._guarded(self._start)
        return self

    def _start(self) -> None:
        from mlflow.entities import Param

        experiment, run_name, params, tags = self._open
        self._client = connect(self.uri)
        if parent := os.environ.get(PARENT):  # a child lives in its parent's experiment
            self.experiment_id, parent_run = parent.split()
            tags = {**tags, "mlflow.parentRunId": parent_run}
        else:
            self.experiment_id = experiment_id(self._client, experiment, self.uri)
        tags = {"mlflow.source.name": "echoink.train", "mlflow.source.type": "LOCAL", **tags}
        run = self._client.create_run(self.experiment_id, run_name=run_name, tags=tags)
        self.run_id = run.info.run_id
        items = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(items), 100):
            self._client.log_batch(self.run_id, params=items[start : start + 100])

    def __exit__(self, kind, error, traceback) -> None:
        if self.run_id is not None:
            with uninterrupted():
                self._guarded(lambda: self._client.set_terminated(self.run_id, status_of(error)))

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log finite numbers at a step."""
        from mlflow.entities import Metric

        if self.run_id is None:
            return
        now = int(time.time() * 1000)
        batch = [Metric(name, float(value), now, step) for name, value in values.items() if math.isfinite(value)]
        self._guarded(lambda: self._client.log_batch(self.run_id, metrics=batch))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a small file into the run's artifacts."""
        if self.run_id is not None:
            self._guarded(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def table(self, rows: list[dict], name: str) -> None:
        """A table of rows to look at in MLflow."""
        if self.run_id is not None and rows:
            columns = {key: [row[key] for row in rows] for key in rows[0]}
            self._guarded(lambda: self._client.log_table(self.run_id, columns, name))

    def dataset(self, name: str, digest: str, source: str, profile: dict[str, Any], context: str) -> None:
        """Record a dataset as an input of the run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if self.run_id is None:
            return
        dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), None, json.dumps(profile))
        tags = [InputTag("mlflow.data.context", context)]
        self._guarded(lambda: self._client.log_inputs(self.run_id, [DatasetInput(dataset, tags)]))

    def settle_children(self, statuses: dict[str, str]) -> None:
        """Close child runs that their own process could not close (it was killed)."""
        if self.run_id is None:
            return

        def settle() -> None:
            query = f"tags.mlflow.parentRunId = '{self.run_id}' and attributes.status = 'RUNNING'"
            for run in self._client.search_runs([self.experiment_id], query):
                self._client.set_terminated(run.info.run_id, statuses.get(run.info.run_id, "killed").upper())

        self._guarded(settle)

    @property
    def url_path(self) -> str | None:
        """The run's page below the server's address."""
        return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}" if self.run_id else None

    def _guarded(self, call) -> None:
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            call()
        except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
            self.refused = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            self._log.warning("MLflow did not take a call (%s); the run folder has everything", self.refused)


def status_of(error: BaseException | None) -> str:
    """MLflow's word for how a run ended: FINISHED, KILLED after Ctrl-C or a signal, else FAILED."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in (130, 143)):
        return "KILLED"
    return "FAILED"
