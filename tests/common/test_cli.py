"""What the commands have in common."""

import errno
import os
import signal
from dataclasses import dataclass

import pytest

from echoink.common import cli
from echoink.common.errors import UserError
from echoink.common.keys import key
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


@pytest.mark.parametrize(
    ("number", "file", "said"),
    [
        (errno.EACCES, "theirs/model", ": theirs/model"),
        (errno.ENOSPC, None, ""),
        (errno.ENOENT, "ours", None),
    ],
)
def test_what_a_disk_refuses_is_no_traceback_and_what_code_misses_is_one(number, file, said, monkeypatch, capsys):
    def main(words):
        raise OSError(number, os.strerror(number), file)

    monkeypatch.setattr("sys.argv", ["command", "word"])
    with pytest.raises(FileNotFoundError if said is None else SystemExit) as ended:
        cli.run(main, "help")
    if said is not None:
        assert ended.value.code == 2
        hint = "\n  → make room, change the permissions, or give another place\n"
        assert capsys.readouterr().err == f"error: {os.strerror(number)}{said}{hint}"


@dataclass
class Settings:
    output: str = key("a folder", "here")
    start: str | None = key("a model", None)
    steps: int = key("how many", 3)


@pytest.mark.parametrize("word", ["output=", "start=", "steps=", "start= "])
def test_an_empty_value_is_no_default(word):
    with pytest.raises(UserError, match=rf"{word.strip()} is empty(.|\n)*shell"):
        cli.settings(Settings, [word])


def test_a_text_is_what_was_written():
    for text in ("x #y", "1.10", "010", "true"):
        found = cli.settings(Settings, [f"output={text}", f"start={text}"])
        assert (found.output, found.start) == (text, text)
    found = cli.settings(Settings, ['output="x #y"', "start=null", "steps=4"])
    assert (found.output, found.start, found.steps) == ("x #y", None, 4)
