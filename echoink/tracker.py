"""MLflow, a view of run folders: what a run is called there, and the run as it is while a job runs.

A folder's `tracking.json` says how it appears (`Record`); `Stored` is that run in a store; `Tracker` feeds it during a
job from a thread of its own, so that a slow or absent server costs the training nothing. What the server did not take
is completed from the folder at the end of the job, or later by `python -m echoink.sync`.

Statuses are true also after an exception, `sys.exit` and Ctrl-C: the tracker is a context manager, and MLflow's own
exit hook (which says FINISHED) is never relied on.
"""

import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from filelock import FileLock

from echoink.tracking import NOT_METRICS, RunFolder, milliseconds, status_of, uninterrupted

PARENT = "ECHOINK_PARENT"
"""Environment variable by which a sweep tells its jobs its own record's id."""

ID = "echoink.id"
"""The tag by which a folder's run is found in a store."""


@dataclass(frozen=True)
class Record:
    """How a folder appears in MLflow: its `tracking.json`."""

    experiment: str
    name: str
    params: dict[str, Any]
    """Short: what a run is, and what its command line changed; `config.yaml` is among the artifacts."""
    tags: dict[str, str]
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """Datasets: name, digest, source, rows, context."""
    parent: str | None = field(default_factory=lambda: os.environ.get(PARENT))
    """The sweep's id."""
    id: str = field(default_factory=lambda: uuid4().hex)
    started: int = field(default_factory=milliseconds)

    def kept(self, folder: Path) -> "Record":
        """Write it, or take the one that the folder has: an evaluation that goes on stays the same run."""
        if before := read_record(folder):
            return before
        (folder / "tracking.json").write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return self


