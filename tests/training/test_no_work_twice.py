"""What a step computes: each medium, each prompt and each rollout once, and no group that adds nothing."""

import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch

from echoink.data.processor import PromptProcessor
from echoink.data.samples import DataType
from echoink.models.loading import load_model
from echoink.rewards.types import Rule
from echoink.rollout import generate as of_rollout
from echoink.rollout import parity
from echoink.rollout.decoder import Decoder
from echoink.training import trainer as of_trainer
from tests.helpers.files import video
from tests.helpers.tiny import tiny_model, tiny_reference
from tests.helpers.trainers import Catch, G, weights


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
    model, reference = load_model("tiny", freeze=freeze), tiny_reference()
    counts(model), counts(reference)
    make_trainer("trainer.steps=1", *settings, model=model, reference=reference).train()
    assert counts.seen["patches"] == encodings * 2 * 64
    assert counts.seen["patches calls"] == counts.seen["frames calls"] == encodings


def test_loss_and_reference_compute_each_prompt_once(make_trainer, counts):
    """B·P + the completions' tokens, where plain rows take B·G·(P + C)."""
    model, reference, rows = tiny_model(), tiny_reference(), []
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
        model = tiny_model()
        trainer = make_trainer("grpo.beta=0", f"grpo.shared_prefix={packed}", model=model)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        ids = [sample.id for sample in samples[:3] for _ in range(G)]
        scored = trainer._generate_and_score_completions([{"prompt": id} for id in ids])
        scored["advantages"] = torch.tensor([0.5, -0.5, 1, -1, *[-0.0] * G, *[0.0] * G])
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
        assert "grpo/entropy" not in catch.rows[0]
        found.append(weights(trainer.model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], weights(tiny_model()))


@pytest.mark.parametrize("mode", [("0", "true"), ("0", "false"), ("0.04", "true"), ("0.04", "false")], ids=str)
def test_entropy_is_that_of_the_groups_whose_rewards_differ(make_trainer, samples, mode):
    trainer = make_trainer(f"grpo.beta={mode[0]}", f"grpo.shared_prefix={mode[1]}")
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


@pytest.mark.parametrize("words", [["adapter=lora"], ["model.freeze=[audio,vision]"]], ids=["lora", "frozen"])
def test_frozen_towers_keep_nothing_for_a_backward_pass_under_checkpointing(make_trainer, words):
    """Plain rows encode media in the loss. Checkpointing changes no weight, and its hooks do not pile up."""
    found, kept = [], []

    def note(_module, _inputs, output):
        if torch.is_grad_enabled():
            kept.append(output.last_hidden_state.requires_grad)

    for checkpointing in ("true", "false"):
        torch.manual_seed(0)  # the adapter's initial weights
        model = load_model("tiny", freeze=("audio", "vision"))
        for tower in (model.model.visual, model.model.audio_tower):
            tower.register_forward_hook(note)
        settings = [*words, f"trainer.gradient_checkpointing={checkpointing}", "grpo.shared_prefix=false"]
        trainer = make_trainer("trainer.steps=2", "trainer.learning_rate=1e-3", *settings, model=model)
        trainer.train()
        assert model.is_gradient_checkpointing == (checkpointing == "true")
        assert not model.get_input_embeddings()._forward_hooks
        found.append(weights(trainer.model))
    assert kept and not any(kept)
    assert torch.equal(*found)


def test_rules_that_answer_again_beside_an_engine_use_one_decoder_for_all_steps(make_trainer, monkeypatch):
    made = []
    for module in (of_trainer, of_rollout):
        monkeypatch.setattr(module, "decoder_for", lambda model: made.append(model) or Decoder(model))
    monkeypatch.setattr(parity, "compare_prompt", lambda *_: None)

    class Engine:
        def push(self, model):
            pass

        def generate(self, prompts, seeds, group):
            return [[5, 6, 7] for _ in seeds for _ in range(group)], None

    trainer = make_trainer("trainer.steps=2", rule=Rule.need, rule_weight=1.0, engine=Engine())
    trainer.train()
    assert len(made) == 1


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
    assert sorted({row["step"] for row in rollouts}) == [1, 4, 7]
    assert len(taken) == 3 and not any(taken[0]) and all(taken[1]) and all(taken[2])
    assert len(trainer._prefetcher._asked) <= 2  # a rollout's
    trainer.close()


def test_an_improbable_token_of_a_silent_group_does_no_harm(make_trainer, samples):
    """log π_old of -100: without log π_θ, which is not computed, the ratio would be exp(100)."""
    trainer = make_trainer("grpo.beta=0")
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    scored = trainer._generate_and_score_completions([{"prompt": s.id} for s in samples[:2] for _ in range(G)])
    scored["advantages"] = torch.tensor([0.5, -0.5, 1, -1, *[0.0] * G])
    scored["old_per_token_logps"] = torch.full_like(scored["completion_mask"], -2.0, dtype=torch.float32)
    scored["old_per_token_logps"][G:] = -100.0
    loss = trainer._compute_loss(trainer.model, scored)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in trainer.model.parameters() if p.grad is not None)
