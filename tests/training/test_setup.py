import math
from dataclasses import replace

import pytest

from echoink.data.splits import Splits
from echoink.models.rounding import bf16_slowdown
from echoink.training import setup
from tests.helpers.configs import config_of


@pytest.mark.parametrize(
    ("words", "slower", "warned"),
    [(["trainer.bf16=true"], 4.2, True), (["trainer.bf16=true"], 0.4, False), (["trainer.bf16=false"], 4.2, False)],
)
def test_bfloat16_on_a_cpu_that_is_slow_with_it_is_warned_of(words, slower, warned, samples, monkeypatch, capsys):
    monkeypatch.setattr(setup, "bf16_slowdown", lambda: slower)
    setup.build_job(config_of(*words), Splits(samples, [], samples), "tiny")
    said = "this CPU multiplies bfloat16 about 4 times as slowly as float32; faster: trainer.bf16=false"
    assert (said in " ".join(capsys.readouterr().out.split())) == warned


def test_the_slowdown_is_a_ratio_of_times():
    assert 0 < bf16_slowdown() < math.inf


@pytest.mark.parametrize(("trainer", "among"), [("fsdp2", 8), ("zero3", 64), ("none", 64)])
def test_fsdp2_divides_a_model_within_a_machine_and_zero3_among_all(monkeypatch, trainer, among):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    config = config_of("experiment=echoink_r1_7b", "dataset.path=x", f"trainer.sharding={trainer}")
    assert setup.divided_among(replace(config.trainer, processes=64)) == among
