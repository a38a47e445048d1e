"""Sweeps as a person starts them: jobs in processes of their own, launchers, an interruption, a search."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from echoink.config.paths import TINY
from tests.helpers import processes
from tests.helpers.entry import SMALL, mlflow_runs, until

echoink = processes.run


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("place")


def test_jobs_are_processes_that_know_the_users_folder_and_one_that_fails_stops_no_other(place):
    (place / "mine/trainer").mkdir(parents=True)
    (place / "mine/trainer/short.yaml").write_text("defaults: [default]\nsteps: 1\n")
    own = ["--config-dir", "mine", "trainer=short"]
    small = [*SMALL[1:4], SMALL[-1], "eval.base=false", "eval.limit=3", "eval.watched=0", "name=sweep"]
    done = echoink(place, "--multirun", *own, *small, "model.path=not_there_yet,tiny")
    (folder,) = (place / "outputs/sweep").iterdir()
    assert done.returncode == 1
    summaries = [json.loads((folder / str(job) / "summary.json").read_text()) for job in (0, 1)]
    assert [summary["status"] for summary in summaries] == ["failed", "finished"] and summaries[1]["steps"] == 1
    configs = [yaml.safe_load((folder / str(job) / "config.yaml").read_text()) for job in (0, 1)]
    assert [config["model"]["path"] for config in configs] == ["not_there_yet", "tiny"]
    ran = {json.loads((folder / str(job) / "environment.json").read_text())["process"] for job in (0, 1)}
    assert len(ran) == 2, "a process each"
    table = done.stdout[done.stdout.index("job  overrides") :]
    assert "model.path=not_there_yet" in table and "model.path=tiny" in table and "failed" in table
    assert "1 of 2 jobs did not finish" in done.stderr and "cannot load a model from not_there_yet" in done.stderr
    runs = {run.info.run_name: run for run in mlflow_runs(place) if run.data.tags["folder"].startswith(str(folder))}
    assert {name: run.info.status for name, run in runs.items()} == {
        "model.path=tiny": "FINISHED",
        next(name for name in runs if name.startswith("sweep ")): "FAILED",
    }
    parent = next(run for name, run in runs.items() if name.startswith("sweep "))
    assert runs["model.path=tiny"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    (place / "not_there_yet").symlink_to(TINY)  # what was missing is there now
    began = [(folder / str(job) / "environment.json").stat().st_mtime for job in (0, 1)]
    again = echoink(place, "--multirun", f"sweep.resume={folder}", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert again.returncode == 0, again.stderr
    assert [json.loads((folder / str(job) / "summary.json").read_text())["status"] for job in (0, 1)] == [
        "finished"
    ] * 2
    ended = [(folder / str(job) / "environment.json").stat().st_mtime for job in (0, 1)]
    assert ended[0] > began[0] and ended[1] == began[1], "only what had failed was run"
    assert "finished before" in again.stdout and len(list((folder / "unfinished").iterdir())) == 1
    assert (folder / "report.html").is_file() and "model.path" in (folder / "report.md").read_text()
    runs = [run for run in mlflow_runs(place) if run.data.tags["folder"].startswith(str(folder))]
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 3, "the same parent went on"


@pytest.mark.parametrize(
    "send",
    [
        # To the sweep's process alone, which passes it on; and as a terminal does.
        lambda started: started.send(signal.SIGINT),
        pytest.param(lambda started: os.killpg(started.pid, signal.SIGINT), marks=pytest.mark.slow),
    ],
    ids=["alone", "group"],
)
def test_an_interrupted_sweep_is_killed_everywhere_and_says_how_to_go_on(tmp_path, send):
    name = tmp_path / "it's here"  # a path that wants quoting
    name.mkdir()
    words = ["--multirun", *SMALL, "eval.base=false", "trainer.steps=500", "seed=0,1"]
    started = processes.start(name, *words)
    until(lambda: list(name.glob("outputs/quickstart/sweep_*/0/metrics.jsonl")), started)
    send(started)
    done = started.wait(60)
    assert done.returncode == 130 and "job 0 ends after its current work" in done.stdout
    assert "error: 2 of 2 jobs did not finish, 1 of them not begun" in done.stderr
    assert "run only these: python -m echoink.train --multirun" in done.stderr and "sweep.resume=" in done.stderr
    (summary,) = (json.loads(path.read_text()) for path in name.glob("outputs/quickstart/sweep_*/*/summary.json"))
    assert summary["status"] == "killed"
    assert sorted(run.info.status for run in mlflow_runs(name)) == ["KILLED", "KILLED"]


def test_a_search_through_another_launcher_goes_on_after_a_failed_trial(place):
    """Optuna chooses, submitit's local executor runs; a prompt over its cap makes a trial fail."""
    space = ["reward.lambda_fmt=interval(0,2)", "model.max_prompt_tokens=choice(3,4096)", "trainer.steps=1"]
    search = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.max_failure_rate=1"]
    size = [
        "hydra.sweeper.sampler.seed=0",  # draws 3 first, then 4096
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=2",
        "hydra/launcher=submitit_local",
    ]
    done = echoink(
        place, "--multirun", *SMALL, "name=search", "eval.base=false", "tracking=off", *space, *search, *size
    )
    (folder,) = (place / "outputs/search").iterdir()
    summaries = [json.loads((folder / str(job) / "summary.json").read_text()) for job in (0, 1)]
    assert [summary["status"] for summary in summaries] == ["failed", "finished"], done.stderr
    assert done.returncode == 1 and not (folder / "2").exists()
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert best["best_value"] == summaries[1]["final"]["accuracy"]
    values = {
        line.split("reward.lambda_fmt=")[1].split(",")[0] for line in done.stdout.splitlines() if "lambda_fmt=" in line
    }
    assert len(values) == 2, "each trial tried another value, and the table names them"
