"""The loss of a step: against an independent float64 GRPO, packed against plain rows, variants against variants."""

import functools

import pytest
import torch

from echoink.models.loading import load_model
from echoink.rewards.terms import Reward
from tests.helpers.tiny import tiny_model, tiny_reference
from tests.helpers.trainers import Catch, G, one_step, oracle, weights


@pytest.mark.parametrize(
    ("lambda_acc", "lambda_fmt", "scale", "packed"),
    [(1.0, 1.0, "group", True), (0.3, 2.0, "group", True), (1.0, 0.5, "batch", True), (1, 1, "none", False)],
)
def test_loss_and_gradient_are_those_of_a_handwritten_float64_grpo(
    make_trainer, samples, lambda_acc, lambda_fmt, scale, packed
):
    reference = tiny_reference().double()
    policy = tiny_model().double()
    with torch.no_grad():  # away from the reference, so that the KL term counts
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            parameter.add_(0.02 * noise * parameter.std())
    rewards = [f"reward.lambda_acc={lambda_acc}", f"reward.lambda_fmt={lambda_fmt}", f"grpo.scale={scale}"]
    rewards.append(f"grpo.shared_prefix={str(packed).lower()}")
    trainer = make_trainer("grpo.beta=0.05", *rewards, model=policy, reference=reference)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    ids = [sample.id for sample in samples[:3] for _ in range(G)]
    scored = trainer._generate_and_score_completions([{"prompt": id} for id in ids])
    lengths = scored["completion_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1 and len(set(scored["prompt_mask"].sum(1).tolist())) > 1, "wants ragged rows"
    loss = trainer._compute_loss(trainer.model, scored)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    named = [p for p in policy.parameters() if p.grad is not None]
    policy.zero_grad()
    expected, advantages = oracle(trainer, policy, reference, ids, scored, (lambda_acc, lambda_fmt), scale=scale)
    assert (advantages != 0).any(), "wants a group with a signal"
    assert torch.allclose(scored["advantages"].double(), advantages, atol=1e-6)
    assert abs(loss.item() - expected.item()) <= 1e-6
    expected_gradient = torch.cat([g.flatten() for g in torch.autograd.grad(expected, named)])
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() <= 1e-6


@pytest.mark.parametrize("packed", ["true", "false"])
def test_rejection_is_a_supervised_step_on_the_right_completions(make_trainer, samples, packed):
    """Cross-entropy on the right completions alone, each by its mean, over all G; a group that is all right counts."""
    rows, model = [], tiny_model()
    batch = ("trainer.prompts_per_step=3", "trainer.micro_batch_prompts=3", "grpo.beta=0")
    # whatever the tiny model says: all of the first group is right, and one of each other
    right = Reward("accuracy", lambda texts, _: [float(row < G or row % G == 1) for row in range(len(texts))], 1.0)
    settings = (*batch, "grpo.advantage=rejection", f"grpo.shared_prefix={packed}")
    trainer = make_trainer(*settings, model=model, rewards=[right], on_rollout=rows.extend)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    ids = [sample.id for sample in samples[:3] for _ in range(G)]
    scored = trainer._generate_and_score_completions([{"prompt": id} for id in ids])
    expected = [1.0] * G + [0.0, 1.0, 0.0, 0.0] * 2
    assert scored["advantages"].tolist() == expected == [row["advantage"] for row in rows]
    trainer._compute_loss(trainer.model, scored).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    named = [p for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    terms = []
    for row, sample_id in enumerate(ids):
        if expected[row]:
            completion = scored["completion_ids"][row][scored["completion_mask"][row].bool()]
            prompt = trainer._prompt_processor(trainer._samples[sample_id])
            tokens = torch.cat([prompt.input_ids, completion])[None]
            logits = model(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), **prompt.media, use_cache=False
            ).logits
            at = slice(len(prompt.input_ids) - 1, -1)
            terms.append(torch.nn.functional.cross_entropy(logits[0, at], completion))
    right = torch.cat([g.flatten() for g in torch.autograd.grad(torch.stack(terms).sum() / len(ids), named)])
    assert (gradient - right).norm() <= 2e-5 * right.norm()


def test_on_policy_cispo_is_dapo_and_later_it_is_not(make_trainer, samples):
    gradients = [one_step(make_trainer, samples, f"grpo.loss={loss}")[3] for loss in ("dapo", "cispo", "grpo")]
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[0].norm()
    assert (gradients[0] - gradients[2]).norm() > 0.01 * gradients[0].norm()
    trained = []
    for loss in ("dapo", "cispo"):
        settings = ("grpo.updates_per_rollout=2", "trainer.learning_rate=1e-3", "trainer.steps=2", "grpo.clip=0.01")
        trainer = make_trainer(f"grpo.loss={loss}", *settings)
        trainer.train()
        trained.append(weights(trainer.model))
    assert not torch.allclose(*trained, atol=1e-6)


def test_standardized_per_group_only_the_ratio_of_the_rewards_matters(make_trainer, samples):
    """Up to the 1e-4 beside the standard deviation; without the standardization the size matters too."""

    @functools.cache
    def gradient(scale, acc, fmt):
        rewards = (f"grpo.scale={scale}", f"reward.lambda_acc={acc}", f"reward.lambda_fmt={fmt}")
        settings = ("grpo.beta=0", "grpo.group_size=16", *rewards)
        return one_step(make_trainer, samples, *settings)[3]

    def apart(scale, first, second):
        one, other = gradient(scale, *first), gradient(scale, *second)
        return float((one - other).norm() / one.norm())

    assert apart("group", (1, 0.5), (4, 2)) < 1e-3 < 1e-2 < apart("group", (1, 0.5), (1, 2))
    assert apart("none", (1, 0.5), (4, 2)) == pytest.approx(3, abs=1e-3)


def test_log_probabilities_of_a_batch_are_those_of_its_prompts_one_by_one(make_trainer, samples):
    trainer = make_trainer()
    trainer.model.train()
    ids = [sample.id for sample in samples[:4] for _ in range(G)]
    scored = trainer._generate_and_score_completions([{"prompt": id} for id in ids])
    with torch.no_grad():
        together, _ = trainer._log_probabilities(trainer.model, scored)
        for row in range(len(together)):
            prompt = trainer.rollout.prompts[row // G]
            length = int(scored["completion_mask"][row].sum())
            ids = torch.cat([prompt.input_ids, scored["completion_ids"][row, :length]])[None]
            logits = tiny_model().eval()(ids, attention_mask=torch.ones_like(ids), **prompt.media).logits
            alone = logits[0, len(prompt.input_ids) - 1 : -1].log_softmax(-1).gather(1, ids[0, -length:, None])[:, 0]
            assert (together[row, :length] - alone).abs().max() <= 1e-5


@pytest.mark.parametrize(  # every pair of values
    ("updates", "beta", "adapter"), [(1, 0.05, "none"), (1, 0, "lora"), (2, 0, "none"), (2, 0.05, "lora")]
)
def test_packed_and_plain_rows_train_the_same_model_with_the_same_metrics(make_trainer, adapter, beta, updates):
    found = []
    for packed in ("true", "false"):
        catch = Catch()
        torch.manual_seed(0)  # the adapter's initial weights
        trainer = make_trainer(
            f"grpo.shared_prefix={packed}",
            f"grpo.beta={beta}",
            f"adapter={adapter}",
            f"grpo.updates_per_rollout={updates}",
            "trainer.steps=2",
            "trainer.learning_rate=1e-3",
            "trainer.micro_batch_prompts=1",
            "generation.max_new_tokens=64",
            callbacks=[catch],
        )
        before = weights(trainer.model)
        trainer.train()
        found.append((weights(trainer.model), catch.rows))
    (ours, our_rows), (plain, plain_rows) = found
    # AdamW moves a weight whose gradient is rounding alone (a key's bias) as far as any other, so few entries differ.
    assert (ours - plain).norm() <= 1e-3 * (plain - before).norm()
    for one, other in zip(our_rows, plain_rows, strict=True):
        for name in other:
            if not name.startswith(("time/", "perf/")):
                assert one[name] == pytest.approx(other[name], rel=1e-3, abs=2e-5), name


def test_beta_zero_needs_no_reference(make_trainer):
    trainer = make_trainer("grpo.beta=0", "trainer.steps=1")
    assert trainer.ref_model is None
    before = weights(trainer.model)
    trainer.train()
    assert not torch.equal(before, weights(trainer.model))


def test_variants_train_another_model(make_trainer):
    def trained(*settings):
        trainer = make_trainer("trainer.steps=2", "grpo.updates_per_rollout=2", "trainer.learning_rate=1e-3", *settings)
        trainer.train()
        return weights(trainer.model)

    default = trained()
    for other in ("grpo.loss=dapo", "grpo.scale=none", "grpo.clip=0.0001", "trainer.max_grad_norm=0.01"):
        assert not torch.equal(default, trained(other)), other


def test_the_reference_of_an_adapter_is_the_model_without_it(make_trainer, samples):
    trainer = make_trainer("adapter=lora", "grpo.beta=0.05")
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    batch = trainer._generate_and_score_completions([{"prompt": s.id} for s in samples[:2] for _ in range(G)])
    mask = batch["completion_mask"].bool()
    with torch.no_grad():
        own = trainer._log_probabilities(trainer.model, batch)[0]
    with torch.no_grad(), trainer.model.disable_adapter():
        base = trainer._log_probabilities(trainer.model, batch)[0]
    found = batch["ref_per_token_logps"]
    assert torch.equal(found, base) and (found - own)[mask].abs().max() > 0.1


def test_a_reference_with_towers_of_its_own_sees_with_them(make_trainer, samples):
    """The policy's towers are frozen, and other than the reference's."""
    policy, reference = load_model("tiny", freeze=("audio", "vision")), tiny_reference()
    with torch.no_grad():
        for tower in (policy.model.visual, policy.model.audio_tower):
            for weight in tower.parameters():
                weight.mul_(1.5)
    trainer = make_trainer("grpo.beta=0.05", model=policy, reference=reference)
    batch = trainer._generate_and_score_completions([{"prompt": s.id} for s in samples[:2] for _ in range(G)])
    with torch.no_grad():
        trainer.rollout = type(trainer.rollout)(**{**vars(trainer.rollout), "features": None})
        alone = trainer._log_probabilities(trainer.ref_model, batch)[0]
    assert (batch["ref_per_token_logps"] - alone).abs().max() <= 1e-5
