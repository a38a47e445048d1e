"""Feeds MLflow while a job runs, from its own thread, so that a slow or absent server does not delay the training.

What the server did not take is completed from the folder at the end of the job, or later by `python -m echoink.sync`.
The status is right also after an exception, `sys.exit` and Ctrl-C: the tracker is a context manager and does not rely
on MLflow's own exit hook, which says FINISHED.
"""

import logging
import math
import queue
import threading
import time
from contextlib import suppress
from pathlib import Path

from echoink.common import signals
from echoink.common.errors import first_line
from echoink.common.files import milliseconds
from echoink.run_folder.folder import RunFolder, status_of
from echoink.tracking import sync
from echoink.tracking.client import Record, StoredRun


class Tracker:
    """Shows one folder in MLflow while its job runs; a context manager that sets the run's final status.

    A store that fails causes a warning and never stops the training: everything is on disk.

    Args:
        uri: absolute tracking URI, or None to track nothing.
        record: how the folder appears.
        folder: the folder, of a run or a sweep.
        files: of a run; its status is written there before the run is completed in the store.

    Attributes:
        run_id: in MLflow; None where there is none.
        refused: what the store said when it last failed; None where it took everything.
    """

    PATIENCE = 30.0
    """Seconds that the end of a job waits for what is still to be sent, then again for a call that is under way."""

    def __init__(self, uri: str | None, record: Record, folder: Path, files: RunFolder | None = None):
        self.uri, self.record, self._folder, self._files = uri, record, folder, files
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.refused: str | None = None
        self._stored: StoredRun | None = None
        self._have: sync.History | None = None
        self._queue: queue.Queue = queue.Queue(maxsize=10_000)
        self._silent_until = 0.0
        self._log = logging.getLogger("echoink")

    def __enter__(self) -> "Tracker":
        if self.uri is not None:
            try:
                with signals.held():  # so that a run that MLflow has created is closed
                    self._guarded(self._start)
            except BaseException as error:
                self.__exit__(type(error), error, None)
                raise
            threading.Thread(target=self._send, name="mlflow", daemon=True).start()
        return self

    def _start(self) -> None:
        self._stored = StoredRun(self.uri, self.record)
        self.run_id, self.experiment_id = self._stored.run_id, self._stored.experiment_id
        if self._stored.known:  # a run that goes on
            self._stored.reopen()
        self._have = sync.History(self._stored)  # if it cannot be read, everything is completed at the end
        sync.describe(self._stored, self._folder)

    def __exit__(self, kind, error, traceback) -> None:
        with signals.held():
            status = status_of(error)
            if self._files:
                self._files.settle(error)
                said = self._files.summary["status"].upper()
                status = said if said in ("FINISHED", "FAILED", "KILLED") else status  # others were put back
            if self.uri is None:
                return
            self._drain()
            self._guarded(lambda: self._finish(status))

    def _finish(self, status: str) -> None:
        stored = self._stored or StoredRun(self.uri, self.record)
        self.run_id, self.experiment_id = stored.run_id, stored.experiment_id
        sync.complete(stored, self._folder, status, milliseconds())
        self.refused = None  # completed from disk

    def row(self, row: dict) -> None:
        """Queue a row of numbers for logging; those that MLflow has for that step are not logged again."""
        if self._have:
            self._later(lambda: self._stored.log(self._have.missing([row])))

    def group(self, rows: list[dict]) -> None:
        """Queue a group of completions to be sent as a trace; see `traces.send`."""
        if self._have:
            self._later(lambda: self._have.send(rows))

    def adopt(self, folder: Path, later: bool = False) -> None:
        """Complete the run of another folder in the same store, such as that of a job that was copied; or queue it."""
        if self.uri is not None:
            (self._later if later else self._guarded)(lambda: sync.folder(folder, self.uri))

    def settle_children(self, statuses: dict[str, str]) -> None:
        """Close child runs whose own process was killed; `statuses` has a status by run id."""

        def settle() -> None:
            query = f"tags.mlflow.parentRunId = '{self.run_id}' and attributes.status = 'RUNNING'"
            for run in self._stored.client.search_runs([self.experiment_id], query):
                self._stored.client.set_terminated(run.info.run_id, statuses.get(run.info.run_id, "killed").upper())

        if self._stored:
            self._guarded(settle)

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
        except Exception as error:  # an error of the store affects only this view
            self.refused = first_line(error)[:200]
            self._silent_until = time.monotonic() + 60  # an absent server is not asked at every step
            self._log.warning("MLflow did not take a call (%s); the run folder has everything", self.refused)
