"""The trainer against an independent float64 GRPO, and the promises of its sampler and its buffers."""

import inspect
import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from echoink.common.errors import UserError
from echoink.config.compose import compose
from echoink.config.schema import Adapter
from echoink.data.processor import PromptProcessor
from echoink.data.sampler import GroupSampler
from echoink.data.samples import DataType, Sample
from echoink.evaluation.reflection import SIGNS
from echoink.models.loading import load_model, load_reference, lora
from echoink.planning.steps import training_steps
from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.format import format_reward
from echoink.rewards.types import Match, ProblemType, Rule
from echoink.run_folder.folder import RunFolder
from echoink.tracking.client import Record
from echoink.tracking.logger import Tracker
from echoink.training.callbacks import Keeper, Recorder
from echoink.training.integration_reward import integration_of
from echoink.training.metrics import METRICS, metrics_of
from echoink.training.reward_functions import Reward, of_config
from echoink.training.trainer import EchoInkTrainer
from echoink.training.trl_config import arguments
from tests.files import picture, sound, video

G = 4


@pytest.fixture
def make_trainer(make_processor, samples, tmp_path):
    """A trainer on a model of its own; `settings` are overrides of the configuration."""

    def make(
        *settings,
        model=None,
        reference=None,
        chosen=samples[:6],
        workers=0,
        custom_reward=None,
        rewards=None,
        modality_dropout=0.0,
        rule=Rule.counterfactual,
        rule_weight=0.0,
        **extra,
    ):
        config = compose(
            [
                f"grpo.group_size={G}",
                "generation.max_new_tokens=24",
                "trainer.prompts_per_step=2",
                "trainer.micro_batch_prompts=2",
                *settings,
            ]
        )[0].config
        model = model or load_model("tiny")
        processor = replace(make_processor(model), workers=workers)
        wanted = replace(config.reward, integration=rule, lambda_int=rule_weight, match=Match.lenient)
        rows = config.trainer.micro_batch_prompts * config.grpo.group_size
        steps = training_steps(config.trainer, config.grpo.updates_per_rollout, len(chosen))
        args = arguments(config.trainer, config.grpo, config.generation, config.seed, steps, str(tmp_path))
        adapter = lora(4, 8, 0.0, ("q_proj", "v_proj")) if config.adapter.kind is Adapter.lora else None
        return EchoInkTrainer(
            model=model,
            reference=None if adapter else reference or load_reference("tiny"),
            processor=processor,
            samples=chosen,
            rewards=rewards or of_config(wanted, processor.prompt.thinks, custom_reward),
            args=args,
            settings=replace(config.grpo, modality_dropout=modality_dropout),
            adapter=adapter,
            integration=integration_of(wanted, processor, rows),
            **extra,
        )

    return make


