"""MLflow rebuilt and completed from folders: all of it, and nothing twice."""

import hashlib
import json
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from echoink import open as opening
from echoink import sync as echoink_sync
from echoink.common.errors import UserError
from echoink.planning import preflight
from echoink.run_folder.environment import environment
from echoink.tracking import sync
from echoink.tracking.client import Record, StoredRun, connect, experiment_id, read_record
from tests.helpers import stores
from tests.helpers.runs import make_run


def content(folder: Path) -> dict[str, list]:
    """Every row of every table of the store, and every artifact's digest."""
    database = sqlite3.connect(folder / "mlflow.db")
    names = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
    found = {name: sorted(map(repr, database.execute(f"select * from {name}"))) for name in names}
    files = [path for path in (folder / "mlartifacts").rglob("*") if path.is_file()]
    found["files"] = sorted(f"{path} {hashlib.md5(path.read_bytes()).hexdigest()}" for path in files)
    return found


@pytest.fixture
def outputs(tmp_path, dataset, monkeypatch):
    """A sweep of two jobs, one of which failed, and a run."""
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "outputs/sweep"
    sweep.mkdir(parents=True)
    stores.put(tmp_path)
    (sweep / "sweep.json").write_text(json.dumps({"status": "failed", "overrides": []}))
    parent = Record("made", "sweep", {}, {}, parent=None).kept(sweep)
    make_run(sweep / "0", ["seed=0"], dataset=dataset, parent=parent.id)
    make_run(sweep / "1", ["seed=1"], status="failed", parent=parent.id)
    make_run(tmp_path / "outputs/run", ["grpo.beta=0"])
    return tmp_path / "outputs"


def test_everything_is_rebuilt_and_a_second_time_changes_nothing(outputs, capsys):
    assert echoink_sync.main(["outputs"]) == 0 and "4 of 4 folders" in capsys.readouterr().out
    client = connect(f"sqlite:///{outputs}/mlflow.db")
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "made"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "sweep": "FAILED",
        "seed=0": "FINISHED",
        "seed=1": "FAILED",
        "grpo.beta=0": "FINISHED",
    }
    child = runs["seed=0"]
    assert child.data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id
    assert "mlflow.parentRunId" not in runs["grpo.beta=0"].data.tags
    assert (child.info.start_time, child.info.end_time) == (1000, 61_000)
    history = client.get_metric_history(child.info.run_id, "reward/accuracy")
    assert [(m.step, m.timestamp, m.value) for m in history] == [(1, 1001, 0.8), (2, 1002, 0.8)]
    assert [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, "eval/accuracy")] == [
        (0, 0.4),
        (2, 0.8),
    ]
    (model,) = client.search_logged_models([experiment], f"source_run_id = '{child.info.run_id}'")
    assert model.name == "step-2" and [(m.key, m.value) for m in model.metrics] == [("eval/accuracy", 0.8)]
    assert model.tags["checkpoint"] == str(outputs / "sweep/0/checkpoints/step-2")
    assert json.loads((outputs / "sweep/0/summary.json").read_text())["mlflow"]["run_id"] == child.info.run_id
    before = content(outputs)
    assert echoink_sync.main(["outputs"]) == 0
    assert content(outputs) == before


