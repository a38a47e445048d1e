"""Look at a run or a sweep: MLflow on a free port at its page, and its report.

    python -m echoink.open outputs/tiny/<run>
    python -m echoink.open outputs/ablate_beta/sweep_<time> port=5000     or a port of your own
    python -m echoink.open                                                the newest run or sweep below outputs/

The server listens on this machine alone (127.0.0.1) and runs until Ctrl-C. A browser is opened where there is one;
browser=false leaves that.
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

from omegaconf import OmegaConf

from echoink.common import cli
from echoink.common.console import say
from echoink.common.errors import UserError
from echoink.run_folder import reader
from echoink.run_folder.folder import mlflow_id, read_summary
from echoink.tracking import client

HOST = "127.0.0.1"
PATIENCE = 90
"""Seconds that the server gets to answer."""

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a kill, a terminal that is closed."""


@dataclass
class OpenConfig:
    """Settings beside the folder."""

    port: int = 0
    """0: a free one."""
    browser: bool = True


@dataclass(frozen=True)
class Page:
    """Where a folder is to be seen."""

    folder: Path
    report: Path | None
    uri: str
    """Of the store."""
    path: str
    """Of the page, below the server's address."""


def page(folder: Path) -> Page:
    """The page of a run, or that of a sweep's curves.

    Raises:
        UserError: it is neither, or no store knows it.
    """
    is_sweep = (folder / "sweep.json").is_file()
    if not is_sweep and not (folder / "summary.json").is_file():
        raise UserError(f"{folder} is no folder of a run or a sweep", "python -m echoink.runs lists them")
    report = folder / "report.html"
    own = {run: mlflow_id(read_summary(run)) for run in (reader.jobs(folder) if is_sweep else [folder])}
    found = [run for run, id in own.items() if id]
    if not found:
        hint = "it ended before that; python -m echoink.runs lists what there is"
        if (folder / "tracking.json").is_file():
            hint = f"python -m echoink.sync {shlex.quote(str(folder))}"
        hint = f"its report: {report}" if report.is_file() else hint
        raise UserError(f"{folder} was not logged to MLflow", hint)
    uri, ids = store_of(found[0]), [own[run] for run in found]
    try:
        experiment = client.connect(uri).get_run(ids[0]).info.experiment_id
    except Exception as error:  # a store raises many kinds of its own
        again = f"python -m echoink.sync {shlex.quote(str(folder))} uri={shlex.quote(uri)}"
        raise UserError(f"{uri} does not have the run of {folder}", again) from error
    path = client.curves_page(ids, experiment) if len(ids) > 1 else client.run_page(ids[0], experiment)
    return Page(folder, report if report.is_file() else None, uri, path)


def store_of(run: Path) -> str:
    """The store that a run was logged to. A relative SQLite path counts from where the run was started: from a folder
    above the run, or from here.
    """
    uri = OmegaConf.load(run / "config.yaml").tracking.uri
    if not uri.startswith("sqlite:///"):
        return uri
    places = [client.absolute_uri(uri, root) for root in (*run.resolve().parents, Path.cwd())]
    there = [place for place in places if Path(place.removeprefix("sqlite:///")).is_file()]
    if not there:
        again = f"python -m echoink.sync {shlex.quote(str(run))} rebuilds it"
        raise UserError(f"{places[-1].removeprefix('sqlite:///')} is not there", again)
    return there[0]


def newest(outputs: Path) -> Path:
    """The newest run below a folder, or the sweep that it is a job of."""
    runs = [run.folder for run in reader.find([outputs])]
    last = max(runs, key=lambda run: (run / "summary.json").stat().st_mtime)
    return reader.sweep_of(last) or last


def serve(uri: str, port: int) -> tuple[subprocess.Popen, str]:
    """MLflow on a store, and its address; it answers.

    Raises:
        UserError: it does not start.
    """
    with socket.socket() as free:
        try:
            free.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"port={port} cannot be had: {error}", "leave port= out for a free one") from error
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", HOST, "--workers", "1"]
    server = subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # with its workers it is ended as one
    )
    address = f"http://{HOST}:{port}"
    try:
        _wait_for(server, address)
    except BaseException:  # Ctrl-C too: in a session of its own it would stay
        _end(server)
        raise
    return server, address


def _wait_for(server: subprocess.Popen, address: str) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if server.poll() is not None:
            raise UserError(f"MLflow did not start: {' · '.join(server.stdout.read().strip().splitlines()[-3:])}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
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
    # A signal ends the server, and with it the loop: an exception could come where Python passes over exceptions.
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
    """Kill it with its workers: it only reads, and would wait for open connections."""
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
    cli.run(main, __doc__, needs_words=False)
