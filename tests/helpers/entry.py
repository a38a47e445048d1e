"""What the tests of whole runs have in common."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from echoink import train
from echoink.tracking.client import absolute_uri, connect
from tests.helpers import processes

SMALL = [
    "experiment=quickstart",
    "dataset.train=16",
    "dataset.dev=3",
    "dataset.valid=6",
    "trainer.steps=2",
    "generation.max_new_tokens=48",
]


def until(there, started: processes.Started) -> None:
    """Wait for something that a process does."""
    deadline = time.time() + 120
    while not there():
        assert time.time() < deadline and started.running(), started.text()
        time.sleep(0.02)


def refused(words: Sequence[str], monkeypatch, capsys) -> str:
    """What `python -m echoink.train` says where it refuses a command line, in this process."""
    monkeypatch.setattr(train.signals, "install", lambda: None)
    monkeypatch.setattr(sys, "argv", ["echoink.train", *words])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mlflow_runs(folder: Path) -> list:
    client = connect(absolute_uri("sqlite:///outputs/mlflow.db", folder))
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