def read_record(folder: Path) -> Record | None:
    """A folder's record; None where it has none."""
    file = folder / "tracking.json"
    return Record(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


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
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Else traces are named by Python's generator, which a run seeds: runs of one seed would share their traces.
    os.environ["MLFLOW_TRACE_USE_ISOLATED_RANDOM_ID_GENERATOR"] = "true"
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


def curves_page(runs: list[str], experiment: str, metric: str = "reward/accuracy") -> str:
    """MLflow's page with one metric's curves of many runs, smoothed, below the server's address."""
    chosen = {"runs": runs, "metric": metric, "experiments": [experiment], "plot_metric_keys": [metric]}
    settings = {"plot_layout": {"autosize": True}, "deselected_curves": [], "last_linear_y_axis_range": []}
    words = [f"{key}={quote(json.dumps(value))}" for key, value in (chosen | settings).items()]
    return "/#/metric?" + "&".join([*words, "x_axis=step&y_axis_scale=linear&line_smoothness=70&show_point=false"])


class Stored:
    """A folder's run in a store, found by its id or made.

    Attributes:
        client: MLflow's.
        run_id: of the run.
        experiment_id: of its experiment.
    """

    def __init__(self, uri: str, record: Record):
        from mlflow.entities import Param

        self.client = connect(uri)
        self.record = record
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        parent = self._find(experiments, record.parent) if record.parent else None
        run = self._find(experiments, record.id)
        if run is None:
            # a child lives in its parent's experiment
            home = parent.info.experiment_id if parent else experiment_id(self.client, record.experiment, uri)
            tags = {"mlflow.source.name": "echoink.train", "mlflow.source.type": "LOCAL", **record.tags, ID: record.id}
            if parent:
                tags["mlflow.parentRunId"] = parent.info.run_id
            run = self.client.create_run(home, start_time=record.started, run_name=record.name, tags=tags)
        elif parent and "mlflow.parentRunId" not in run.data.tags:  # made while the store did not have the parent
            self.client.set_tag(run.info.run_id, "mlflow.parentRunId", parent.info.run_id)
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        self.status = run.info.status
        missing = [Param(k, str(v)) for k, v in record.params.items() if k not in run.data.params]
        if missing:
            self.client.log_batch(self.run_id, params=missing)

    def _find(self, experiments: list[str], id: str):
        found = self.client.search_runs(experiments, f"tags.`{ID}` = '{id}'", max_results=1)
        return found[0] if found else None

    def log(self, rows: Iterable[dict], model: str | None = None) -> None:
        """Log the finite numbers of rows.

        Args:
            rows: of `tracking.ROWS`.
            model: id of the logged model that they are of.
        """
        from mlflow.entities import Metric

        batch = [
            Metric(name, float(value), row["timestamp"], row["step"], model_id=model, run_id=self.run_id)
            for row in rows
            for name, value in row.items()
            if name not in NOT_METRICS and isinstance(value, int | float) and math.isfinite(value)
        ]
        for start in range(0, len(batch), 1000):  # the most that a store takes at once
            self.client.log_batch(self.run_id, metrics=batch[start : start + 1000])

    def end(self, status: str, when: int | None = None) -> None:
        """Settle the status, once."""
        self.client.set_terminated(self.run_id, status, when)


class Tracker:
    """The view of one folder in MLflow while its job runs; a context manager that settles the run's status.

    A store that fails costs a warning, never the training: all is on disk.

    Args:
        uri: absolute tracking URI, or None to track nothing.
        record: how the folder appears.
        folder: the folder, of a run or a sweep.
        files: of a run, to be settled before it is completed in the store.

    Attributes:
        run_id: in MLflow; None where there is none.
        refused: what the store said when it last failed; None where it took everything.
    """

    PATIENCE = 30.0
    """Seconds that the end of a job waits for what is still to be sent."""

    def __init__(self, uri: str | None, record: Record, folder: Path, files: RunFolder | None = None):
        self.uri, self.record, self._folder, self._files = uri, record, folder, files
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.refused: str | None = None
        self._stored: Stored | None = None
        self._queue: queue.Queue = queue.Queue(maxsize=10_000)
        self._silent_until = 0.0
        self._log = logging.getLogger("echoink")

    def __enter__(self) -> "Tracker":
        if self.uri is not None:
            self._guarded(self._start)
            threading.Thread(target=self._send, name="mlflow", daemon=True).start()
        return self

    def _start(self) -> None:
        from echoink import sync

        self._stored = Stored(self.uri, self.record)
        self.run_id, self.experiment_id = self._stored.run_id, self._stored.experiment_id
        if self._stored.status != "RUNNING":  # an evaluation that goes on
            self._stored.client.update_run(self.run_id, "RUNNING")
        sync.describe(self._stored, self._folder)

    def __exit__(self, kind, error, traceback) -> None:
        if self._files:
            self._files.settle(error)
        if self.uri is None:
            return
        with uninterrupted():
            self._drain()
            self._guarded(lambda: self._finish(status_of(error)))

    def _finish(self, status: str) -> None:
        from echoink import sync

        stored = self._stored or Stored(self.uri, self.record)
        self.run_id, self.experiment_id = stored.run_id, stored.experiment_id
        sync.complete(stored, self._folder)
        stored.end(status, milliseconds())
        self.refused = None  # completed from disk

    def row(self, row: dict) -> None:
        """Log a row of numbers, some time soon."""
        self._later(lambda: self._stored.log([row]))

    def group(self, rows: list[dict]) -> None:
        """Show a group of completions as a trace, some time soon; see `traces.send`."""
        from echoink import traces

        self._later(lambda: traces.send(self._stored, rows))

    def adopt(self, folder: Path) -> None:
        """Complete the run of another folder in the same store, such as that of a job that was copied."""
        from echoink import sync

        if self.uri is not None:
            self._guarded(lambda: sync.folder(folder, self.uri))

    def settle_children(self, statuses: dict[str, str]) -> None:
        """Close child runs that their own process could not close (it was killed); status by run id."""

        def settle() -> None:
            query = f"tags.mlflow.parentRunId = '{self.run_id}' and attributes.status = 'RUNNING'"
            for run in self._stored.client.search_runs([self.experiment_id], query):
                self._stored.client.set_terminated(run.info.run_id, statuses.get(run.info.run_id, "killed").upper())

        if self._stored:
            self._guarded(settle)

    @property
    def url_path(self) -> str | None:
        """The run's page below the server's address."""
        return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}" if self.run_id else None

    def _later(self, call) -> None:
        if self._stored is not None:
            with suppress(queue.Full):  # completed from disk at the end
                self._queue.put_nowait(call)

    def _send(self) -> None:
        while True:
            call = self._queue.get()
            try:
                if time.monotonic() >= self._silent_until:
                    self._guarded(call)
            finally:
                self._queue.task_done()

    def _drain(self) -> None:
        end = time.monotonic() + self.PATIENCE
        while self._queue.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.02)
        self._silent_until = math.inf  # what is still waiting is completed from disk
        while self._queue.unfinished_tasks and time.monotonic() < end + self.PATIENCE:
            time.sleep(0.02)

    def _guarded(self, call) -> None:
        try:
            call()
        except Exception as error:  # whatever a store raises costs the view only
            self.refused = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            self._silent_until = time.monotonic() + 60  # a server that is away is not asked at every step
            self._log.warning("MLflow did not take a call (%s); the run folder has everything", self.refused)
