"""MLflow as a view: true statuses, a store that several processes may start, a run that survives without it."""

import json
import sqlite3
import subprocess
import textwrap
import time
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
from mlflow import MlflowClient

from echoink.common.errors import UserError
from echoink.run_folder.folder import RunFolder
from echoink.tracking import sync
from echoink.tracking.client import (
    Record,
    StoredRun,
    absolute_uri,
    compare_page,
    connect,
    curves_page,
    read_record,
)
from echoink.tracking.logger import Tracker
from tests.helpers import processes, stores


@pytest.fixture
def tmp_path(tmp_path):
    """With a store that is there already."""
    stores.put(tmp_path)
    return tmp_path


def open_store(folder: Path):
    uri = absolute_uri("sqlite:///outputs/mlflow.db", folder)
    return uri, connect(uri)


def runs_of(folder: Path):
    _, client = open_store(folder)
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def script(folder: Path, body: str) -> subprocess.CompletedProcess:
    """Run a body inside a tracker, in a process of its own."""
    code = textwrap.dedent(
        """
        import os, signal, sys, time
        from pathlib import Path
        from echoink.common import signals
        from echoink.run_folder.folder import RunFolder
        from echoink.tracking.client import Record, absolute_uri
        from echoink.tracking.logger import Tracker
        signals.install()
        uri = absolute_uri("sqlite:///outputs/mlflow.db", Path({folder!r}))
        with RunFolder(Path({folder!r}) / "run", "train", "x", 0) as files:
            record = Record("x", "run", {{"a": 1}}, {{}})
            with Tracker(uri, record.kept(files.path), files.path, files) as view:
                {body}
        """
    ).format(folder=str(folder), body=body)
    return processes.run(folder, code=code)


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
        "from pathlib import Path; from echoink.tracking.client import Record, absolute_uri; import sys, time;"
        "from echoink.tracking.logger import Tracker;"
        f"uri = absolute_uri('sqlite:///new/mlflow.db', Path({str(tmp_path)!r}));"
        f"\nrecord = Record('x', 'run', {{}}, {{}})"
        f"\nwith Tracker(uri, record, Path({str(tmp_path)!r})) as view:"
        "\n view.row({'m': 1.0, 'step': 1, 'timestamp': 1})"
        "\nsys.exit(view.run_id is None or view.refused is not None)"
    )
    started = [processes.start(tmp_path, code=code) for _ in range(3)]
    assert [process.wait().returncode for process in started] == [0, 0, 0]
    client = connect(absolute_uri("sqlite:///new/mlflow.db", tmp_path))
    (experiment,) = [e for e in client.search_experiments() if e.name == "x"]
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 3


def view(tmp_path, uri, name="run", folder="run", **record) -> Tracker:
    (tmp_path / folder).mkdir(exist_ok=True)
    given = {"experiment": "exp", "name": name, "params": {"reward.lambda_fmt": 0.5}, "tags": {"commit": "abc"}}
    return Tracker(uri, Record(**{**given, **record}).kept(tmp_path / folder), tmp_path / folder)


def row(step, **values):
    return {"step": step, "timestamp": 1_700_000_000_000 + step, **values}


def test_what_a_run_shows_in_mlflow(tmp_path):
    uri, client = open_store(tmp_path)
    given = {
        "name": "synthetic train",
        "digest": "d1",
        "source": "folder",
        "profile": {"num_rows": 2},
        "context": "train",
    }
    with view(tmp_path, uri, "lambda 0.5", inputs=[given]) as shown:
        shown.row(row(3, **{"reward/accuracy": 0.25, "train/loss": float("nan"), "epoch": 0.5}))
        (tmp_path / "run/report.md").write_text("x")
    run = client.get_run(shown.run_id)
    assert run.info.run_name == "lambda 0.5" and run.info.status == "FINISHED"
    assert run.data.params == {"reward.lambda_fmt": "0.5"} and run.data.tags["commit"] == "abc"
    assert run.data.metrics == {"reward/accuracy": 0.25}
    assert [m.step for m in client.get_metric_history(shown.run_id, "reward/accuracy")] == [3]
    assert {item.path for item in client.list_artifacts(shown.run_id)} == {"report.md"}
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / "outputs")
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest, found.tags[0].value) == ("synthetic train", "d1", "train")