class Catch(TrainerCallback):
    """Keeps the metrics of every step."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **_):
        self.rows.append(metrics_of(logs))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def oracle(trainer, model, reference, ids, scored, weights=(1.0, 1.0), beta=0.05, scale="group"):
    """The paper's algorithm, one completion at a time, in float64; positions are transformers' own.

    Returns:
        The loss of Eq. 2, to be differentiated, and the advantages of Eq. 1.
    """
    rewards, terms = [], []
    for row, sample_id in enumerate(ids):
        sample = trainer._samples[sample_id]
        completion = scored["completion_ids"][row][scored["completion_mask"][row].bool()]
        text = trainer.processing_class.decode(completion, skip_special_tokens=True)
        accuracy = accuracy_reward(text, sample.problem_type, sample.options, sample.solution)
        rewards.append(weights[0] * accuracy + weights[1] * format_reward(text))
        prompt = trainer._prompt_processor(sample)
        inputs = {"input_ids": torch.cat([prompt.input_ids, completion])[None], **prompt.media}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        log_p, log_ref = (
            m(**inputs, use_cache=False)
            .logits[0, len(prompt.input_ids) - 1 : -1]
            .log_softmax(-1)
            .gather(1, completion[:, None])[:, 0]
            for m in (model, reference)
        )
        terms.append((log_p, log_ref.detach()))
    grouped = torch.tensor(rewards, dtype=torch.float64).view(-1, G)
    spread = {"group": grouped.std(1, keepdim=True) + 1e-4, "batch": grouped.std() + 1e-4, "none": 1.0}[scale]
    advantages = ((grouped - grouped.mean(1, True)) / spread).flatten()
    losses = []
    for advantage, (log_p, log_ref) in zip(advantages, terms, strict=True):
        ratio = (log_p - log_p.detach()).exp()
        d = log_ref - log_p
        objective = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) - beta * (d.exp() - d - 1)
        losses.append(-objective.mean())
    return torch.stack(losses).mean(), advantages


@pytest.mark.parametrize(
    ("lambda_acc", "lambda_fmt", "scale", "packed"),
    [(1.0, 1.0, "group", True), (0.3, 2.0, "group", True), (1.0, 0.5, "batch", True), (1, 1, "none", False)],
)
def test_loss_and_gradient_are_those_of_a_handwritten_float64_grpo(
    make_trainer, samples, lambda_acc, lambda_fmt, scale, packed
):
    reference = load_reference("tiny").double()
    policy = load_model("tiny").double()
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


def one_step(make_trainer, samples, *settings, model=None, **extra):
    """Rollout and gradient of one step of three groups."""
    trainer = make_trainer(*settings, model=model or load_model("tiny"), chosen=samples[:3], **extra)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    ids = [sample.id for sample in samples[:3] for _ in range(trainer.num_generations)]
    scored = trainer._generate_and_score_completions([{"prompt": id} for id in ids])
    loss = trainer._compute_loss(trainer.model, scored)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return trainer, scored, loss, gradient


@pytest.mark.parametrize("packed", ["true", "false"])
def test_rejection_is_a_supervised_step_on_the_right_completions(make_trainer, samples, packed):
    """Cross-entropy on the right completions alone, each by its mean, over all G; a group that is all right counts."""
    rows, model = [], load_model("tiny")
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
        settings = ("grpo.updates_per_rollout=2", "trainer.learning_rate=1e-3", "trainer.steps=4", "grpo.clip=0.01")
        trainer = make_trainer(f"grpo.loss={loss}", *settings)
        trainer.train()
        trained.append(weights(trainer.model))
    assert not torch.allclose(*trained, atol=1e-6)


def test_standardized_per_group_only_the_ratio_of_the_rewards_matters(make_trainer, samples):
    """Up to the 1e-4 beside the standard deviation; without the standardization the size matters too."""

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
            logits = load_model("tiny").eval()(ids, attention_mask=torch.ones_like(ids), **prompt.media).logits
            alone = logits[0, len(prompt.input_ids) - 1 : -1].log_softmax(-1).gather(1, ids[0, -length:, None])[:, 0]
            assert (together[row, :length] - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("beta", [0, 0.05])
@pytest.mark.parametrize("updates", [1, 2])
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
            "trainer.steps=4",
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
        for name in set(other) - {"grpo/entropy"}:
            if not name.startswith(("time/", "perf/")):
                assert one[name] == pytest.approx(other[name], rel=1e-3, abs=2e-5), name


@pytest.fixture
def counts():
    """What goes through towers, language model and head; `watch(model)` starts counting."""
    seen = Counter()

    def watch(model):
        def count(name, amount):
            def hook(module, args, kwargs):
                seen[name] += amount(args, kwargs)
                seen[f"{name} calls"] += 1

            return hook

        watched = {
            model.model.visual: ("patches", lambda a, k: len(a[0])),
            model.model.audio_tower: ("frames", lambda a, k: a[0].shape[1]),
            model.model.language_model: ("tokens", lambda a, k: k["inputs_embeds"][..., 0].numel()),
        }
        for module, (name, amount) in watched.items():
            module.register_forward_pre_hook(count(name, amount), with_kwargs=True)
        return seen

    watch.seen = seen
    return watch


@pytest.mark.parametrize(
    ("settings", "freeze", "encodings"),
    [
        (["grpo.beta=0.05"], ("audio", "vision"), 1),
        (["grpo.beta=0.05"], (), 3),
        (["grpo.beta=0"], (), 2),
        (["grpo.beta=0.05", "adapter=lora"], (), 1),
        (["grpo.beta=0.05", "grpo.updates_per_rollout=2", "trainer.steps=2"], ("audio", "vision"), 1),
        (["grpo.beta=0.05", "trainer.micro_batch_prompts=1"], ("audio", "vision"), 1),
    ],
    ids=["frozen", "full", "full, no reference", "lora", "two updates", "micro-batches"],
)
def test_each_medium_is_encoded_once_per_prompt_and_step(make_trainer, counts, settings, freeze, encodings):
    model, reference = load_model("tiny", freeze=freeze), load_reference("tiny")
    counts(model), counts(reference)
    make_trainer("trainer.steps=1", *settings, model=model, reference=reference).train()
    assert counts.seen["patches"] == encodings * 2 * 64
    assert counts.seen["patches calls"] == counts.seen["frames calls"] == encodings


def test_loss_and_reference_compute_each_prompt_once(make_trainer, counts):
    """B·P + the completions' tokens, where plain rows take B·G·(P + C)."""
    model, reference, rows = load_model("tiny"), load_reference("tiny"), []
    trainer = make_trainer("trainer.steps=1", model=model, reference=reference, on_rollout=rows.extend)
    loss = counts(reference)
    trainer.train()
    completion_tokens = sum(row["tokens"] for row in rows)
    prompt_tokens = sum(len(prompt.input_ids) for prompt in trainer.rollout.prompts)
    assert loss["tokens"] == prompt_tokens - 2 + completion_tokens
    assert loss["tokens calls"] == 1


