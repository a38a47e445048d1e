"""An evaluation's folder that is given again: it goes on, and keeps what it has found."""

import json
from contextlib import suppress

import pytest

from echoink.common.errors import UserError
from echoink.config.schema import to_yaml
from echoink.run_folder import resume
from echoink.run_folder.folder import PREDICTIONS, RunFolder, read_summary
from tests.helpers.configs import config_of

WORDS = ("task=eval", "tracking=off", "generation.temperature=1")
NUMBERS = {"accuracy": 0.8}


@pytest.fixture
def folder(tmp_path):
    """An evaluation's, which has begun."""
    with RunFolder(tmp_path / "run", "eval", "tiny", 0) as files:
        files.write_text("config.yaml", to_yaml(config_of(*WORDS)))
        files.append("system.jsonl", [{"step": 0}])
    return files.path


def test_one_that_was_killed_before_its_first_answer_goes_on(folder):
    assert resume.begin(config_of(*WORDS), folder).again
    with pytest.raises(UserError, match="holds another run"):
        resume.begin(config_of(*WORDS, "generation.temperature=2"), folder)
    with pytest.raises(UserError, match="holds a run already"):
        resume.begin(config_of("tracking=off"), folder)  # a training


@pytest.mark.parametrize(
    ("word", "stay"),
    [
        ("generation.temperature=2", False),
        ("prompt.system=x", False),
        ("model.max_pixels=50176", False),
        ("eval.protocol=release", False),
        ("eval.samples=3", True),
        ("eval.limit=5", True),
        ("reward.match=exact", True),
        ("model.path=elsewhere", True),
    ],
)
def test_answers_to_another_prompt_or_sampled_in_another_way_are_set_aside(folder, word, stay, capsys):
    row = '{"id": "0"}\n'
    (folder / PREDICTIONS).write_text(row)
    key = word.partition("=")[0]
    begins = resume.begin(config_of(*WORDS, word, f"resume_allow=[{key}]"), folder)
    assert (folder / PREDICTIONS).read_text() == row, "nothing changes before all is checked"
    resume.cut_back(folder, begins)
    assert (folder / PREDICTIONS).is_file() == stay
    aside = [] if stay else [row]
    assert [path.read_text() for path in folder.glob("predictions-*.jsonl")] == aside
    assert (f"{key}: all is answered again" in " ".join(capsys.readouterr().out.split())) != stay


def fails(folder, config) -> dict:
    with suppress(UserError), RunFolder(folder, "eval", "tiny", 0) as files:
        files.write_text("config.yaml", to_yaml(config))
        raise UserError("answers of other weights", "")
    return read_summary(folder)


def test_a_finished_one_keeps_its_numbers_where_the_same_is_refused_or_stopped(folder):
    config = config_of(*WORDS)
    with RunFolder(folder, "eval", "tiny", 0) as files:
        files.summary["final"] = NUMBERS
    before = read_summary(folder)
    assert (before["status"], before["final"]) == ("finished", NUMBERS)
    assert fails(folder, config) == before
    assert json.loads((folder / "summary.json").read_text()) == before
    assert fails(folder, config_of(*WORDS, "eval.limit=5")) == before
    assert (folder / "config.yaml").read_text() == to_yaml(config), "so the numbers are still of what stands there"
    with suppress(UserError), RunFolder(folder, "eval", "tiny", 0) as files:
        files.append(PREDICTIONS, [{"id": "0"}])
        raise UserError("in the middle", "")
    after = read_summary(folder)
    assert (after["status"], after["final"]) == ("failed", None), "it has begun to answer anew"