def test_children_are_settled_by_their_parent(tmp_path):
    uri, client = open_store(tmp_path)
    with view(tmp_path, uri, "parent", "parent") as parent:
        child = view(tmp_path, uri, "child", "child", experiment="another", parent=parent.record.id)
        child.__enter__()  # and its process dies
        parent.settle_children({child.run_id: "failed"})
    found = client.get_run(child.run_id)
    assert found.info.status == "FAILED" and found.info.experiment_id == parent.experiment_id
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id


def test_a_store_that_cannot_be_used_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with view(tmp_path, f"sqlite:///{tmp_path}/file/mlflow.db") as shown:
        shown.row(row(1, m=1.0))
    assert shown.run_id is None and shown.refused
    assert "the run folder has everything" in caplog.text


def test_rows_that_a_store_refused_are_there_at_the_end(tmp_path, monkeypatch):
    """Every second call fails; nothing is lost and nothing twice, and the rest was on disk."""
    from mlflow.exceptions import MlflowException

    uri, client = open_store(tmp_path)
    calls = []
    log = StoredRun.log

    def flaky(self, rows, model=None):
        calls.append(1)
        if len(calls) == 2:
            raise MlflowException("the server went away")
        log(self, rows, model)

    monkeypatch.setattr(StoredRun, "log", flaky)
    files = RunFolder(tmp_path / "run", "train", "x", 0)
    with files, Tracker(uri, Record("x", "run", {}, {}).kept(files.path), files.path, files) as shown:
        for step in range(1, 6):
            shown.row(files.numbers("metrics.jsonl", {"step": step, "reward/accuracy": step / 10}))
    history = client.get_metric_history(shown.run_id, "reward/accuracy")
    assert {m.step: m.value for m in history} == {step: step / 10 for step in range(1, 6)} and len(history) == 5
    assert shown.refused is None and client.get_run(shown.run_id).info.status == "FINISHED"