def test_groups_without_a_signal_are_left_out_where_that_changes_nothing(make_trainer, samples, counts):
    """beta = 0, one group silent: gradient and loss of all groups, fewer tokens; a second update too."""
    found = {}
    for packed in ("true", "false"):
        model = load_model("tiny")
        trainer = make_trainer("grpo.beta=0", f"grpo.shared_prefix={packed}", model=model)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        ids = [sample.id for sample in samples[:3] for _ in range(G)]
        scored = trainer._generate_and_score_completions([{"prompt": id} for id in ids])
        scored["advantages"] = torch.tensor([0.5, -0.5, 1, -1, *[1e-9] * G, *[0.0] * G])
        scored["old_per_token_logps"] = torch.full_like(scored["completion_mask"], -30.0, dtype=torch.float32)
        scored["old_per_token_logps"][: 2 * G] = -2.0
        seen = counts(model)
        seen.clear()
        loss = trainer._compute_loss(trainer.model, scored)
        loss.backward()
        found[packed] = loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        if packed == "true":
            prompt = trainer.rollout.prompts[0]
            assert seen["tokens"] == len(prompt.input_ids) - 1 + int(scored["completion_mask"][:G].sum())
    assert found["true"][0] == pytest.approx(found["false"][0], abs=1e-6)
    assert (found["true"][1] - found["false"][1]).norm() <= 1e-5 * found["false"][1].norm()


@pytest.mark.parametrize("beta", [0, 0.05])
def test_a_step_without_any_signal_is_a_zero_gradient_and_not_none(make_trainer, beta):
    """Weight decay and momentum go on, as they would with all groups computed."""
    found = []
    for packed in ("true", "false"):
        catch = Catch()
        trainer = make_trainer(
            f"grpo.beta={beta}",
            f"grpo.shared_prefix={packed}",
            "generation.max_new_tokens=1",  # no answer, no format: every reward is 0
            "trainer.steps=1",
            "trainer.learning_rate=1e-3",
            "trainer.weight_decay=0.1",
            callbacks=[catch],
        )
        trainer.train()
        assert catch.rows[0]["grpo/zero_std_ratio"] == 1
        assert ("grpo/entropy" in catch.rows[0]) == (beta > 0 or packed == "false")
        found.append(weights(trainer.model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], weights(load_model("tiny")))


def test_entropy_is_that_of_the_groups_that_count(make_trainer, samples):
    trainer = make_trainer("grpo.beta=0")
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    ids = [sample.id for sample in samples[:2] for _ in range(G)]
    scored = trainer._generate_and_score_completions([{"prompt": id} for id in ids])
    scored["advantages"] = torch.tensor([0.5, -0.5, 1, -1, *[0.0] * G])
    found = []
    for part in (scored, {name: value[:G] if value.ndim else value for name, value in scored.items()}):
        trainer._compute_loss(trainer.model, part)
        trainer._note_means()
        found += trainer._metrics["train"].pop("grpo/entropy")
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_micro_batches_do_not_change_the_update(make_trainer):
    found = []
    for micro in (1, 2, 4):
        trainer = make_trainer("trainer.prompts_per_step=4", f"trainer.micro_batch_prompts={micro}", "trainer.steps=1")
        trainer.train()
        found.append(weights(trainer.model))
    before = weights(load_model("tiny"))
    assert (found[0] - before).abs().max() > 1e-5
    assert all((other - found[0]).abs().max() <= 2e-6 for other in found[1:])


