"""Tracking: statuses that are true, a store that several processes may start, and a run that survives without it."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from echoink import tracking


def open_store(folder: Path):
    uri = tracking.absolute_uri("sqlite:///outputs/mlflow.db", folder)
    return uri, tracking.connect(uri)


def runs_of(folder: Path):
    _, client = open_store(folder)
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def script(folder: Path, body: str) -> subprocess.CompletedProcess:
    """Run a body inside a tracker, in a process of its own."""
    code = textwrap.dedent(
        """
        import os, signal, sys, time
        from pathlib import Path
        from echoink import tracking
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        uri = tracking.absolute_uri("sqlite:///outputs/mlflow.db", Path({folder!r}))
        with tracking.RunFolder(Path({folder!r}) / "run", "train", "x", 0) as files:
            with tracking.Tracker(uri, "x", "run", {{"a": 1}}, {{}}) as tracker:
                {body}
        """
    ).format(folder=str(folder), body=body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("pass", "FINISHED"),
        ("raise RuntimeError('x')", "FAILED"),
        ("sys.exit(3)", "FAILED"),
        ("sys.exit(0)", "FINISHED"),
        ("raise KeyboardInterrupt", "KILLED"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", "KILLED"),
        (  # Ctrl-C, and SIGTERM while the status is being settled
            "import threading; threading.Timer(0.001, os.kill, (os.getpid(), signal.SIGTERM)).start(); "
            "raise KeyboardInterrupt",
            "KILLED",
        ),
    ],
)
def test_status_is_true(tmp_path, body, status):
    script(tmp_path, body)
    (run,) = runs_of(tmp_path)
    assert run.info.status == status
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == status.lower()


def test_processes_that_start_on_a_fresh_store_at_once_all_succeed(tmp_path):
    code = (
        "from pathlib import Path; from echoink import tracking; import sys;"
        f"uri = tracking.absolute_uri('sqlite:///new/mlflow.db', Path({str(tmp_path)!r}));"
        "\nwith tracking.Tracker(uri, 'x', 'run', {}, {}) as tracker: tracker.metrics({'m': 1.0}, 1)"
        "\nsys.exit(tracker.run_id is None)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    client = tracking.connect(tracking.absolute_uri("sqlite:///new/mlflow.db", tmp_path))
    (experiment,) = [e for e in client.search_experiments() if e.name == "x"]
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 3


def test_what_a_run_shows_in_mlflow(tmp_path):
    uri, client = open_store(tmp_path)
    note = tmp_path / "note.txt"
    note.write_text("x")
    with tracking.Tracker(uri, "exp", "lambda 0.5", {"reward.lambda_fmt": 0.5}, {"commit": "abc"}) as tracker:
        tracker.metrics({"reward/accuracy": 0.25, "train/loss": float("nan")}, 3)
        tracker.artifact(note)
        tracker.table([{"id": "1", "text": "<b>"}, {"id": "2", "text": "x"}], "completions.json")
        tracker.dataset("synthetic train", "d1g3st", "folder", {"num_rows": 2}, "train")
    run = client.get_run(tracker.run_id)
    assert run.info.run_name == "lambda 0.5"
    assert run.data.params == {"reward.lambda_fmt": "0.5"} and run.data.tags["commit"] == "abc"
    assert run.data.metrics == {"reward/accuracy": 0.25}
    assert [m.step for m in client.get_metric_history(tracker.run_id, "reward/accuracy")] == [3]
    assert {item.path for item in client.list_artifacts(tracker.run_id)} == {"note.txt", "completions.json"}
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / "outputs")
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.tags[0].value) == ("synthetic train", "d1g3st", "train")


def test_children_are_settled_by_their_parent(tmp_path, monkeypatch):
    uri, client = open_store(tmp_path)
    with tracking.Tracker(uri, "x", "parent", {}, {}) as parent:
        monkeypatch.setenv(tracking.PARENT, f"{parent.experiment_id} {parent.run_id}")
        child = tracking.Tracker(uri, "another", "child", {}, {})
        child.__enter__()  # and its process dies
        parent.settle_children({child.run_id: "failed"})
    assert client.get_run(child.run_id).info.status == "FAILED"
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_a_store_that_cannot_be_used_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    uri = f"sqlite:///{tmp_path}/file/mlflow.db"
    with tracking.Tracker(uri, "x", "run", {}, {}) as tracker:
        tracker.metrics({"m": 1.0}, 1)
    assert tracker.run_id is None and tracker.refused
    assert "the run folder has everything" in caplog.text


def test_tracking_off():
    with tracking.Tracker(None, "x", "run", {}, {}) as tracker:
        tracker.metrics({"m": 1.0}, 1)
        tracker.artifact(Path("nowhere"))
    assert tracker.url_path is None


def test_relative_databases_count_from_the_current_folder(tmp_path):
    assert tracking.absolute_uri("sqlite:///a/b.db", tmp_path) == f"sqlite:///{tmp_path.resolve()}/a/b.db"
    for uri in ("sqlite:////a/b.db", "http://127.0.0.1:5000"):
        assert tracking.absolute_uri(uri, tmp_path) == uri


def test_environment_names_versions_and_commit():
    found = tracking.environment()
    assert found["versions"]["trl"].startswith("1.16.") and found["python"].startswith("3.")


def test_the_commit_is_this_checkouts_and_no_others(tmp_path, monkeypatch):
    def answers(root):
        def run(command, **_):
            out = {"--show-toplevel": root, "HEAD": "c0ffee", "--porcelain": ""}[command[-1]]
            return subprocess.CompletedProcess(command, 0, out, "")

        monkeypatch.setattr(tracking.subprocess, "run", run)
        return tracking.git()

    checkout = Path(tracking.__file__).parent.parent
    assert answers(str(checkout)) == {"commit": "c0ffee", "uncommitted_changes": False}
    assert answers(str(tmp_path)) == {"commit": None, "uncommitted_changes": None}


def test_rows_are_appended_and_json_is_written_whole(tmp_path):
    with tracking.RunFolder(tmp_path / "run", "train", "x", 0) as files:
        files.append("metrics.jsonl", [{"step": 1}])
        files.append("metrics.jsonl", [{"step": 2, "text": "ü\u2028\x85"}])
    assert files.read("metrics.jsonl") == [{"step": 1}, {"step": 2, "text": "ü\u2028\x85"}]
    assert files.read("none.jsonl") == []
    assert not list((tmp_path / "run").glob(".*"))
