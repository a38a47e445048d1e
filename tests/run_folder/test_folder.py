"""The run folder: rows and JSON on disk, and what a result depends on."""

import errno
import fcntl
import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from echoink.common.errors import UserError
from echoink.common.files import as_lines, read_rows
from echoink.run_folder import before
from echoink.run_folder import folder as run_folder
from echoink.run_folder.environment import environment, git, process_is_gone
from tests.helpers import processes
from tests.helpers.entry import until
from tests.helpers.runs import make_run


def test_environment_names_versions_and_commit():
    found = environment()
    assert found["versions"]["trl"].startswith("1.16.") and found["python"].startswith("3.")


def test_the_commit_is_this_checkouts_and_no_others(tmp_path, monkeypatch):
    def answers(root):
        def run(command, **_):
            out = {"--show-toplevel": root, "HEAD": "c0ffee", "--porcelain": ""}[command[-1]]
            return subprocess.CompletedProcess(command, 0, out, "")

        monkeypatch.setattr("echoink.run_folder.environment.subprocess.run", run)
        return git()

    checkout = Path(run_folder.__file__).parent.parent.parent
    assert answers(str(checkout)) == {"commit": "c0ffee", "uncommitted_changes": False}
    assert answers(str(tmp_path)) == {"commit": None, "uncommitted_changes": None}


def test_rows_are_appended_and_json_is_written_whole(tmp_path):
    with run_folder.RunFolder(tmp_path / "run", "train", "x", 0) as files:
        files.append("metrics.jsonl", [{"step": 1}])
        files.append("metrics.jsonl", [{"step": 2, "text": "ü\u2028\x85"}])
    assert files.read("metrics.jsonl") == [{"step": 1}, {"step": 2, "text": "ü\u2028\x85"}]
    assert files.read("none.jsonl") == []
    assert [path.name for path in (tmp_path / "run").glob(".*")] == [run_folder.LOCK]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch, number):
    def refuses(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    for _ in range(2):
        with run_folder.RunFolder(tmp_path / "run", "train", "x", 0) as files:
            assert not run_folder.in_use(files.path)
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.EIO, "input/output error")))
    assert run_folder.in_use(tmp_path / "run")


def test_a_row_that_is_being_written_is_no_row_yet(tmp_path):
    file, rows = tmp_path / "metrics.jsonl", [{"step": 1, "text": "a\u2028b"}, {"step": 2, "text": "ü"}]
    assert read_rows(file) == []
    whole = as_lines(rows).encode()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole) - 1):
        file.write_bytes(whole[:end])
        assert read_rows(file) == rows[:1], end
    for end in (len(whole) - 1, len(whole)):
        file.write_bytes(whole[:end])
        assert read_rows(file) == rows
    file.write_bytes(whole.replace(b"step", b'"', 1))
    with pytest.raises(ValueError):  # a damaged row before the last is not passed over
        read_rows(file)


def test_a_process_that_ended_is_told_from_one_that_runs(tmp_path):
    written = environment()
    assert written["process"] == os.getpid()
    (tmp_path / "environment.json").write_text(json.dumps(written))
    assert not process_is_gone(tmp_path)
    for other in ({"process_started": written["process_started"] - 60}, {"process": 2**22 + 1}):
        (tmp_path / "environment.json").write_text(json.dumps(written | other))
        assert process_is_gone(tmp_path)
    (tmp_path / "environment.json").write_text(json.dumps(written | {"process": 2**22 + 1, "host": "another"}))
    assert not process_is_gone(tmp_path), "of another machine nothing is known"


def test_the_first_word_on_how_a_run_ended_stands(tmp_path):
    with run_folder.RunFolder(tmp_path, "train", "x", 0) as files:
        files.settle(KeyboardInterrupt())
    assert files.summary["status"] == "killed"


def test_a_process_whose_clock_was_set_holds_its_lock_and_is_not_gone(tmp_path):
    """What the system says of when a process began moves with the clock."""
    (tmp_path / "environment.json").write_text(json.dumps(environment() | {"process_started": 0}))
    holds = f"from echoink.run_folder.folder import take; import pathlib, time; take(pathlib.Path({str(tmp_path)!r}))"
    started = processes.start(tmp_path, code=f"{holds}; print('held', flush=True); time.sleep(60)")
    until(lambda: "held" in started.text()[0], started)
    assert not process_is_gone(tmp_path)
    started.kill()
    started.wait()
    assert process_is_gone(tmp_path)


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("text", ["as after SIGKILL", "{", None])
def test_what_a_folder_held_is_put_back_once_whatever_its_summary_says(tmp_path, text):
    run = make_run(tmp_path / "run", status="killed")
    summary = run / "summary.json"
    if text is None:
        summary.unlink()
    else:
        said = json.loads(summary.read_text()) | {"ended": None}
        summary.write_text(json.dumps(said) if text != "{" else text)
    held = everything(run)
    with suppress(UserError), run_folder.RunFolder(run, "train", "x", 0) as files:
        (run / "rewards").mkdir()
        (run / "rewards/mine.py").write_text("of the refused command")
        (run / "predictions.jsonl").write_text("")
        error = UserError("refused")
        files.settle(error)  # the tracker does first
        raise error
    assert everything(run) == held
    assert not list(run.glob(".before-*"))


def test_a_folder_that_had_a_new_result_is_never_put_back(tmp_path):
    run = make_run(tmp_path / "run", status="killed")
    with suppress(UserError), run_folder.RunFolder(run, "train", "x", 0) as files:
        files.append("metrics.jsonl", [{"step": 3}])
        raise UserError("in the middle")
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3]
    assert json.loads((run / "summary.json").read_text())["error"] == "UserError: in the middle"


def test_a_full_disk_keeps_nothing_and_says_nothing_of_its_own(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", status="killed")
    held = everything(run)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(before.shutil, "copy2", full)
    before.keep(run)
    assert not before.is_kept(run) and everything(run) == held and not list(run.glob(".before-*"))