def test_a_group_is_a_trace_with_picture_sound_feedback_and_gold(outputs):
    stored = sync.folder(outputs / "sweep/0", f"sqlite:///{outputs}/mlflow.db")
    found = stored.client.search_traces(locations=[stored.experiment_id], run_id=stored.run_id)
    (trace,) = found
    root, *spans = sorted(trace.data.spans, key=lambda span: span.parent_id is not None)
    parts = root.inputs["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "input_audio", "text"]
    assert [span.outputs for span in spans] == ["text 0", "text 1"]
    said = [(a.name, a.value, a.span_id) for a in trace.info.assessments]
    for span in spans:
        mine = {name: value for name, value, at in said if at == span.span_id}
        assert mine == {"accuracy": 1.0, "format": 0.0, "total": 1.0, "advantage": 0.5}
    assert ("gold", "B") in [(name, value) for name, value, at in said if at is None]
    attachments = (outputs / "mlartifacts").rglob("attachments/*")
    assert sorted(path.read_bytes()[:4] for path in attachments) == [b"RIFF", b"\xff\xd8\xff\xe0"], "a sound, a picture"


def test_what_a_store_has_already_is_completed(outputs):
    """A server that went away after the first step: the rest comes, the first step stays single."""
    place = outputs / "run"
    stored = StoredRun(f"sqlite:///{outputs}/mlflow.db", read_record(place))
    stored.log([json.loads((place / "metrics.jsonl").read_text().splitlines()[0])])
    again = sync.folder(place, f"sqlite:///{outputs}/mlflow.db")
    assert again.run_id == stored.run_id
    assert [m.step for m in again.client.get_metric_history(again.run_id, "reward/accuracy")] == [1, 2]


def test_a_configuration_of_the_same_size_replaces_the_one_before(outputs, tmp_path):
    """As after `resume_allow`: 180 steps in place of 120."""
    place, uri = outputs / "run", f"sqlite:///{outputs}/mlflow.db"
    sync.folder(place, uri)
    text = (place / "config.yaml").read_text()
    (place / "config.yaml").write_text(text.replace("seed: 0\n", "seed: 9\n"))
    again = sync.folder(place, uri)
    there = again.client.download_artifacts(again.run_id, "config.yaml", str(tmp_path))
    assert Path(there).read_text() == (place / "config.yaml").read_text() != text


def test_a_step_that_was_taken_again_and_came_out_otherwise_has_its_new_numbers_and_completions(outputs):
    place, uri = outputs / "run", f"sqlite:///{outputs}/mlflow.db"
    stored = sync.folder(place, uri)
    metrics, texts = ([json.loads(line) for line in (place / f"{name}.jsonl").open()] for name in ("metrics", "traces"))
    metrics[1] |= {"reward/accuracy": 0.125, "timestamp": metrics[1]["timestamp"] + 60}
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    new = [row | {"text": f"taken again {row['g']}"} for row in texts]
    (place / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    sync.folder(place, uri)
    sync.folder(place, uri)
    history = stored.client.get_metric_history(stored.run_id, "reward/accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.8), (2, 0.8), (2, 0.125)]
    assert stored.client.get_run(stored.run_id).data.metrics["reward/accuracy"] == 0.125
    assert len(stored.client.get_metric_history(stored.run_id, "reward/format")) == 2, "what is the same stays single"
    (trace,) = stored.client.search_traces(locations=[stored.experiment_id], run_id=stored.run_id)
    assert "taken again 1" in [span.outputs for span in trace.data.spans]


def test_a_run_without_a_process_is_killed_and_one_that_goes_on_is_left_alone(outputs, capsys):
    place = outputs / "run"
    summary = json.loads((place / "summary.json").read_text())
    (place / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    written = environment()
    assert written["process"] == os.getpid()
    (place / "environment.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="is still running"):
        sync.folder(place, f"sqlite:///{outputs}/mlflow.db")
    (place / "environment.json").write_text(json.dumps(written | {"host": "container-1a2b"}))
    with pytest.raises(UserError, match="on another machine: killed=true"):
        sync.folder(place, f"sqlite:///{outputs}/mlflow.db")
    assert echoink_sync.main([str(place), f"uri=sqlite:///{outputs}/mlflow.db"]) == 1
    assert "on another machine: killed=true" in " ".join(capsys.readouterr().out.split())
    stored = sync.folder(place, f"sqlite:///{outputs}/mlflow.db", killed=True)
    assert stored.client.get_run(stored.run_id).info.status == "KILLED"
    said = json.loads((place / "summary.json").read_text())
    assert said["status"] == "killed" and abs(said["ended"] - 1000 * time.time()) < 60_000
    assert sync.folder(place, f"sqlite:///{outputs}/mlflow.db").run_id == stored.run_id, "a second time changes nothing"
    (place / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    (place / "environment.json").write_text(json.dumps(written | {"process_started": 0.0}))
    stored = sync.folder(place, f"sqlite:///{outputs}/mlflow.db")
    assert stored.client.get_run(stored.run_id).info.status == "KILLED"


def test_a_run_that_went_further_has_both_checkpoints_as_models(outputs):
    place, uri = outputs / "run", f"sqlite:///{outputs}/mlflow.db"
    stored = sync.folder(place, uri)
    further = json.loads((place / "summary.json").read_text()) | {"steps": 4, "checkpoint": "checkpoints/step-4"}
    (place / "summary.json").write_text(json.dumps(further))
    for _ in range(2):
        sync.folder(place, uri)
    found = stored.client.search_logged_models([stored.experiment_id], f"source_run_id = '{stored.run_id}'")
    assert sorted(model.name for model in found) == ["step-2", "step-4"]


def test_the_jobs_of_a_sweep_that_was_copied_belong_to_the_copy(outputs):
    assert echoink_sync.main(["outputs"]) == 0
    shutil.copytree(outputs / "sweep", outputs / "copy")
    assert echoink_sync.main(["outputs/copy"]) == 0
    client = connect(f"sqlite:///{outputs}/mlflow.db")
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "made"]
    runs = client.search_runs([experiment])
    ids = {run.data.tags["echoink.id"]: run.info.run_id for run in runs}
    for sweep in ("sweep", "copy"):
        parent = ids[read_record(outputs / sweep).id]
        children = [ids[read_record(outputs / sweep / job).id] for job in "01"]
        found = [run.info.run_id for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
        assert sorted(found) == sorted(children)


def test_an_experiment_that_is_deleted_is_refused_with_the_way_to_restore_it(outputs):
    uri = f"sqlite:///{outputs}/mlflow.db"
    client = connect(uri)
    id = experiment_id(client, "gone", uri)
    preflight.check_store(uri, "gone")
    client.delete_experiment(id)
    with pytest.raises(UserError, match=f"gone .* is deleted\n.*mlflow experiments restore --experiment-id {id}"):
        preflight.check_store(uri, "gone")


@pytest.mark.parametrize("name", ["../x", "a#b", "a?b", "team/tiny", "50%20", "ü" * 300, "..", "a b"])
def test_the_files_of_an_experiment_are_beside_the_store_whatever_its_name(outputs, name):
    client = connect(f"sqlite:///{outputs}/mlflow.db")
    run = client.create_run(experiment_id(client, name, f"sqlite:///{outputs}/mlflow.db"))
    client.log_text(run.info.run_id, "text", "note.txt")
    (written,) = outputs.parent.rglob("note.txt")
    assert len(written.relative_to(outputs / "mlartifacts").parts) == 4  # experiment, run, artifacts, file


def test_an_experiment_that_the_store_does_not_take_is_named(outputs):
    uri = f"sqlite:///{outputs}/mlflow.db"
    with pytest.raises(UserError, match="takes no experiment"):
        experiment_id(connect(uri), "x" * 600, uri)


def test_base_and_final_at_one_step_are_both_there(outputs):
    """As of task=compare: the base was sent during the run, the other must not be taken for it."""
    place = outputs / "run"
    rows = [json.loads(line) | {"step": 0} for line in (place / "eval.jsonl").read_text().splitlines()]
    (place / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = StoredRun(f"sqlite:///{outputs}/mlflow.db", read_record(place))
    stored.log(rows[:1])
    again = sync.folder(place, f"sqlite:///{outputs}/mlflow.db")
    history = again.client.get_metric_history(again.run_id, "eval/accuracy")
    assert [(m.step, m.value) for m in history] == [(0, 0.4), (0, 0.8)]
    assert again.client.get_run(again.run_id).data.metrics["eval/accuracy"] == 0.8


def test_a_child_that_was_made_before_its_parent_finds_it(outputs):
    child = sync.folder(outputs / "sweep/0", f"sqlite:///{outputs}/mlflow.db")
    assert "mlflow.parentRunId" not in child.client.get_run(child.run_id).data.tags
    assert echoink_sync.main(["outputs"]) == 0
    assert "mlflow.parentRunId" in child.client.get_run(child.run_id).data.tags


def test_a_folder_that_fails_stops_no_other(outputs, capsys):
    (outputs / "run/metrics.jsonl").write_text("{\n")
    assert echoink_sync.main(["outputs"]) == 1
    said = capsys.readouterr().out
    assert "3 of 4 folders" in said and "outputs/run" in said


def test_only_what_a_sweep_has_set_aside_is_left_out(tmp_path, monkeypatch):
    """Whatever the folders above are called."""
    seen, below = [], tmp_path / "unfinished/outputs"
    make_run(below / "run")
    make_run(below / "sweep/unfinished/0-1")
    monkeypatch.setattr(echoink_sync, "folder", lambda place, uri, killed: seen.append(place))
    assert echoink_sync.main([str(below)]) == 0 and seen == [below / "run"]


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        echoink_sync.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"no folder there has a tracking\.json"):
        echoink_sync.main([str(tmp_path)])


def test_a_copy_of_a_run_becomes_a_run_of_its_own_and_one_that_was_moved_stays_the_same(outputs):
    run, copy, moved = (outputs / name for name in ("run", "copy", "moved"))
    (run / "tracking.json").unlink()
    first = Record("made", "run", {}, {"folder": str(run)}).kept(run)
    shutil.copytree(run, copy)
    assert echoink_sync.main(["outputs/copy"]) == 0
    own = read_record(copy)
    assert own.id != first.id and own.tags["folder"] == str(copy) and read_record(run) == first
    run.rename(moved)
    assert Record("made", "run", {}, {"folder": str(moved)}).kept(moved).id == first.id


def test_a_run_opens_where_its_store_was_rebuilt_and_a_copy_opens_its_own_page(outputs):
    """A store that is made anew gives every run another id than the one in its summary."""
    place, uri = outputs / "run", f"sqlite:///{outputs}/mlflow.db"
    record = json.loads((place / "tracking.json").read_text())
    (place / "tracking.json").write_text(json.dumps(record | {"tags": {"folder": str(place)}}))
    first = sync.folder(place, uri)
    assert first.run_id in opening.page(place).path
    first.client.delete_run(first.run_id)
    with pytest.raises(UserError, match="does not have the run of"):
        opening.page(place)
    again = sync.folder(place, uri)
    assert again.run_id != first.run_id and again.run_id in opening.page(place).path
    copy = shutil.copytree(place, outputs / "copy")
    with pytest.raises(UserError, match="does not have the run of .*copy"):
        opening.page(copy)
    own = sync.folder(copy, uri)
    assert own.run_id in opening.page(copy).path and again.run_id in opening.page(place).path
    assert json.loads((copy / "summary.json").read_text())["mlflow"]["run_id"] == own.run_id
