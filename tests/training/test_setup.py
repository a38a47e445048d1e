import math

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
