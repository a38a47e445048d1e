"""Commands in processes of their own, forked from one that has imported the libraries: what takes ten seconds is done
once. A command that must prove how fast it starts is started afresh by its test.
"""

import atexit
import fcntl
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from pathlib import Path

from tests.helpers import python, stores
from tests.helpers.paths import ROOT

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.helpers.imports"])  # a name that cannot be imported is passed over in silence


class _OpenFiles:
    """Open files that a forked process gets under the numbers that they have here."""

    def __init__(self, fds: dict[int, int]):
        self._fds = fds  # each number in the new process, and the file's number here

    def __reduce__(self):
        return _OpenFiles.received, ([(number, DupFd(fd)) for number, fd in self._fds.items()],)

    @staticmethod
    def received(given: list) -> dict[int, int]:
        """In the new process: each wanted number, and a number above all of them."""
        return {number: fcntl.fcntl(fd.detach(), fcntl.F_DUPFD, 256) for number, fd in given}


def _child(
    words: Sequence[str],
    code: str | None,
    folder: str,
    files: dict[int, int],
    environment: dict[str, str],
    interpreter: str,
) -> None:
    """What runs in a fork: `-m module …`, a script, or code."""
    for number, fd in files.items():
        os.dup2(fd, number)
        os.close(fd)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", errors="backslashreplace")
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.executable = interpreter
    status = 0
    try:
        assert "trl.trainer.grpo_trainer" in sys.modules, "the fork server has imported nothing"
        if code is not None:
            sys.argv = ["-c", *words]
            exec(code, {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = list(words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    # As an interpreter ends; a fork of multiprocessing would wait for processes that only these hooks stop.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


_ONE_AT_A_TIME = threading.Lock()
"""Whoever starts a process asks how all others ended, and an end can be read once."""


def _fork(*arguments) -> multiprocessing.Process:
    """Start `_child` with these arguments, all but the interpreter."""
    process = _FORKS.Process(target=_child, args=(*arguments, interpreter()))
    with _ONE_AT_A_TIME:
        process.start()
    return process


def _status(process: multiprocessing.Process, seconds: float | None = None) -> int | None:
    """How a process ended; None if it still runs after some seconds."""
    wait([process.sentinel], seconds)
    with _ONE_AT_A_TIME:
        return process.exitcode


@cache
def interpreter() -> str:
    """An executable that stands in for `sys.executable`, see `tests/helpers/python.py`; it lives as long as this
    process.
    """
    folder = Path(tempfile.mkdtemp(prefix="python-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {"ECHOINK_TEST_PYTHON": sys.executable, "ECHOINK_TEST_FORKS": str(folder / "socket")}
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    server.listen(64)
    threading.Thread(target=_serve, args=(server,), daemon=True).start()
    (folder / "bin").mkdir()
    if (real := Path(sys.prefix) / "pyvenv.cfg").is_file():
        shutil.copy(real, folder)
        (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    program = folder / "bin/python"
    # To Python the second line is a text. The first could not name an interpreter whose path is long or has blanks.
    starts = f"#!/bin/sh\n'''exec' \"{sys.executable}\" -IS \"$0\" \"$@\"\n' '''\n"
    program.write_text(starts + Path(python.__file__).read_text())
    program.chmod(0o755)
    return str(program)


def _serve(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_of_interpreter, args=(connection,), daemon=True).start()


def _of_interpreter(connection: socket.socket) -> None:
    """Fork for one interpreter: tell it the process and how that ended; end the process if the interpreter is gone."""
    with connection:
        text, received, _, _ = socket.recv_fds(connection, 1 << 16, python.MOST)
        while not text.endswith(b"\n"):
            text += connection.recv(1 << 16)
        asked = json.loads(text)
        files = _OpenFiles(dict(zip(asked["fds"], received, strict=True)))
        process = _fork(asked["words"], None, asked["folder"], files, asked["environment"])
        for fd in received:
            os.close(fd)
        with suppress(OSError):
            connection.sendall(f"{process.pid}\n".encode())
        if process.sentinel not in wait([process.sentinel, connection]):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with suppress(OSError):
            connection.sendall(f"{_status(process)}\n".encode())


class Started:
    """A command that runs."""

    def __init__(
        self,
        module: str | None,
        code: str | None,
        arguments: Sequence[str],
        folder: Path,
        environment: dict[str, str],
    ):
        self._files = [Path(tempfile.mkstemp(suffix=name)[1]) for name in (".out", ".err")]
        interpreter()  # names itself in the environment
        # MLflow names the store of this process there.
        own = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        words = {**own, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **environment}
        command = list(arguments) if code else ["-m", module, *arguments]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            files = _OpenFiles({1: out.fileno(), 2: err.fileno()})
            self._process = _fork(command, code, str(folder), files, words)
        self.pid = self._process.pid

    def send(self, number: int) -> None:
        """A signal to the process alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the process and those that it started, if it has not ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def running(self) -> bool:
        return _status(self._process, 0) is None

    def text(self) -> tuple[str, str]:
        """What it has written so far: output, error."""
        return tuple(path.read_text() for path in self._files)

    def wait(self, seconds: float = 300) -> subprocess.CompletedProcess:
        """Its end; as text what it wrote."""
        if (status := _status(self._process, seconds)) is None:
            self.kill()
            raise TimeoutError(f"after {seconds} s: {self.text()}")
        done = subprocess.CompletedProcess([], status, *self.text())
        for path in self._files:
            path.unlink()
        return done


def start(
    folder: Path, *arguments: str, module: str = "echoink.train", code: str | None = None, **environment: str
) -> Started:
    """Start `python -m <module>`, or `python -c <code>`, in a folder that has MLflow's database already."""
    if module == "echoink.train" and "tracking=off" not in arguments:
        stores.put(Path(folder))
    return Started(None if code else module, code, arguments, folder, environment)


def run(
    folder: Path, *arguments: str, module: str = "echoink.train", code: str | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """The same, to its end."""
    return start(folder, *arguments, module=module, code=code, **environment).wait()
