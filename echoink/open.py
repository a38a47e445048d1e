"""Opens the MLflow page of a run or a sweep, on a free port, and says where its report is.

    python -m echoink.open outputs/tiny/<run>
    python -m echoink.open outputs/ablate_beta/sweep_<time> port=5000     on a port of your choice
    python -m echoink.open                                                the newest run or sweep below outputs/

The server listens on this machine alone (127.0.0.1) and runs until Ctrl-C. A browser is opened if there is one and
browser=false is not given.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from echoink.common import cli
from echoink.common.console import say
from echoink.common.errors import UserError, first_line
from echoink.common.keys import key
from echoink.run_folder import reader
from echoink.run_folder.folder import mlflow_id, read_summary
from echoink.tracking import client

HOST = "127.0.0.1"
PATIENCE = 90
"""Seconds to wait for the server's answer."""

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `kill`, and a closed terminal."""


@dataclass
class OpenConfig:
    """Settings other than the folder."""

    port: int = key("port of the page; 0: a free one", 0)
    browser: bool = key("open a browser", True)


@dataclass(frozen=True)
class Page:
    """Where to see a run or a sweep."""

    folder: Path
    report: Path | None
    uri: str
    """The store's URI."""
    path: str
    """The page's path below the server's address."""


def page(folder: Path) -> Page:
    """The page of a run, or that of a sweep's curves.

    Raises:
        UserError: the folder is neither, or its run is not in the store.
    """
    is_sweep = (folder / "sweep.json").is_file()
    if not is_sweep and not (folder / "summary.json").is_file():
        raise UserError(f"{folder} is no folder of a run or a sweep", "python -m echoink.runs lists them")
    report = folder / "report.html"
    found = [run for run in (reader.jobs(folder) if is_sweep else [folder]) if mlflow_id(read_summary(run))]
    if not found:
        hint = "it ended before logging began; python -m echoink.runs lists what there is"
        if (folder / "tracking.json").is_file():
            hint = f"python -m echoink.sync {shlex.quote(str(folder))}"
        hint = f"its report: {report}" if report.is_file() else hint
        raise UserError(f"{folder} was not logged to MLflow", hint)
    uri = store_of(found[0])
    try:
        store = client.connect(uri)
        there = [run.info for place in found if (run := _in(store, uri, place))]
    except Exception as error:  # stores raise many types
        raise UserError(f"{uri} cannot be read: {first_line(error)}", "is its server running?") from error
    if not there:
        again = f"python -m echoink.sync {shlex.quote(str(folder))} uri={shlex.quote(uri)}"
        raise UserError(f"{uri} does not have the run of {folder}", again)
    ids, experiment = [info.run_id for info in there], there[0].experiment_id
    path = client.curves_page(ids, experiment) if len(ids) > 1 else client.run_page(ids[0], experiment)
    return Page(folder, report if report.is_file() else None, uri, path)


def _in(store, uri: str, run: Path):
    """MLflow's run of a folder. A store that was rebuilt has another id for it than its summary; a copy is not there
    before it is synced.
    """
    record = client.read_record(run)
    if record is None:  # of an older version
        return store.get_run(mlflow_id(read_summary(run)))
    return None if client.is_copy(record, run) else client.find(store, record, uri)


def store_of(run: Path) -> str:
    """The store that a run was logged to. A relative SQLite path counts from where the run was started, which is a
    folder above the run or the current one.
    """
    uri = reader.configuration(run).tracking.uri
    if not uri.startswith("sqlite:///"):
        return uri
    places = [client.absolute_uri(uri, root) for root in (*run.resolve().parents, Path.cwd())]
    there = [place for place in places if Path(place.removeprefix("sqlite:///")).is_file()]
    if not there:
        again = f"python -m echoink.sync {shlex.quote(str(run))} uri={shlex.quote(places[-1])} rebuilds it"
        raise UserError(f"{places[-1].removeprefix('sqlite:///')} is not there", again)
    return there[0]


def newest(outputs: Path) -> Path:
    """The newest run below a folder, or the sweep that it is a job of."""
    runs = [run.folder for run in reader.find([outputs])]
    last = max(runs, key=lambda run: (run / "summary.json").stat().st_mtime)
    return reader.sweep_of(last) or last


def serve(uri: str, port: int) -> tuple[subprocess.Popen, str]:
    """Start MLflow on a store and wait for its answer; return the process and its address.

    Raises:
        UserError: the port cannot be used, or the server does not start.
    """
    with socket.socket() as free:
        try:
            free.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"port={port} cannot be used: {error}", "leave port= out for a free one") from error
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", HOST, "--workers", "1"]
    server = subprocess.Popen(
        [*command, "--port", str(port)],
        # Its job runners are several processes that import MLflow again; pages of runs do not need them.
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that it is killed together with its workers
    )
    address = f"http://{HOST}:{port}"
    try:
        _wait_for(server, address)
    except BaseException:  # Ctrl-C too: the server has its own session and would keep running
        _end(server)
        raise
    return server, address


def _wait_for(server: subprocess.Popen, address: str) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if server.poll() is not None:
            raise UserError(f"MLflow did not start: {' · '.join(server.stdout.read().strip().splitlines()[-3:])}")
        try:
            # Not through a proxy of the environment: it is this machine.
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise UserError(f"MLflow did not answer at {address} within {PATIENCE} s", "mlflow server says more")


def main(words: Sequence[str]) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: see `page` and `serve`.
    """
    places, others = cli.places_and_settings(words)
    folders, given = [Path(place) for place in places], cli.settings(OpenConfig, others)
    if len(folders) > 1:
        raise UserError("give one folder", "of a run or a sweep; python -m echoink.runs lists them")
    shown = page(folders[0] if folders else newest(Path("outputs")))
    if shown.report:
        say("report", str(shown.report))
    if shown.uri.startswith("http"):
        _look(shown.uri.rstrip("/") + shown.path, given.browser)
        return
    say("MLflow", f"starts on {shown.uri} …")
    server, address = serve(shown.uri, given.port)
    # A signal kills the server, which ends the loop: an exception might be raised where Python ignores exceptions.
    before = {number: signal.signal(number, lambda *_: _kill(server)) for number in _ENDS}
    try:
        _look(address + shown.path, given.browser)
        say("", "Ctrl-C ends it")
        while server.poll() is None:
            server.stdout.readline()  # else its log would fill the pipe
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _end(server)
        say("MLflow", "ended")


def _end(server: subprocess.Popen) -> None:
    """Kill the server and its workers: it only reads, and a clean stop would wait for open connections."""
    _kill(server)
    server.wait()


def _kill(server: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def _look(address: str, browser: bool) -> None:
    say("page", address)
    if browser:
        webbrowser.open(address)


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, OpenConfig), needs_words=False)
