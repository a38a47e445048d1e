"""What the commands have in common."""

import os
import signal

from tests.helpers import processes
from tests.helpers.entry import until


def test_a_run_ends_with_the_command_that_started_it(tmp_path):
    """A command that is killed cannot tell it; the system does."""
    stands_in = tmp_path / "python"
    stands_in.write_text("#!/bin/sh\ntrap 'touch told; exit' TERM\ntouch up\nwhile :; do sleep 0.1; done\n")
    stands_in.chmod(0o755)
    code = f"import sys; from echoink.common import cli; sys.executable = {str(stands_in)!r}; cli.train([])"
    started = processes.start(tmp_path, code=code)
    until((tmp_path / "up").exists, started)
    os.kill(started.pid, signal.SIGKILL)
    until_gone = processes.start(tmp_path, code="import time; time.sleep(30)")
    until((tmp_path / "told").exists, until_gone)
    until_gone.kill()
