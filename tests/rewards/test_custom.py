"""A user's reward: loaded when it is named, checked before training, named when it fails."""

import pytest

from echoink.common.errors import UserError
from echoink.common.signals import Preempted
from echoink.rewards import custom as custom_reward
from echoink.rewards.types import OnError


def written(tmp_path, text):
    file = tmp_path / "mine.py"
    file.write_text(text)
    return str(file)


def test_it_gets_the_completion_and_the_sample(tmp_path, samples):
    path = written(tmp_path, "def reward(completion, sample):\n    return completion.count(sample.options[0][0])\n")
    assert custom_reward.load(path, samples[0])("AA b", samples[0]) == 2.0


def test_it_may_be_any_python(tmp_path, samples):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    text += "@dataclass\nclass Rule:\n    cap: int\nRULE = Rule(9)\n"
    text += "def reward(completion, sample):\n    return float(len(completion) < RULE.cap)\n"
    assert custom_reward.load(written(tmp_path, text), samples[0])("short", samples[0]) == 1.0


def test_a_fault_names_the_file_whatever_key_gave_it(tmp_path, samples):
    path = written(tmp_path, "x = 1")
    with pytest.raises(UserError, match=f"^the reward {path} defines no function reward"):
        custom_reward.load(path, samples[0])
    with pytest.raises(UserError, match=f"^the reward {tmp_path}/none.py: no such file"):
        custom_reward.load(f"{tmp_path}/none.py", samples[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no function reward"),
        ("import nothing_such", "cannot be imported: ModuleNotFoundError"),
        ("def reward(", "cannot be imported: SyntaxError"),
        ("def reward(completion, sample):\n    return None", "failed on sample 0: TypeError"),
        ("def reward(completion, sample):\n    return float('nan')", "failed on sample 0: ValueError: it gave nan"),
        ("def reward(completion, sample):\n    return 1e39", "failed on sample 0: ValueError: it gave 1e\\+39"),
        ("def reward(completion, sample):\n    return 'good'", "failed on sample 0: TypeError: it gave 'good', a str"),
        ("def reward(completion, sample):\n    return [1.0]", "failed on sample 0: TypeError"),
        ("def reward(completion, sample):\n    raise SystemError('x')", "failed on sample 0: SystemError"),
        ("def reward(completion):\n    return 1", "failed on sample 0: TypeError"),
    ],
)
def test_a_bad_one_is_refused_before_training(tmp_path, samples, text, message):
    with pytest.raises(UserError, match=message):
        custom_reward.load(written(tmp_path, text), samples[0])


def test_a_missing_file_is_named(tmp_path, samples):
    with pytest.raises(UserError, match="no such file"):
        custom_reward.load(str(tmp_path / "gone.py"), samples[0])


LATER = """
import time
import numpy as np
def reward(completion, sample):
    if completion == "raise": raise KeyError("x")
    if completion == "hang":
        while True: time.sleep(0.01)
    return {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "1.0", "list": [1.0],
            "numpy": np.float32(0.5), "bool": True}.get(completion, 0.25)
"""


@pytest.mark.parametrize("completion", ["raise", "hang", "nan", "inf", "none", "text", "list"])
def test_a_fault_stops_the_run_or_counts_as_nothing_and_is_named(tmp_path, samples, capsys, completion):
    path = written(tmp_path, LATER)
    with pytest.raises(UserError, match=f"failed on sample {samples[0].id}.*\n.*{completion}.*reward.on_error=zero"):
        custom_reward.load(path, samples[0], OnError.stop, 0.1)(completion, samples[0])
    lenient = custom_reward.load(path, samples[0], OnError.zero, 0.1)
    assert [lenient(text, samples[0]) for text in (completion, completion, "numpy", "bool", "x")] == [
        0,
        0,
        0.5,
        1,
        0.25,
    ]
    assert capsys.readouterr().out.count("it counts as 0") == 1, "said once"


def test_zero_does_not_forgive_a_function_that_never_works(tmp_path, samples):
    with pytest.raises(UserError, match="failed on sample.*\n.*a right answer, on which it must work$"):
        custom_reward.load(written(tmp_path, "def reward(a, b):\n    return None"), samples[0], OnError.zero)


def test_a_fault_is_named_with_its_line(tmp_path, samples):
    text = "def reward(a, b):\n    return length(a)\ndef length(a):\n    return a['x']\n"
    with pytest.raises(UserError, match=r"\.py, line 4 failed on sample .*TypeError"):
        custom_reward.load(written(tmp_path, text), samples[0])


def test_a_module_beside_the_file_can_be_imported(tmp_path, samples):
    (tmp_path / "measures_of_mine.py").write_text("def words(text):\n    return float(len(text.split()))\n")
    text = "from measures_of_mine import words\ndef reward(completion, sample):\n    return words(completion)\n"
    assert custom_reward.load(written(tmp_path, text), samples[0])("one two three", samples[0]) == 3.0


def test_an_exit_inside_a_reward_is_an_error_like_any_other(tmp_path, samples):
    with pytest.raises(UserError, match="cannot be imported: SystemExit: 3"):
        custom_reward.load(written(tmp_path, "import sys\nsys.exit(3)"), samples[0])
    text = "import sys\ndef reward(completion, sample):\n    sys.exit(3)\n"
    with pytest.raises(UserError, match="failed on sample .*: SystemExit: 3"):
        custom_reward.load(written(tmp_path, text), samples[0])


def test_a_signal_inside_a_reward_is_no_fault_of_the_reward(tmp_path, samples):
    body = "    if 'asked' in completion:\n        raise Preempted\n    return 1.0\n"
    text = f"from echoink.common.signals import Preempted\ndef reward(completion, sample):\n{body}"
    for on_error in OnError:
        with pytest.raises(Preempted):
            custom_reward.load(written(tmp_path, text), samples[0], on_error)("asked to stop", samples[0])
