"""Commands in processes of their own, forked from one that has imported the libraries: what takes ten seconds is done
once. A command that must prove how fast it starts is started afresh by its test.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.helpers import stores
from tests.helpers.paths import ROOT

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.helpers.imports"])  # a name that cannot be imported is passed over in silence


def _child(
    module: str | None,
    code: str | None,
    arguments: Sequence[str],
    folder: str,
    out: str,
    err: str,
    environment: dict[str, str],
) -> None:
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", errors="backslashreplace")
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module or "-c", *arguments]
    status = 0
    try:
        assert "trl.trainer.grpo_trainer" in sys.modules, "the fork server has imported nothing"
        if code is not None:
            exec(code, {"__name__": "__main__"})
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
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
        words = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **environment}
        paths = [str(path) for path in self._files]
        self._process = _FORKS.Process(target=_child, args=(module, code, list(arguments), str(folder), *paths, words))
        self._process.start()
        self.pid = self._process.pid

    def send(self, number: int) -> None:
        """A signal to the process alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the process and those that it started, if it has not ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def running(self) -> bool:
        return self._process.is_alive()

    def text(self) -> tuple[str, str]:
        """What it has written so far: output, error."""
        return tuple(path.read_text() for path in self._files)

    def wait(self, seconds: float = 300) -> subprocess.CompletedProcess:
        """Its end; as text what it wrote."""
        self._process.join(seconds)
        if self._process.is_alive():
            self.kill()
            raise TimeoutError(f"after {seconds} s: {self.text()}")
        done = subprocess.CompletedProcess([], self._process.exitcode, *self.text())
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
