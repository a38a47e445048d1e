"""A user's reward: loaded when it is named, checked before training, named when it fails."""

import pytest

from echoink import own_reward
from echoink.errors import UserError


def written(tmp_path, text):
    file = tmp_path / "mine.py"
    file.write_text(text)
    return str(file)


def test_it_gets_the_completion_and_the_sample(tmp_path, samples):
    path = written(tmp_path, "def reward(completion, sample):\n    return completion.count(sample.options[0][0])\n")
    assert own_reward.load(path, samples[0])("AA b", samples[0]) == 2.0


def test_it_may_be_any_python(tmp_path, samples):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    text += "@dataclass\nclass Rule:\n    cap: int\nRULE = Rule(9)\n"
    text += "def reward(completion, sample):\n    return float(len(completion) < RULE.cap)\n"
    assert own_reward.load(written(tmp_path, text), samples[0])("short", samples[0]) == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no function reward"),
        ("import nothing_such", "cannot be imported: ModuleNotFoundError"),
        ("def reward(", "cannot be imported: SyntaxError"),
        ("def reward(completion, sample):\n    return None", "failed on sample 0: TypeError"),
        ("def reward(completion, sample):\n    return float('nan')", "gave nan for sample 0"),
        ("def reward(completion, sample):\n    return 'good'", "failed on sample 0: ValueError"),
        ("def reward(completion):\n    return 1", "failed on sample 0: TypeError"),
    ],
)
def test_a_bad_one_is_refused_before_training(tmp_path, samples, text, message):
    with pytest.raises(UserError, match=message):
        own_reward.load(written(tmp_path, text), samples[0])


def test_a_missing_file_is_named(tmp_path, samples):
    with pytest.raises(UserError, match="no such file"):
        own_reward.load(str(tmp_path / "gone.py"), samples[0])
