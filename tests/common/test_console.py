"""Numbers as the screen shows them."""

import os
import shlex
import subprocess
import sys

import pytest

from echoink.common import console
from echoink.common.console import counted, say
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 samples"), (1, "1 sample"), (1_200, "1,200 samples"), (1.0, "1 sample"), (0.5, "0.5 samples")],
)
def test_a_count_has_its_noun(number, shown):
    assert counted(number, "sample") == shown


def test_colons_in_a_path_or_an_answer_are_no_emoji(capsys):
    say("data", "/data/run:100:b · :dog:")
    assert "/data/run:100:b · :dog:" in capsys.readouterr().out


def test_a_page_of_a_server_is_where_it_is_and_that_of_a_database_needs_a_server(capsys):
    console.say_mlflow("https://mlflow.example.org/", "/#/run")
    assert "https://mlflow.example.org/#/run" in (said := capsys.readouterr().out) and "mlflow ui" not in said
    console.say_mlflow("sqlite:////a/mlflow.db", "/#/run")
    said = " ".join(capsys.readouterr().out.split())
    assert "mlflow ui --backend-store-uri sqlite:////a/mlflow.db" in said and "http://127.0.0.1:5000/#/run" in said


def test_a_reader_that_goes_away_ends_no_run(tmp_path):
    code = "from echoink.common.console import say\nfor n in range(9): say('step', 'x' * 9000)\nopen('done', 'w')"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -c 1"
    subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (tmp_path / "done").exists()
