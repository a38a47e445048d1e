"""A curriculum by need: which samples, in which order."""

import json

import pytest

from echoink.common.errors import UserError
from echoink.data import synthetic
from echoink.data.sampler import GroupSampler
from echoink.data.splits import load
from echoink.pipeline.run import run
from echoink.planning.steps import of_curriculum
from tests.helpers.configs import config_of

NEEDS = ["both", "audio", "both", "undetermined", "image", "undetermined"]


@pytest.fixture
def labelled(tmp_path):
    synthetic.write(tmp_path / "set", 0, {"train": 6, "dev": 1, "valid": 2})
    index = tmp_path / "set/omni_rl_format_train.json"
    rows = [{**row, "need": need} for row, need in zip(json.loads(index.read_text()), NEEDS, strict=True)]
    index.write_text(json.dumps(rows))
    return tmp_path / "set"


def loaded(path, *words, train=True):
    config = config_of("dataset=rows", f"dataset.path={path}", *words)
    return load(config.dataset, config.eval, config.model, train)


def test_samples_of_the_needs_in_their_order(labelled):
    found = loaded(labelled, "dataset.curriculum=[both,undetermined]").train
    assert [s.id for s in found] == ["0", "2", "3", "5"]
    assert [s.id for s in loaded(labelled).train] == list("012345")


@pytest.mark.parametrize(
    ("words", "message"), [("[either]", "no sample needs either"), ("[both,neither]", "no sample needs neither")]
)
def test_a_need_that_is_not_there_is_said(labelled, words, message):
    with pytest.raises(UserError, match=message):
        loaded(labelled, f"dataset.curriculum={words}")


def test_a_set_without_labels_says_how_to_get_them(tmp_path):
    synthetic.write(tmp_path / "set", 0, {"train": 3, "dev": 1, "valid": 2})
    with pytest.raises(UserError, match="no row of .* has.*") as error:
        loaded(tmp_path / "set", "dataset.curriculum=[both]")
    assert "mode=difficulty" in str(error.value)


def test_the_training_split_can_be_evaluated_for_curation(labelled):
    found = loaded(labelled, "task=eval", "eval.split=train", train=False)
    assert [s.id for s in found.valid] == list("012345") and found.train == []


def test_an_epoch_goes_through_the_stages_in_order_shuffled_within():
    stages = [0, 1, 0, 1, 1, 0, 0, 1]
    sampler = GroupSampler(8, 2, 4, repeats=1, seed=0, stages=stages)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = list(sampler)[::2]
        assert sorted(order) == list(range(8)) and [stages[p] for p in order] == [0] * 4 + [1] * 4
        orders.append(order)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("prompts", "reached"),
    [
        (10, {"both": (3, 3), "audio": (5, 5)}),
        (8, {"both": (3, 3), "audio": (5, 5)}),
        (4, {"both": (3, 3), "audio": (1, 5)}),
        (2, {"both": (2, 3), "audio": (0, 5)}),
    ],
)
def test_how_far_a_run_comes_through_a_curriculum(prompts, reached):
    assert of_curriculum(["both", "audio"], ["audio"] * 5 + ["both"] * 3, prompts) == reached


def test_a_stage_that_a_run_never_comes_to_is_warned_of(labelled, tmp_path, capsys):
    words = ["dataset=rows", f"dataset.path={labelled}", "dataset.curriculum=[both,undetermined]", "dry_run=true"]
    small = ["trainer.steps=1", "trainer.warmup_steps=0", "trainer.prompts_per_step=2"]
    run(config_of(*words, *small, "trainer.micro_batch_prompts=1"), tmp_path / "plan")
    text = " ".join(capsys.readouterr().out.split())
    assert "curriculum: 2 of 2 both, 0 of 2 undetermined" in text
    assert "ends before the first sample that needs undetermined" in text