def test_a_group_stays_whole_in_every_micro_batch(make_trainer):
    trainer = make_trainer("trainer.prompts_per_step=4", "trainer.micro_batch_prompts=1", "trainer.steps=2")
    seen = []
    original = trainer._compute_loss

    def spy(model, inputs):
        seen.append(inputs["prompt_index"].tolist())
        return original(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    assert seen == [[index] * G for index in range(4)] * 2


def test_training_raises_what_it_rewards(make_trainer, samples):
    """Thirty updates on the format reward alone, from a base that is sloppy about it."""
    logs = []
    trainer = make_trainer(
        "trainer.steps=30",
        "reward.lambda_acc=0",
        "generation.max_new_tokens=96",
        "trainer.learning_rate=3e-4",
        on_rollout=logs.extend,
    )
    trainer.train()
    first = [row["format"] for row in logs if row["step"] <= 6]
    last = [row["format"] for row in logs if row["step"] > 24]
    assert sum(last) / len(last) > sum(first) / len(first)
    assert sum(last) / len(last) > 0.9


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


def test_beta_zero_needs_no_reference(make_trainer):
    trainer = make_trainer("grpo.beta=0", "trainer.steps=1")
    assert trainer.ref_model is None
    before = weights(trainer.model)
    trainer.train()
    assert not torch.equal(before, weights(trainer.model))


def test_the_reference_stays_and_frozen_towers_stay(make_trainer):
    policy = load_model("tiny", freeze=("audio", "vision"))
    trainer = make_trainer("trainer.steps=2", model=policy)
    towers = torch.cat([weights(policy.model.audio_tower), weights(policy.model.visual)])
    language = weights(policy.model.language_model)
    trainer.train()
    assert torch.equal(towers, torch.cat([weights(policy.model.audio_tower), weights(policy.model.visual)]))
    assert not torch.equal(language, weights(policy.model.language_model))
    assert torch.equal(weights(trainer.ref_model), weights(load_reference("tiny")))


def test_several_updates_per_rollout_reuse_it(make_trainer):
    rows = []
    trainer = make_trainer("trainer.steps=4", "grpo.updates_per_rollout=2", on_rollout=rows.extend)
    trainer.train()
    assert sorted({row["step"] for row in rows}) == [1, 3]


def test_the_same_seed_trains_the_same_model_and_another_does_not(make_trainer):
    found = []
    for seed in (0, 0, 1):
        trainer = make_trainer("trainer.steps=2", f"seed={seed}")
        trainer.train()
        found.append(weights(trainer.model))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_sampler_visits_every_prompt_and_fills_the_last_block_by_wrapping():
    sampler = GroupSampler(prompts=10, group_size=3, block=4, repeats=2, seed=0)
    rows = list(sampler)
    assert len(rows) == len(sampler) == 12 * 3 * 2
    blocks = [rows[start : start + 12] for start in range(0, len(rows), 12)]
    assert blocks[0::2] == blocks[1::2], "a block is repeated for TRL's buffer"
    prompts = [block[0::3] for block in blocks[0::2]]
    assert all(block[g::3] == block[0::3] for block in blocks for g in range(3)), "a group stands together"
    order = [prompt for block in prompts for prompt in block]
    assert sorted(order[:10]) == list(range(10)) and order[10:] == order[:2]


def test_the_sampler_is_seeded_by_seed_and_epoch():
    def order(seed, epoch):
        sampler = GroupSampler(50, 1, 5, 1, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_epochs_reach_the_sampler_and_each_visits_every_prompt(make_trainer):
    rows = []
    trainer = make_trainer("trainer.steps=null", "trainer.epochs=2", on_rollout=rows.extend)
    trainer.train()
    assert trainer.state.global_step == 6
    order = [row["id"] for row in rows if row["g"] == 0]
    assert Counter(order[:6]) == Counter(order[6:]) == Counter(list(trainer._samples))
    assert order[:6] != order[6:]


def test_the_papers_steps():
    config = compose(["experiment=echoink_r1_7b", "dataset.path=data"])[0].config
    assert training_steps(config.trainer, config.grpo.updates_per_rollout, 4_490) == 562


def test_a_step_takes_no_prompt_twice():
    from echoink.common.errors import UserError

    with pytest.raises(UserError, match="7 training samples are fewer than trainer.prompts_per_step=8"):
        training_steps(compose([])[0].config.trainer, 1, 7)


def test_every_setting_reaches_trl():
    given = {
        "grpo.group_size=4": ("num_generations", 4),
        "grpo.beta=0.5": ("beta", 0.5),
        "grpo.loss=dr_grpo": ("loss_type", "dr_grpo"),
        "grpo.scale=none": ("scale_rewards", "none"),
        "grpo.clip=0.1": ("epsilon", 0.1),
        "grpo.updates_per_rollout=3": ("num_iterations", 3),
        "generation.temperature=0.7": ("temperature", 0.7),
        "generation.top_p=0.8": ("top_p", 0.8),
        "generation.top_k=7": ("top_k", 7),
        "generation.max_new_tokens=33": ("max_completion_length", 33),
        "trainer.learning_rate=1e-3": ("learning_rate", 1e-3),
        "trainer.schedule=constant": ("lr_scheduler_type", "constant_with_warmup"),
        "trainer.warmup_steps=5": ("warmup_steps", 5),
        "trainer.weight_decay=0.5": ("weight_decay", 0.5),
        "trainer.max_grad_norm=2": ("max_grad_norm", 2.0),
        "trainer.micro_batch_prompts=2": ("gradient_accumulation_steps", 4),
        "trainer.gradient_checkpointing=true": ("gradient_checkpointing", True),
        "seed=9": ("seed", 9),
    }
    config = compose(list(given))[0].config
    args = arguments(config.trainer, config.grpo, config.generation, config.seed, 11, "x")
    assert {name: getattr(args, name) for name, _ in given.values()} == dict(given.values())
    assert args.max_steps == 11 and args.per_device_train_batch_size == 2 * 4


@pytest.mark.parametrize(
    "other", ["grpo.loss=dapo", "grpo.scale=none", "grpo.clip=0.0001", "trainer.max_grad_norm=0.01"]
)
def test_variants_train_another_model(make_trainer, other):
    found = []
    for setting in ("seed=0", other):
        trainer = make_trainer("trainer.steps=4", "grpo.updates_per_rollout=2", "trainer.learning_rate=1e-3", setting)
        trainer.train()
        found.append(weights(trainer.model))
    assert not torch.equal(*found)


def test_prompts_are_made_ahead_once_each_and_nothing_depends_on_it(make_trainer, samples, monkeypatch, tmp_path):
    shown = video(tmp_path / "clip.mp4")
    chosen = [replace(s, video=shown, image=None, audio=None, data_type=DataType.video) for s in samples[:10]]
    found = []
    for workers in (0, 2):
        made, rollouts, catch = [], [], Catch()
        trainer = make_trainer(
            "trainer.steps=5", callbacks=[catch], on_rollout=rollouts.extend, chosen=chosen, workers=workers
        )
        call = PromptProcessor.__call__

        def noted(self, sample, call=call, made=made):
            made.append((sample.id, threading.current_thread().name))
            return call(self, sample)

        monkeypatch.setattr(PromptProcessor, "__call__", noted)
        trainer.train()
        monkeypatch.undo()
        taken = Counter(row["id"] for row in rollouts if row["g"] == 0)
        in_time = [id for id, thread in made if thread.startswith("media")]
        # The first rollout's prompts are needed at once.
        assert len(in_time) == (taken.total() - 2 if workers else 0) and Counter(id for id, _ in made) == taken
        found.append(([(row["id"], row["text"]) for row in rollouts], [row["train/loss"] for row in catch.rows]))
    assert found[0] == found[1]


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_with_several_updates_a_rollout_no_more_is_made_ahead_than_the_next_one_needs(
    make_trainer, samples, tmp_path, micro_batch
):
    shown, rollouts = video(tmp_path / "clip.mp4"), []
    chosen = [replace(s, video=shown, image=None, audio=None, data_type=DataType.video) for s in samples[:10]]
    trainer = make_trainer(
        "grpo.updates_per_rollout=3",
        "trainer.steps=9",
        f"trainer.micro_batch_prompts={micro_batch}",
        on_rollout=rollouts.extend,
        chosen=chosen,
        workers=2,
    )
    taken, take = [], trainer._prefetcher.take

    def noted(asked):
        taken.append([sample.id in trainer._prefetcher._asked for sample in asked])
        return take(asked)

    trainer._prefetcher.take = noted
    trainer.train()
    assert len(taken) == 3 and not any(taken[0]) and all(taken[1]) and all(taken[2])
    assert len(trainer._prefetcher._asked) <= 2  # a rollout's
    trainer.close()


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


SIGNATURES = {
    "_get_train_sampler": "(self, dataset: datasets.arrow_dataset.Dataset | None = None)",
    "_prepare_inputs": "(self, generation_batch: dict",
    "_generate_and_score_completions": "(self, inputs: list[dict",
    "_compute_loss": "(self, model, inputs)",
    "training_step": "(self, model, inputs, num_items_in_batch)",
    "log": "(self, logs: dict[str, float], start_time: float | None = None)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_what_is_overridden_in_trl_has_not_changed(name):
    from trl import GRPOTrainer

    assert name in vars(EchoInkTrainer)
    assert str(inspect.signature(getattr(GRPOTrainer, name))).startswith(SIGNATURES[name])


def test_a_users_reward_is_weighted_and_logged(make_trainer, samples):
    rows, catch = [], Catch()
    trainer = make_trainer(
        "trainer.steps=1",
        "reward.lambda_file=0.5",
        callbacks=[catch],
        on_rollout=rows.extend,
        custom_reward=lambda completion, sample: float(len(completion)),
    )
    trainer.train()
    lengths = [len(row["text"]) for row in rows]
    assert [row["custom"] for row in rows] == lengths
    assert catch.rows[0]["reward/custom"] == pytest.approx(sum(lengths) / len(lengths))
    total = sum(row["accuracy"] + row["format"] + 0.5 * row["custom"] for row in rows) / len(rows)
    assert catch.rows[0]["reward/total"] == pytest.approx(total)


@pytest.mark.parametrize("shared_prefix", ["true", "false"])
def test_every_data_and_problem_type_trains_in_one_batch(make_trainer, shared_prefix, tmp_path):
    """One step over a text, a picture, a sound, both, a video, a video with its sound, each scored in its own way."""
    made = {
        "image": lambda: picture(tmp_path / "p.png"),
        "audio": lambda: sound(tmp_path / "s.wav"),
        "video": lambda: video(tmp_path / "v.mp4"),
    }
    kinds = zip(DataType, [kind for kind in ProblemType if kind is not ProblemType.ocr], strict=True)
    chosen = [
        Sample(
            f"{number}",
            "What is it?",
            ("A. x", "B. y") if problem_type is ProblemType.multiple_choice else (),
            {"multiple choice": "A", "temporal retrieval": "1-2"}.get(problem_type.value, "3"),
            problem_type,
            data_type,
            **{name: made[name]() for name in data_type.media},
        )
        for number, (data_type, problem_type) in enumerate(kinds)
    ]
    rows = []
    trainer = make_trainer(
        "trainer.steps=1",
        "trainer.prompts_per_step=6",
        "trainer.micro_batch_prompts=3",
        f"grpo.shared_prefix={shared_prefix}",
        chosen=chosen,
        on_rollout=rows.extend,
    )
    before = weights(trainer.model).clone()
    trainer.train()
    assert {row["id"] for row in rows} == {sample.id for sample in chosen}
    for row in rows:
        sample = trainer._samples[row["id"]]
        assert row["accuracy"] == accuracy_reward(row["text"], sample.problem_type, sample.options, sample.solution)
    assert not torch.equal(weights(trainer.model), before)


def rollout_rows(step=1, n=8, **changes):
    rows = [{"step": step, "text": "x", "tokens": 5, "format": 1.0, "advantage": float(g % 2)} for g in range(n)]
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
    from echoink.training.rollout_log import Watch

    watch = Watch(cap=10)
    for step in range(1, rollouts + 1):
        watch(rollout_rows(step, **changes))
    assert len(watch.said) == len(said)
    assert all(text in warning for text, warning in zip(said, watch.said, strict=True))


def test_one_good_rollout_starts_the_count_again():
    from echoink.training.rollout_log import Watch

    watch = Watch(cap=10)
    for step in range(2, 60):
        watch(rollout_rows(step, format=float(step % 15 == 0)))
    assert not watch.said


# --- numbers that are not finite ---


def spoil(trainer, steps, value):
    """Make the gradient of some steps (counted from 1) nan or infinite."""
    compute = trainer._compute_loss

    def spoiled(model, inputs):
        loss = compute(model, inputs)
        return loss * value if trainer.state.global_step + 1 in steps else loss

    trainer._compute_loss = spoiled


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_counted(make_trainer, value, accumulation):
    catch, seen = Catch(), []

    class See(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append((weights(trainer.model).clone(), moments(trainer)))

    micro = 2 // accumulation
    settings = ["trainer.steps=3", f"trainer.micro_batch_prompts={micro}", "trainer.learning_rate=1e-3"]
    trainer = make_trainer(*settings, callbacks=[catch, See()])
    spoil(trainer, {2}, value)
    trainer.train()
    (w1, m1), (w2, m2), (w3, m3) = seen
    assert torch.equal(w1, w2) and torch.equal(m1, m2), "neither weights nor the optimizer's moments"
    assert not torch.equal(w2, w3) and w3.isfinite().all() and m3.isfinite().all()
    assert [row.get("train/skipped") for row in catch.rows] == [None, 1, None]
    assert all(torch.tensor(row["train/loss"]).isfinite() for row in (catch.rows[0], catch.rows[2]))


def moments(trainer):
    state = trainer.optimizer.state_dict()["state"]
    return torch.cat([entry[name].flatten() for entry in state.values() for name in ("exp_avg", "exp_avg_sq")])


@pytest.mark.parametrize(("bad", "stops_after"), [({2, 4, 5}, None), ({2, 3, 4}, 4)])
def test_several_such_steps_in_a_row_stop_the_run_and_no_number_that_is_not_finite_is_written(
    make_trainer, tmp_path, bad, stops_after
):
    with RunFolder(tmp_path / "run", "train", "x", 0) as files:
        record = Record("x", "x", {}, {})
        recorder = Recorder(files, Tracker(None, record, files.path), 6, 8, 1, patience=2)
        trainer = make_trainer("trainer.steps=6", callbacks=[recorder])
        spoil(trainer, bad, float("nan"))
        if stops_after:
            with pytest.raises(UserError, match="3 steps in a row"):
                trainer.train()
        else:
            trainer.train()
    text = (files.path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    rows = files.read("metrics.jsonl")
    assert len(rows) == (stops_after or 6)
    assert [row["step"] for row in rows if "train/skipped" in row] == sorted(bad)
    assert all(("train/loss" in row) != (row["step"] in bad) for row in rows)
    assert weights(trainer.model).isfinite().all()


def test_weights_that_are_not_finite_are_never_saved(make_trainer, tmp_path):
    with RunFolder(tmp_path / "run", "train", "x", 0) as files:
        recorder = Recorder(files, Tracker(None, Record("x", "x", {}, {}), files.path), 2, 8, 1, patience=2)
        keeper = Keeper(files, 1, 2, 0, lambda *_: {}, 0, lambda *_: None, recorder, {})

        class Break(TrainerCallback):
            def on_optimizer_step(self, args, state, control, **_):
                if state.global_step == 1:
                    next(trainer.model.parameters()).data.view(-1)[0] = float("inf")

        trainer = keeper.trainer = make_trainer("trainer.steps=2", callbacks=[recorder, keeper, Break()])
        with pytest.raises(UserError, match="at step 2 weights are not finite"):
            trainer.train()
    assert [path.name for path in (files.path / "checkpoints").glob("step-*")] == ["step-1"]


def test_a_save_that_fails_is_said_and_training_goes_on_but_for_the_last(make_trainer, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise RuntimeError("unexpected pos 64 vs 0: No space left on device")

    with RunFolder(tmp_path / "run", "train", "x", 0) as files:
        recorder = Recorder(files, Tracker(None, Record("x", "x", {}, {}), files.path), 3, 8, 1, patience=2)
        keeper = Keeper(files, 1, 2, 0, lambda *_: {}, 0, lambda *_: None, recorder, {})
        trainer = keeper.trainer = make_trainer("trainer.steps=3", callbacks=[recorder, keeper])
        monkeypatch.setattr(trainer, "save_state_beside", lambda folder: trainer.state.global_step == 1 or full())
        with pytest.raises(UserError, match=r"step 3 could not be saved \(unexpected pos .*\); .* GiB are free"):
            trainer.train()
    said = " ".join(capsys.readouterr().out.split())
    assert "step 2 could not be saved" in said and "the newest checkpoint is" in said
    assert [path.name for path in (files.path / "checkpoints").iterdir()] == ["step-1"]
