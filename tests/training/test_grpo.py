"""The pure functions of GRPO against TRL's own: loss and gradient of every variant, advantages, corrections."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer

from echoink.config.schema import Correction, Loss, Scale
from echoink.training import grpo

G, ROWS, WIDTH, CAP = 4, 8, 6, 9
MODES = [mode for mode in Correction if mode is not Correction.none]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def rows():
    """Log-probabilities of two groups of ragged completions, in float64."""
    lengths = torch.tensor([6, 1, 3, 4, 5, 6, 2, 4])
    return SimpleNamespace(
        logps=-random(ROWS, WIDTH, seed=1).abs(),
        old=-random(ROWS, WIDTH, seed=2).abs(),
        reference=-random(ROWS, WIDTH, seed=3).abs(),
        engine=-random(ROWS, WIDTH, seed=4).abs(),
        mask=torch.arange(WIDTH) < lengths[:, None],
        advantages=random(ROWS, seed=5),
    )


class Accelerator(SimpleNamespace):
    """One process."""

    device = torch.device("cpu")
    num_processes, process_index, sync_gradients = 1, 0, True

    def gather(self, tensor):
        return tensor

    def reduce(self, tensor, reduction):
        return tensor


def trl_trainer(logps, **settings):
    """What TRL's methods read of a trainer; its log-probabilities are given."""
    model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    args = {"use_bias_correction_kl": False, "delta": None, "steps_per_generation": 2, "gradient_accumulation_steps": 2}
    args |= {"per_device_train_batch_size": ROWS, "gradient_checkpointing_kwargs": None}
    told = {"aux_loss_enabled": False, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None}
    told |= {"importance_sampling_level": "token", "_entropy_bonus_enabled": False, "max_completion_length": CAP}
    told |= {"current_gradient_accumulation_steps": 2, "use_vllm": False, "beta": 0.0, "num_iterations": 1}
    told |= {"vllm_importance_sampling_correction": False, "mask_truncated_completions": False, "log_multimodal": False}
    told |= {"tools": [], "environments": None, "environment_factories": None, "pad_to_multiple_of": None}
    told |= {"multi_objective_aggregation": "sum_then_normalize", "num_generations": G}
    trainer = SimpleNamespace(model=model, args=SimpleNamespace(**args), accelerator=Accelerator(), **(told | settings))
    trainer._metrics = {"train": defaultdict(list)}
    trainer._logs = {name: [] for name in ("prompt", "completion", "advantages")} | {"rewards": defaultdict(list)}
    trainer._pending_extra_logs, trainer._pending_metrics = {}, {}
    trainer._tokenizer = SimpleNamespace(pad_token_id=0)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logps, torch.zeros_like(logps), None)
    return trainer


@pytest.mark.parametrize("loss", list(Loss), ids=lambda loss: loss.name)
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_of_every_variant_equal_trl(rows, loss, beta, on_policy, weighted):
    clip, accumulation, tokens = 0.2, 2, torch.tensor(40)
    weights = (
        grpo.engine_ratio(rows.old, rows.engine, rows.mask, how=Correction.token_truncate, largest=1.5)
        if weighted
        else None
    )
    theirs = rows.logps.clone().requires_grad_()
    trainer = trl_trainer(theirs, beta=beta, loss_type=loss.name, epsilon_low=clip)
    trainer.epsilon_high = 1 + clip if loss is Loss.cispo else clip
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = weighted
    ids = torch.zeros(ROWS, WIDTH, dtype=torch.long)
    inputs = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids}
    inputs |= {"completion_mask": rows.mask.long(), "advantages": rows.advantages, "num_items_in_batch": tokens}
    inputs |= {"ref_per_token_logps": rows.reference, "importance_sampling_ratio": weights}
    inputs |= {} if on_policy else {"old_per_token_logps": rows.old}
    wanted = GRPOTrainer._compute_loss(trainer, None, inputs)
    wanted.backward()

    logps = rows.logps.clone().requires_grad_()
    found = grpo.objective(
        logps,
        logps.detach() if on_policy else rows.old,
        rows.advantages,
        rows.mask,
        settings=grpo.ObjectiveSettings(loss, clip, beta, CAP),
        tokens=tokens * accumulation / trainer.args.steps_per_generation,
        reference=rows.reference if beta else None,
        weights=weights,
    ).loss
    found = found if loss in (Loss.dapo, Loss.cispo) else found / accumulation
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), abs=1e-9)
    assert theirs.grad.abs().max() > 1e-3
    assert (logps.grad - theirs.grad).abs().max() <= 1e-9


def trl_rollout(rows, rewards, weights, **settings):
    """TRL's own advantages and correction, of given rewards and log-probabilities."""
    trainer = trl_trainer(rows.old, reward_weights=weights, **settings)
    trainer.reward_func_names = [str(k) for k in range(len(weights))]
    completions = [[1] * int(length) for length in rows.mask.sum(1)]
    engine = [row[:length].tolist() for row, length in zip(rows.engine, rows.mask.sum(1), strict=True)]
    trainer._generate = lambda prompts: ([[1]] * ROWS, completions, None, [""] * ROWS, engine, {}, None, [])
    trainer._calculate_rewards = lambda *_: rewards
    return GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": "x"}] * ROWS), trainer


