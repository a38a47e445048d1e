"""Rebuilds MLflow from run folders: adds what a server did not take; a second pass changes nothing."""

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from echoink.common.errors import UserError
from echoink.common.files import as_json, read_json, read_rows, write_atomic
from echoink.run_folder.environment import process_is_gone
from echoink.run_folder.folder import NOT_METRICS, ROWS, in_use, mlflow_id, read_summary
from echoink.tracking import traces
from echoink.tracking.client import StoredRun, is_copy, read_record

ARTIFACTS = (
    "config.yaml",
    "environment.json",
    "dataset.json",
    "summary.json",
    "sweep.json",
    "flips.jsonl",
    "figures/*.png",
    "report.html",
    "report.md",
)
"""The small files of a folder that MLflow shows."""


def describe(stored: StoredRun, folder: Path) -> None:
    """Log what is known of a run from its start: datasets and files."""
    _inputs(stored)
    _artifacts(stored, folder)


def complete(stored: StoredRun, folder: Path, status: str, ended: int) -> None:
    """Bring a run in a store up to date with its folder: numbers, checkpoint, datasets, files, traces, status.

    A store may refuse some of these (a server whose files this machine may not write, one without traces); it gets the
    others all the same.

    Raises:
        Exception: what the store refused first.
    """
    have, models, refused = History(stored), [], []  # an absent server fails here, before anything is tried
    evaluations = read_rows(folder / "eval.jsonl")

    def numbers() -> None:
        for name in ROWS[:2] + ROWS[3:]:
            stored.log(have.missing(read_rows(folder / name)))
        stored.log(have.missing(row for row in evaluations if row["phase"] == "base"))

    def final() -> None:
        stored.log(have.missing(row for row in evaluations if row["phase"] == "final"), *models)

    def groups() -> None:
        for rows in traces.groups(folder):
            have.send(rows)

    for part in (
        numbers,
        lambda: models.append(_model(stored, folder)),
        final,
        lambda: _inputs(stored),
        lambda: _artifacts(stored, folder),
        groups,
        lambda: None if status == stored.status else stored.client.set_terminated(stored.run_id, status, ended),
    ):
        try:
            part()
        except Exception as error:  # stores raise many types
            refused.append(error)
    if refused:
        raise refused[0]


CLOCKS = ("time/", "perf/")
"""Metrics that differ each time a step is taken; MLflow keeps the first."""


class History:
    """What a store already has of a run."""

    def __init__(self, stored: StoredRun):
        self._stored = stored
        data = stored.client.get_run(stored.run_id).data
        self._times: set[tuple[str, int, int]] = set()  # name, step, timestamp
        self._values: dict[tuple[str, int], list[float]] = defaultdict(list)  # of each name and step
        for name in data.metrics:
            for point in stored.client.get_metric_history(stored.run_id, name):
                self._times.add((name, point.step, point.timestamp))
                self._values[name, point.step].append(point.value)
        self._traces: dict[str, Any] | None = None

    def send(self, rows: list[dict]) -> None:
        """Send a group as a trace unless it is there; replace one whose completions differ."""
        if self._traces is None:
            self._traces = traces.sent(self._stored)
        there = self._traces.get(traces.name(rows))
        if there and there.tags.get(traces.DIGEST) not in (traces.digest(rows), None):  # None: of an older version
            self._stored.client.delete_traces(self._stored.experiment_id, trace_ids=[there.trace_id])
            there = None
        if not there:
            traces.send(self._stored, rows)

    def missing(self, rows) -> Iterator[dict]:
        """The numbers of rows that are not there yet. A step that a resumed run repeated is there already, unless its
        numbers differ (another GPU, a setting in `resume_allow`): then the new ones are added.

        Base and final evaluation may be of one step; their timestamps tell them apart. Rows of an older version have
        no timestamp, only an order.
        """
        for row in rows:
            row = {"timestamp": self._stored.record.started + row["step"], **row}
            new = {name: value for name, value in row.items() if name in NOT_METRICS or not self._has(name, row)}
            if new.keys() - set(NOT_METRICS):
                yield new

    def _has(self, name: str, row: dict) -> bool:
        if "phase" in row:
            return (name, row["step"], row["timestamp"]) in self._times
        there = self._values.get((name, row["step"]), ())
        if name.startswith(CLOCKS):
            return bool(there)
        return any(math.isclose(value, row[name], rel_tol=1e-9) or math.isnan(value) for value in there)


