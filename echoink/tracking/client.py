"""A run folder in MLflow: how it appears there (`Record`, its `tracking.json`), and its run in a store.

A run is found by a tag with its record's id. So a folder is the same run for every process that asks, and it can be
rebuilt in another store.
"""

import json
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from filelock import FileLock

from echoink.common.errors import UserError, first_line
from echoink.common.files import as_json, milliseconds, read_json, write_atomic
from echoink.run_folder.folder import NOT_METRICS

PARENT = "ECHOINK_PARENT"
"""Environment variable that tells a sweep's jobs the id of the sweep's record."""

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
        """Write the record, or return the folder's own: a run that was resumed or moved stays the same run.

        Its datasets are those of now.
        """
        before = read_record(folder)
        if before and not is_copy(before, folder):
            if before.inputs == self.inputs:
                return before
            self = replace(before, inputs=self.inputs)
        write_atomic(folder / "tracking.json", as_json(asdict(self)))
        return self


def read_record(folder: Path) -> Record | None:
    """A folder's record; None where it has none."""
    file = folder / "tracking.json"
    return Record(**read_json(file)) if file.is_file() else None


def is_copy(record: Record, folder: Path) -> bool:
    """Whether a record came with a copy of its run's folder: the original is still where it was."""
    home = Path(record.tags.get("folder", folder))
    original = read_record(home) if home.resolve() != folder.resolve() else None
    return original is not None and original.id == record.id


def absolute_uri(uri: str, root: Path) -> str:
    """A relative `sqlite:///path` made absolute from `root`; other URIs as they are.

    Raises:
        UserError: the folder's path holds a "?", after which options are expected, or "%20", which is read as a blank.
    """
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        if wrong := re.search(r"\?|%[0-9a-fA-F]{2}", str(root.resolve())):
            raise UserError(
                f"MLflow cannot keep its database below {root.resolve()}: a database's address cannot hold {wrong[0]}",
                "tracking.uri=sqlite:////another/folder/mlflow.db, or tracking=off",
            )
        return prefix + str((root / uri.removeprefix(prefix)).resolve())
    return uri


def connect(uri: str):
    """An MLflow client on a store; a SQLite store is ready then, even if several processes start on a new file."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Else Python's random generator, which a run seeds, names traces: runs of one seed would share theirs.
    os.environ["MLFLOW_TRACE_USE_ISOLATED_RANDOM_ID_GENERATOR"] = "true"
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import mlflow

    mlflow.set_tracking_uri(uri)
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock", fallback_to_soft=False):
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
        return client
    return mlflow.MlflowClient(uri)


def known_experiment(client, name: str, uri: str) -> str | None:
    """The id of an experiment; None where the store has none of that name.

    Raises:
        UserError: it is deleted, and takes no runs.
    """
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        restore = f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {found.experiment_id}"
        raise UserError(f"the experiment {name} of {uri} is deleted", f"{restore}; or another tracking.experiment")
    return found and found.experiment_id


def experiment_id(client, name: str, uri: str) -> str:
    """The experiment's id, created if needed; the artifacts of a SQLite store go beside its file.

    Raises:
        UserError: the store does not take the experiment, or it is deleted.
    """
    from mlflow.exceptions import MlflowException

    if id := known_experiment(client, name, uri):
        return id
    location = None
    if uri.startswith("sqlite:///"):
        folder = re.sub(r"^\.+|[^\w .-]", "_", name)[:60]  # MLflow would take ".." and "#" for parts of an address
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / folder).as_uri()
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        if id := known_experiment(client, name, uri):  # another process was first
            return id
        reason = first_line(error)[:200]
        raise UserError(f"{uri} takes no experiment {name[:80]!r}: {reason}", "another tracking.experiment") from error


def compare_page(runs: list[str], experiment: str) -> str:
    """MLflow's page that compares runs, below the server's address."""
    return f"/#/compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"


def run_page(run: str, experiment: str) -> str:
    """MLflow's page of a run, below the server's address."""
    return f"/#/experiments/{experiment}/runs/{run}"


def curves_page(runs: list[str], experiment: str, metric: str = "reward/accuracy") -> str:
    """MLflow's page with one metric's curves of many runs, smoothed, below the server's address."""
    chosen = {"runs": runs, "metric": metric, "experiments": [experiment], "plot_metric_keys": [metric]}
    settings = {"plot_layout": {"autosize": True}, "deselected_curves": [], "last_linear_y_axis_range": []}
    words = [f"{key}={quote(json.dumps(value))}" for key, value in (chosen | settings).items()]
    return "/#/metric?" + "&".join([*words, "x_axis=step&y_axis_scale=linear&line_smoothness=70&show_point=false"])


_AT_ONCE = 100
"""In how many experiments a run is looked for at once; servers refuse a long list."""


def _experiments(client, name: str, uri: str) -> list[str]:
    """Ids of all experiments of a store, that of this name first: a run may have been made under another name."""
    found, page = [known_experiment(client, name, uri)], None
    while True:
        part = client.search_experiments(page_token=page)
        found += [experiment.experiment_id for experiment in part]
        if not (page := part.token):
            return list(dict.fromkeys(id for id in found if id))


def _find(client, experiments: Sequence[str], id: str):
    for first in range(0, len(experiments), _AT_ONCE):
        part = list(experiments[first : first + _AT_ONCE])
        if found := client.search_runs(part, f"tags.`{ID}` = '{id}'", max_results=1):
            return found[0]
    return None


def find(client, record: Record, uri: str):
    """MLflow's run of a record; None where the store does not have it."""
    return _find(client, _experiments(client, record.experiment, uri), record.id)


class StoredRun:
    """A folder's run in a store, found by its id or made.

    Attributes:
        client: MLflow's.
        run_id: of the run.
        experiment_id: of its experiment.
        known: whether the store had it before.
    """

    def __init__(self, uri: str, record: Record):
        from mlflow.entities import Param

        self.client = connect(uri)
        self.record = record
        experiments = _experiments(self.client, record.experiment, uri)
        parent = _find(self.client, experiments, record.parent) if record.parent else None
        run = _find(self.client, experiments, record.id)
        self.known = run is not None
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
        # MLflow takes no other characters in names; Hydra does: prompt@eval.direct.
        params = {re.sub(r"[^\w./: -]", ".", name): str(value) for name, value in record.params.items()}
        missing = [Param(name, value) for name, value in params.items() if name not in run.data.params]
        if missing:
            self.client.log_batch(self.run_id, params=missing)

    def log(self, rows: Iterable[dict], model: str | None = None) -> None:
        """Log the finite numbers of rows.

        Args:
            rows: of the files in `run_folder.folder.ROWS`.
            model: id of the logged model that they belong to.
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

    def reopen(self) -> None:
        """Mark a run that goes on as running."""
        self.client.update_run(self.run_id, "RUNNING")
        self.status = "RUNNING"