@pytest.mark.parametrize("scale", list(Scale), ids=lambda scale: scale.name)
def test_total_reward_and_advantages_equal_trl(rows, scale):
    rewards, weights = random(ROWS, 3, seed=6), torch.tensor([1.0, 0.5, -0.25], dtype=torch.float64)
    rewards[:G] = 1.0  # a group without a spread
    theirs, trainer = trl_rollout(rows, rewards, weights, scale_rewards=scale.name)
    total = grpo.total_reward(rewards, weights)
    found = grpo.advantages(total, G, scale)
    # TRL computes G / (G - 1) in float32, whatever the rewards are
    assert (found - theirs["advantages"]).abs().max() <= (1e-12 if scale is Scale.none else 5e-8)
    assert found[G:].abs().min() > 1e-3
    assert total.mean().item() == pytest.approx(trainer._metrics["train"]["reward"][0], abs=1e-9)
    deviation = grpo.standard_deviation(total, G, scale)
    share = (deviation == 0).double().mean().item()
    assert (
        share == pytest.approx(trainer._metrics["train"]["frac_reward_zero_std"][0]) == (scale is not Scale.batch) / 2
    )


@pytest.mark.parametrize("scale", list(Scale), ids=lambda scale: scale.name)
@pytest.mark.parametrize("group", [2, 8, 12, 16])
def test_equal_rewards_have_no_advantage_whatever_their_mean_is_rounded_to(scale, group):
    """Of eight times 1.2 the mean is not 1.2 in float32."""
    for value in (0.1, 0.2, 0.3, 0.7, 1.1, 1.2, 1.3, 1.7, 3.3):
        equal = torch.full((2 * group,), value)
        assert not grpo.advantages(equal, group, scale).any() and not grpo.standard_deviation(equal, group, scale).any()
        assert grpo.silent_rows(grpo.advantages(equal, group, scale), group).all()
    by_two_ways = torch.tensor([[1.0, 1, 0], [0, 0, 1]]).repeat(group, 1)
    totals = grpo.total_reward(by_two_ways, torch.tensor([0.3, 0.4, 0.7]))
    assert not torch.equal(totals[0], totals[1]) and not grpo.advantages(totals, group, scale).any()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_the_correction_for_an_engine_equals_trl(rows, mode):
    settings = {"vllm_importance_sampling_mode": mode.name, "vllm_importance_sampling_clip_max": 1.5}
    settings |= {"vllm_importance_sampling_clip_min": None, "scale_rewards": "group"}
    settings |= {"use_vllm": True, "vllm_importance_sampling_correction": True}
    theirs, _ = trl_rollout(rows, random(ROWS, 1), torch.ones(1, dtype=torch.float64), **settings)
    wanted = theirs["importance_sampling_ratio"]
    found = grpo.engine_ratio(rows.old, rows.engine, rows.mask, how=mode, largest=1.5)
    if mode in (Correction.token_truncate, Correction.token_mask):  # beyond a completion's end neither counts
        found, wanted = found * rows.mask, wanted * rows.mask
    assert (found - wanted).abs().max() <= 1e-6  # TRL takes an engine's numbers in float32
    assert found.max() == 1.5 or "mask" in mode.name


def test_an_unknown_log_probability_of_an_engine_counts_as_a_ratio_of_one(rows):
    rows.engine[0, 0] = float("nan")
    ratio = grpo.engine_ratio(rows.old, rows.engine, rows.mask, how=Correction.token_truncate, largest=1.5)
    assert ratio[0, 0] == 1 and ratio.isfinite().all()


@pytest.mark.parametrize("advantages", [[0.5, -0.5, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
def test_silent_groups_are_those_whose_advantages_are_all_zero(advantages):
    """Those of a group of which all completions are right are 1 with rejection: it learns."""
    silent = [False, False, True, True]
    assert grpo.silent_rows(torch.tensor(advantages, dtype=torch.float), 2).tolist() == silent


def test_the_kl_estimate_by_hand():
    logps, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -1.0]])
    assert grpo.kl(logps, reference)[0].tolist() == pytest.approx([0, 2.718281828 - 2])


def test_only_a_wholly_right_completion_is_kept_by_rejection():
    assert grpo.rejection(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 0, 1]


def test_rewards_that_differ_by_little_are_not_equal():
    found = grpo.advantages(torch.tensor([1.0, 1.001, 1.0, 1.001]), 4, Scale.none)
    assert found.tolist() == pytest.approx([-5e-4, 5e-4, -5e-4, 5e-4], rel=1e-3)


def test_a_ratio_at_the_bound_stays():
    two = torch.full((1, 1), math.log(2.0), dtype=torch.float64)
    how = {"how": Correction.token_mask, "largest": float(two.exp())}
    assert grpo.engine_ratio(two, 0 * two, torch.ones(1, 1).bool(), **how).item() == pytest.approx(2)