def test_a_store_that_takes_no_files_and_no_traces_gets_the_rest(tmp_path, monkeypatch):
    """Such as a server whose files lie where this machine may not write."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def refuses(*_, **__):
        raise MlflowException("access denied")

    uri, client = open_store(tmp_path)
    for name in ("log_artifact", "list_artifacts", "search_traces", "create_logged_model"):
        monkeypatch.setattr(MlflowClient, name, refuses)
    files = RunFolder(tmp_path / "run", "train", "x", 0)
    files.append("traces.jsonl", [{"step": 1, "id": "0", "text": "x"}])
    files.summary["checkpoint"] = "checkpoints/step-1"
    with files, Tracker(uri, Record("x", "run", {}, {}).kept(files.path), files.path, files) as shown:
        shown.row(files.numbers("metrics.jsonl", {"step": 1, "reward/accuracy": 0.5}))
        files.numbers("eval.jsonl", {"step": 1, "phase": "final", "eval/accuracy": 0.75})
    found = client.get_run(shown.run_id)
    assert found.data.metrics == {"reward/accuracy": 0.5, "eval/accuracy": 0.75}
    assert found.info.status == "FINISHED" and "access denied" in shown.refused
    client.update_run(shown.run_id, "RUNNING")
    with pytest.raises(MlflowException, match="access denied"):
        sync.folder(files.path, uri)
    assert client.get_run(shown.run_id).info.status == "FINISHED"


def test_a_parameter_that_hydra_takes_and_mlflow_does_not_has_another_name(tmp_path):
    uri, client = open_store(tmp_path)
    with view(tmp_path, uri, params={"prompt@eval.direct": "mine"}) as shown:
        shown.row(row(1, m=1.0))
    assert client.get_run(shown.run_id).data.params == {"prompt.eval.direct": "mine"}
    assert client.get_run(shown.run_id).data.metrics == {"m": 1.0}


def test_a_slow_store_does_not_slow_a_step(tmp_path, monkeypatch):
    import threading

    uri, _ = open_store(tmp_path)
    gate = threading.Event()
    monkeypatch.setattr(StoredRun, "log", lambda *_: gate.wait(30))
    with view(tmp_path, uri) as shown:
        for step in range(100):
            shown.row(row(step, m=1.0))  # would wait half an hour
        gate.set()


def test_a_folder_stays_the_same_run(tmp_path):
    uri, client = open_store(tmp_path)
    ids = []
    for _ in range(2):
        with view(tmp_path, uri) as shown:
            ids.append(shown.run_id)
    assert ids[0] == ids[1] and len(runs_of(tmp_path)) == 1
    assert client.get_run(ids[0]).info.status == "FINISHED"


def test_tracking_off(tmp_path):
    with view(tmp_path, None) as shown:
        shown.row(row(1, m=1.0))
    assert shown.run_id is None


def test_relative_databases_count_from_the_current_folder(tmp_path):
    assert absolute_uri("sqlite:///a/b.db", tmp_path) == f"sqlite:///{tmp_path.resolve()}/a/b.db"
    for uri in ("sqlite:////a/b.db", "http://127.0.0.1:5000"):
        assert absolute_uri(uri, tmp_path) == uri


def test_pages_name_their_runs():
    pages = compare_page(["a", "b"], "7"), curves_page(["a", "b"], "7")
    for page in pages:
        assert (
            page.startswith("/#/") and "runs=%5B%22a%22%2C%20%22b%22%5D" in page and "experiments=%5B%227%22%5D" in page
        )
    assert "metric=%22reward/accuracy%22" in pages[1]


def test_a_locked_database_is_waited_for(tmp_path):
    """Another writer holds it for two seconds; no step waits, and nothing is lost."""
    uri, _ = open_store(tmp_path)
    with view(tmp_path, uri) as tracked:
        files = RunFolder(tmp_path / "run", "train", "x", 0)
        other = sqlite3.connect(tmp_path / "outputs/mlflow.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        for step in range(1, 6):
            tracked.row(files.numbers("metrics.jsonl", {"step": step, "m": float(step)}))
        assert time.monotonic() - began < 1.5, "it is locked until two seconds have passed"
        time.sleep(2)
        other.execute("COMMIT")
        other.close()
    (run,) = runs_of(tmp_path)
    client = connect(uri)
    assert [point.value for point in client.get_metric_history(run.info.run_id, "m")] == [1, 2, 3, 4, 5]
    assert run.info.status == "FINISHED" and tracked.refused is None


def test_a_folder_whose_name_no_database_address_can_hold_is_refused_with_the_way_out(tmp_path):
    for name in ("a b", "100%", "#1", "狗"):
        assert absolute_uri("sqlite:///outputs/mlflow.db", tmp_path / name).endswith(f"{name}/outputs/mlflow.db")
    with pytest.raises(UserError, match=r"runs\?.*\n.*tracking\.uri=sqlite:////another/folder"):
        absolute_uri("sqlite:///outputs/mlflow.db", tmp_path / "runs?")
    with pytest.raises(UserError, match=r"x%20y: a database's address cannot hold %20\n"):
        absolute_uri("sqlite:///outputs/mlflow.db", tmp_path / "x%20y")  # it would be written into "x y"


def test_a_run_is_found_among_more_experiments_than_a_store_names_at_once(tmp_path, monkeypatch):
    uri, client = open_store(tmp_path)
    monkeypatch.setattr(
        MlflowClient, "search_experiments", partialmethod(MlflowClient.search_experiments, max_results=2)
    )
    monkeypatch.setattr("echoink.tracking.client._AT_ONCE", 3)
    record = Record("first", "run", {}, {}).kept(tmp_path)
    made = StoredRun(uri, record)
    for number in range(7):
        client.create_experiment(f"newer {number}")
    found = StoredRun(uri, replace(record, experiment="newer 6"))
    assert found.known and found.run_id == made.run_id and not made.known


def test_a_record_of_a_run_that_goes_on_names_the_data_of_now(tmp_path):
    (tmp_path / "run").mkdir()
    before = Record("x", "run", {}, {}, inputs=[{"digest": "old"}]).kept(tmp_path / "run")
    again = Record("x", "run", {}, {}, inputs=[{"digest": "new"}]).kept(tmp_path / "run")
    assert again.id == before.id and read_record(tmp_path / "run") == again and again.inputs == [{"digest": "new"}]
