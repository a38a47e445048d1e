"""Names and values of what a step logs."""

import pytest

from echoink.evaluation.reflection import SIGNS
from echoink.rewards.terms import ExtraReward, Reward
from echoink.training.metrics import METRICS, metrics_of
from tests.helpers.trainers import Catch, G


def test_stable_metric_names(make_trainer):
    catch = Catch()
    make_trainer("trainer.steps=2", callbacks=[catch]).train()
    rows = catch.rows
    assert len(rows) == 2
    expected = {
        "reward/accuracy",
        "reward/format",
        "reward/total",
        "completion/mean_length",
        "completion/clipped_ratio",
    }
    expected |= {"grpo/kl", "grpo/entropy", "grpo/zero_std_ratio", *METRICS.values()} - {"train/skipped"}
    expected |= {f"time/{name}" for name in ("media", "rollout", "reward", "logprob", "update", "step")}
    expected |= {f"reflection/{name}" for name in (*SIGNS, "words")}
    assert all(set(row) == expected | {"perf/completion_tokens_per_second"} for row in rows)
    parts = sum(rows[1][name] for name in ("time/rollout", "time/reward", "time/logprob", "time/update"))
    assert parts <= rows[1]["time/step"]


def test_what_is_no_number_is_left_out():
    """TRL averages a metric that is NaN to None."""
    logs = {"loss": 0.1, "grad_norm": None, "grpo/kl": None, "reward/total": 1.0, "frac_reward_zero_std": 0.5}
    assert metrics_of(logs) == {"train/loss": 0.1, "reward/total": 1.0}


def test_a_users_reward_is_weighted_and_logged(make_trainer, samples):
    rows, catch = [], Catch()
    trainer = make_trainer(
        "trainer.steps=1",
        callbacks=[catch],
        on_rollout=rows.extend,
        extra_rewards=[ExtraReward("custom", lambda completion, sample: float(len(completion)), 0.5)],
    )
    trainer.train()
    lengths = [len(row["text"]) for row in rows]
    assert [row["custom"] for row in rows] == lengths
    assert catch.rows[0]["reward/custom"] == pytest.approx(sum(lengths) / len(lengths))
    total = sum(row["accuracy"] + row["format"] + 0.5 * row["custom"] for row in rows) / len(rows)
    assert catch.rows[0]["reward/total"] == pytest.approx(total)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_zero_std_ratio_is_the_share_of_groups_whose_rewards_are_alike_whatever_divides_advantages(
    make_trainer, samples, scale
):
    def one_group_alike(texts, asked):
        return [1.0 if sample.id == samples[0].id else float(row % 2) for row, sample in enumerate(asked)]

    trainer = make_trainer(f"grpo.scale={scale}", rewards=[Reward("accuracy", one_group_alike, 1.0)])
    trainer._generate_and_score_completions([{"prompt": s.id} for s in samples[:2] for _ in range(G)])
    assert trainer._metrics["train"]["grpo/zero_std_ratio"] == [0.5]
