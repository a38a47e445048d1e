"""Responses out of a model's own right answers: which are kept, what is written, and that a run learns them."""

import json

import pytest

from echoink.common.errors import UserError
from echoink.curate import __main__ as curate
from echoink.curate import traces
from echoink.data import synthetic
from echoink.data.splits import read_split
from tests.helpers import processes


@pytest.fixture
def source(tmp_path):
    synthetic.write(tmp_path / "source", 0, {"train": 6, "dev": 2, "valid": 3})
    return tmp_path / "source"


@pytest.fixture
def answered(monkeypatch):
    """Made-up answers in the place of an evaluation: right ones by id."""
    asked = []

    def answer(source, checkpoint, seed, folder, words):
        asked.append((checkpoint, seed, list(words)))
        right = {"0": ["bb bb", "a", "a"], "1": ["x y z", "x y", "p q r s"], "2": []}
        rows = [
            {"id": id, "variant": "full", "completion": text, "correct": True, "format": True, "truncated": False}
            for id, texts in right.items()
            for text in texts
        ]
        last = {"id": "2", "variant": "full", "completion": "x", "correct": True, "format": True, "truncated": False}
        others = ("correct", False), ("format", False), ("truncated", True)
        rows += [last | {name: value} for name, value in others]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(traces, "answer_training_split", answer)
    return asked


def words(source, output, *more):
    return ["mode=traces", f"source={source}", "checkpoint=tiny", f"output={output}", *more]


def test_right_answers_in_the_form_are_the_responses_and_the_rest_is_left_out(source, tmp_path, answered, capsys):
    output = tmp_path / "taught"
    curate.main(words(source, output, "draws=3", "keep=2", "settings=[trainer.bf16=true]"))
    kept = read_split(output, "train")
    assert {sample.id: sample.responses for sample in kept} == {"0": ("a", "bb bb"), "1": ("x y", "x y z")}
    assert [len(read_split(output, split)) for split in ("dev", "valid")] == [2, 3]
    assert answered == [("tiny", 0, ["eval.samples=3", "eval.greedy=false", "eval.ablations=[]", "trainer.bf16=true"])]
    said = json.loads((output / "traces.json").read_text())
    assert said["questions"] == 2 and said["responses"] == 4 and said["right_answers"] == {"0": 1, "3": 2}
    assert "1 dropped: no right, well-formed answer among 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="is finished"):
        curate.main(words(source, output))


def test_the_most_diverse_begin_with_the_shortest_and_go_far(source, tmp_path, answered):
    output = tmp_path / "taught"
    curate.main(words(source, output, "keep=2", "order=diverse"))
    assert read_split(output, "train")[1].responses == ("x y", "p q r s")
    assert traces.diverse(["a b", "a b c d", "a c", "z"], 3) == ["z", "a b", "a c"]


def test_settings_that_cannot_be_are_refused_and_others_do_not_go_on(source, tmp_path, answered):
    replaces = ("settings=[eval.samples=2]", "settings holds eval.samples=2")
    for wrong, says in (("draws=0", "least 1"), ("order=longest", "longest"), ("kep=3", "mean keep"), replaces):
        with pytest.raises(UserError) as error:
            curate.main(words(source, tmp_path / "no", wrong))
        assert says in str(error.value)
    with pytest.raises(UserError, match="checkpoint=tinny: no such folder"):
        curate.main([*words(source, tmp_path / "no"), "checkpoint=tinny"])
    assert not (tmp_path / "no").exists()
    with pytest.raises(UserError, match="no such dataset"):
        curate.main(words(tmp_path / "nowhere", tmp_path / "no"))
    (tmp_path / "begun/.work").mkdir(parents=True)
    (tmp_path / "begun/.work/recipe.json").write_text("{}")
    with pytest.raises(UserError, match="begun with other settings"):
        curate.main(words(source, tmp_path / "begun"))


def test_a_model_teaches_itself_by_the_command_line(source, tmp_path):
    """The whole way: answers, choice, a supervised step."""
    short = "settings=[generation.max_new_tokens=64]"
    done = processes.run(tmp_path, *words("source", "taught", "draws=2", short), module="echoink.curate")
    assert done.returncode == 0, done.stderr
    for sample in read_split(tmp_path / "taught", "train"):
        assert all(text.startswith("<think>") and f"<answer>{sample.solution}" in text for text in sample.responses)
    command = done.stdout.strip().splitlines()[-1].partition("echoink.train ")[2].split()
    more = ["trainer.steps=1", "trainer.prompts_per_step=1", "trainer.micro_batch_prompts=1", "eval.base=false"]
    done = processes.run(tmp_path, *command, *more, "eval.watched=0", "tracking=off")
    assert done.returncode == 0, done.stderr