def _inputs(stored: StoredRun) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = {given.dataset.digest for given in stored.client.get_run(stored.run_id).inputs.dataset_inputs}
    new = [
        DatasetInput(
            Dataset(
                one["name"],
                one["digest"],
                source_type="local",
                source=json.dumps({"uri": one["source"]}),
                profile=json.dumps(one["profile"]),
            ),
            [InputTag("mlflow.data.context", one["context"])],
        )
        for one in stored.record.inputs
        if one["digest"] not in known
    ]
    if new:
        stored.client.log_inputs(stored.run_id, new)


def _artifacts(stored: StoredRun, folder: Path) -> None:
    there: dict[str, int] = {}
    for place in ("", "figures"):
        there |= {found.path: found.file_size for found in stored.client.list_artifacts(stored.run_id, place or None)}
    for pattern in ARTIFACTS:
        for file in sorted(folder.glob(pattern)):
            place = file.relative_to(folder)
            if there.get(place.as_posix()) != file.stat().st_size or _changed(stored, place, file):
                parent = place.parent.as_posix()
                stored.client.log_artifact(stored.run_id, str(file), None if parent == "." else parent)


def _changed(stored: StoredRun, place: Path, file: Path) -> bool:
    """Whether a file of the same size has other content; checked for those that say how a run was made and ended."""
    if place.suffix not in (".json", ".yaml"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        copy = stored.client.download_artifacts(stored.run_id, place.as_posix(), folder)
        return Path(copy).read_bytes() != file.read_bytes()


def _model(stored: StoredRun, folder: Path) -> str | None:
    """Register the checkpoint as a logged model, without copying its weights; return its id."""
    summary = read_summary(folder)
    if not summary.get("checkpoint"):
        return None
    client = stored.client
    name = f"step-{summary['steps']}"
    found = client.search_logged_models([stored.experiment_id], f"source_run_id = '{stored.run_id}'")
    if there := [model.model_id for model in found if model.name == name]:  # a run that was extended has several
        return there[0]
    place = (folder / summary["checkpoint"]).resolve()
    model = client.create_logged_model(
        stored.experiment_id,
        name=name,
        source_run_id=stored.run_id,
        tags={"mlflow.model.is_external": "true", "checkpoint": str(place)},
        params={key: str(value) for key, value in stored.record.params.items()},
        model_type="checkpoint",
    )
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def folder(place: Path, uri: str, killed: bool = False) -> StoredRun:
    """Complete the run of one folder in a store, with its status.

    Args:
        place: the folder.
        uri: of the store.
        killed: close a run of another machine that says nothing of its end.

    Raises:
        UserError: the folder has no tracking.json, or its run is still running and feeds MLflow itself.
    """
    record = read_record(place)
    if record is None:
        raise UserError(f"{place} has no tracking.json", "it is no folder of a run or a sweep, or of an older version")
    status, ended = _ended(place)
    if status is None and killed and not in_use(place):
        status = "KILLED"
        file = _end_of(place)
        closed = {"status": "killed", "error": "closed by sync killed=true", "ended": ended}
        write_atomic(file, as_json(read_json(file) | closed))
    if status is None:
        hint = "sync it when it has ended; one that was killed on another machine: killed=true"
        raise UserError(f"{place} is still running", hint)
    if is_copy(record, place):  # it becomes a run of its own, apart from its original
        sweep = read_record(place.parent)  # a copied sweep comes first, so it has its new id already
        parent = sweep.id if sweep and record.parent else record.parent
        tags = record.tags | {"folder": str(place.resolve())}
        own = replace(record, id=uuid4().hex, tags=tags, parent=parent)
        record = own.kept(place)
        summary = read_summary(place)
        if mlflow_id(summary):  # the original's
            write_atomic(place / "summary.json", as_json(summary | {"mlflow": None}))
    stored = StoredRun(uri, record)
    try:
        complete(stored, place, status, ended)
    finally:
        _note(place, stored)
    return stored


def _end_of(place: Path) -> Path:
    """The file that says how a run or sweep ended."""
    return next(file for name in ("summary.json", "sweep.json") if (file := place / name).is_file())


def _ended(place: Path) -> tuple[str | None, int]:
    """How a run or sweep ended and when; no status while it goes on."""
    file = _end_of(place)
    found = read_json(file)
    status, last = found["status"], int(file.stat().st_mtime * 1000)
    if status == "running":
        return ("KILLED", last) if process_is_gone(place) else (None, last)
    return status.upper(), found.get("ended") or last


def _note(place: Path, stored: StoredRun) -> None:
    """Write the id of a run that is new in MLflow into its summary."""
    summary = read_summary(place)
    if summary["status"] not in ("missing", "damaged") and not mlflow_id(summary):
        write_atomic(place / "summary.json", as_json(summary | {"mlflow": {"run_id": stored.run_id}}))
        _artifacts(stored, place)
