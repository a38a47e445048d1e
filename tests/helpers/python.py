"""Our commands by an interpreter that starts at once: a fork of the process that has imported the libraries.

`processes.interpreter` writes this file as an executable. It asks the test process for the fork, gives it its own open
files, passes signals on and ends as the fork ends. All other commands go to the real interpreter, named by
ECHOINK_TEST_PYTHON; ECHOINK_TEST_FORKS is the socket.
"""

import json
import os
import signal
import socket
import sys

MOST = 64
"""Open files that are passed on."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def ours(words: list[str]) -> list[str] | None:
    """A command's `-m` and module, or its script, and what follows; None if it is not of this project."""
    words = [word for number, word in enumerate(words) if word not in ("-u", "-P") or "-m" in words[:number]]
    if words[:1] == ["-m"] and words[1].startswith("echoink."):
        return words
    return words if words and words[0].endswith(("stand_in_engine.py", "gpu/kit.py")) else None


def main() -> None:
    real, words = os.environ["ECHOINK_TEST_PYTHON"], ours(sys.argv[1:])
    if words is None:
        # As a virtual environment of its own its commands find this file again as their interpreter.
        own = os.path.exists(os.path.join(os.path.dirname(sys.argv[0]), "../pyvenv.cfg"))
        os.execv(real, [sys.argv[0] if own else real, *sys.argv[1:]])
    server = socket.socket(socket.AF_UNIX)
    server.connect(os.environ["ECHOINK_TEST_FORKS"])
    fds = [int(name) for name in os.listdir("/dev/fd")]  # the listing's own is closed by now
    fds = [fd for fd in fds if fd != server.fileno() and os.path.exists(f"/dev/fd/{fd}")]
    asked = {"words": words, "fds": fds, "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(server, [json.dumps(asked).encode() + b"\n"], fds)
    answers = server.makefile()
    pid = int(answers.readline())
    for number in SIGNALS:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(answers.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
