"""The rows of a rollout, and what is said of a run that cannot learn."""

import pytest

from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.format import format_reward
from tests.helpers.trainers import G


def test_rollout_rows_tell_what_was_sampled(make_trainer, samples):
    rows = []
    trainer = make_trainer("trainer.steps=1", on_rollout=rows.extend)
    trainer.train()
    assert len(rows) == 2 * G and [row["g"] for row in rows] == list(range(G)) * 2
    for row in rows:
        sample = trainer._samples[row["id"]]
        assert row["step"] == 1
        assert row["accuracy"] == accuracy_reward(row["text"], sample.problem_type, sample.options, sample.solution)
        assert row["format"] == format_reward(row["text"])
        assert 0 < row["tokens"] <= 24
    for start in (0, G):
        assert sum(row["advantage"] for row in rows[start : start + G]) == pytest.approx(0, abs=1e-4)


def rollout_rows(step=1, n=8, **changes):
    fixed = {"step": step, "id": "7", "text": "x", "tokens": 5, "format": 1.0}
    rows = [{**fixed, "accuracy": g % 2, "total": 1 + g % 2, "advantage": float(g % 2)} for g in range(n)]
    return [{**row, **changes} for row in rows]


@pytest.mark.parametrize(
    ("changes", "rollouts", "said"),
    [
        ({}, 30, []),
        ({"text": " "}, 1, ["every completion is empty"]),
        ({"advantage": 0.0}, 1, ["nothing to learn"]),
        ({"advantage": 0.0}, 20, ["nothing to learn", "in 20 rollouts"]),
        ({"format": 0.0}, 19, []),
        ({"format": 0.0}, 20, ["format reward stayed near 0"]),
        ({"tokens": 10}, 1, ["cut at generation.max_new_tokens=10"]),
    ],
)
def test_a_run_that_cannot_learn_is_told_so_once(changes, rollouts, said):
    from echoink.training.rollout_log import LearningSignalMonitor

    watch = LearningSignalMonitor(cap=10)
    for step in range(1, rollouts + 1):
        watch(rollout_rows(step, **changes))
    assert len(watch.said) == len(said)
    assert all(text in warning for text, warning in zip(said, watch.said, strict=True))


def test_with_rejection_the_right_completions_are_the_signal(capsys):
    from echoink.training.rollout_log import LearningSignalMonitor

    watch = LearningSignalMonitor(cap=10, rejects=True)
    watch([{**rollout_rows(n=1)[0], "id": id, "accuracy": x, "advantage": x} for id, x in (("a", 1.0), ("b", 0.0))])
    assert "a right completion in 1 of 2 groups" in " ".join(capsys.readouterr().out.split()) and not watch.said
    watch([{**row, "accuracy": 0.0, "advantage": 0.0} for row in rollout_rows()])
    assert watch.said == ["no group of the first rollout has a right completion: there is nothing to learn from it"]


def test_one_good_rollout_starts_the_count_again():
    from echoink.training.rollout_log import LearningSignalMonitor

    watch = LearningSignalMonitor(cap=10)
    for step in range(2, 60):
        watch(rollout_rows(step, format=float(step % 15 == 0)))
    assert not watch.said


def test_the_first_rollout_says_in_how_many_groups_rewards_differ(capsys):
    """Three groups of two by hand: accuracy differs in the first, brevity in none, and in the third they cancel out."""
    from echoink.training.rollout_log import LearningSignalMonitor

    rewards = {"a": [(1, 1, 0.5), (0, 1, 0.5)], "b": [(1, 1, 0.5), (1, 1, 0.5)], "c": [(1, 0, 0.5), (0, 1, 0.5)]}
    rows = [
        {
            **rollout_rows(n=1)[0],
            "id": id,
            "accuracy": accuracy,
            "format": form,
            "brevity": short,
            "total": accuracy + form + short,
        }
        for id, group in rewards.items()
        for accuracy, form, short in group
    ]
    watch = LearningSignalMonitor(10, ["accuracy", "format", "brevity"])
    for step in (1, 2):
        watch([{**row, "step": step} for row in rows])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("signal") == 1
    assert "differ in 1 of 3 groups of the first rollout (accuracy in 2, format in 1, brevity in 0)" in said
