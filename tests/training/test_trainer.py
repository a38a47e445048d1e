"""The trainer: whole groups in micro-batches, frozen parts, determinism, every data type."""

import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import set_seed

from echoink.data.samples import DataType, Sample
from echoink.models.loading import load_model
from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.types import ProblemType
from echoink.run_folder.checkpoint import of_process
from echoink.training import rng_state
from echoink.training.resumable_trainer import ResumableTrainer
from tests.helpers.files import picture, sound, video
from tests.helpers.tiny import tiny_model, tiny_reference
from tests.helpers.trainers import G, weights


def test_micro_batches_do_not_change_the_update(make_trainer):
    found = []
    for micro in (1, 2, 4):
        trainer = make_trainer("trainer.prompts_per_step=4", f"trainer.micro_batch_prompts={micro}", "trainer.steps=1")
        trainer.train()
        found.append(weights(trainer.model))
    before = weights(tiny_model())
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
    """Sixteen updates on the format reward alone, from a base that is sloppy about it."""
    logs = []
    trainer = make_trainer(
        "trainer.steps=16",
        "reward.lambda_acc=0",
        "generation.max_new_tokens=96",
        "trainer.learning_rate=6e-4",
        on_rollout=logs.extend,
    )
    trainer.train()
    first = [row["format"] for row in logs if row["step"] <= 4]
    last = [row["format"] for row in logs if row["step"] > 12]
    assert sum(last) / len(last) > sum(first) / len(first)
    assert sum(last) / len(last) > 0.9


def test_the_reference_stays_and_frozen_towers_stay(make_trainer):
    policy = load_model("tiny", freeze=("audio", "vision"))
    trainer = make_trainer("trainer.steps=2", model=policy)
    towers = torch.cat([weights(policy.model.audio_tower), weights(policy.model.visual)])
    language = weights(policy.model.language_model)
    trainer.train()
    assert torch.equal(towers, torch.cat([weights(policy.model.audio_tower), weights(policy.model.visual)]))
    assert not torch.equal(language, weights(policy.model.language_model))
    assert torch.equal(weights(trainer.ref_model), weights(tiny_reference()))


def test_the_same_seed_trains_the_same_model_and_another_does_not(make_trainer):
    found = []
    for seed in (0, 0, 1):
        trainer = make_trainer("trainer.steps=2", f"seed={seed}")
        trainer.train()
        found.append(weights(trainer.model))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_epochs_reach_the_sampler_and_each_visits_every_prompt(make_trainer):
    rows = []
    trainer = make_trainer("trainer.steps=null", "trainer.epochs=2", on_rollout=rows.extend)
    trainer.train()
    assert trainer.state.global_step == 6
    order = [row["id"] for row in rows if row["g"] == 0]
    assert Counter(order[:6]) == Counter(order[6:]) == Counter(list(trainer._samples))
    assert order[:6] != order[6:]


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
            solution={"multiple choice": "A", "temporal retrieval": "1-2"}.get(problem_type.value, "3"),
            problem_type=problem_type,
            data_type=data_type,
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


def test_an_adapter_on_4_bit_weights_learns_in_float32(make_trainer):
    """TRL makes it bfloat16, in which a step of 1e-6 of a weight is lost, and AdamW's moments with it."""
    pytest.importorskip("bitsandbytes")
    trainer = make_trainer("trainer.steps=2", "adapter=lora", model=load_model("tiny", quantized="float32"))
    learns = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in learns.items()}
    assert learns and {p.dtype for p in learns.values()} == {torch.float32}
    trainer.train()
    moments = [value for state in trainer.optimizer.state.values() for value in state.values() if value.ndim]
    assert {value.dtype for value in moments} == {torch.float32}
    assert all((learns[name] != before[name]).float().mean() > 0.9 for name in learns if "lora_A" in name)


def test_the_old_policy_of_several_updates_is_the_one_that_sampled(make_trainer, samples):
    """An adapter's dropout is no part of it."""
    trainer = make_trainer("adapter=lora", "adapter.dropout=0.5", "grpo.updates_per_rollout=2")
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": s.id} for s in samples[:2] for _ in range(G)])
    assert trainer.model.training
    with torch.no_grad():
        noisy = trainer._log_probabilities(trainer.model, batch)[0]
        sampled = trainer._log_probabilities(trainer.model.eval(), batch)[0]
    assert torch.equal(batch["old_per_token_logps"], sampled)
    assert not torch.allclose(noisy, sampled, atol=1e-2)


def test_more_steps_than_a_run_was_begun_with_have_the_rates_of_the_longer_schedule(make_trainer, tmp_path):
    """An optimizer's state holds the rate of the schedule that has ended, which is 0."""
    short = make_trainer("trainer.steps=3", "trainer.schedule=cosine", "trainer.warmup_steps=0")
    short.create_optimizer_and_scheduler(3)
    for _ in range(3):
        short.lr_scheduler.step()
    torch.save(short.optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(short.lr_scheduler.state_dict(), tmp_path / "scheduler.pt")
    torch.save({}, tmp_path / "rollout.pt")
    assert {group["lr"] for group in short.optimizer.param_groups} == {0.0}
    long = make_trainer("trainer.steps=6", "trainer.schedule=cosine", "trainer.warmup_steps=0")
    long.create_optimizer_and_scheduler(6)
    long._load_optimizer_and_scheduler(str(tmp_path))
    (rate,) = {group["lr"] for group in long.optimizer.param_groups}
    assert rate == pytest.approx(long.args.learning_rate / 2) == long.lr_scheduler.get_last_lr()[0]


def test_a_prompt_seen_again_is_sampled_with_other_noise(make_trainer, samples):
    trainer, found = make_trainer(), []
    for trainer.state.global_step in (0, 0, 1):
        trainer._generate_and_score_completions([{"prompt": samples[0].id}] * G)
        found.append(trainer.rollout.completions)
    assert found[0] == found[1] != found[2]


def test_a_process_that_a_run_did_not_have_before_draws_otherwise_than_the_others(tmp_path):
    """It goes on with two checkpointed processes on four."""
    folder = tmp_path / "step-5000"
    folder.mkdir()
    for rank, name in enumerate(("rng_state.pth", of_process(1)("rng_state.pth"))):
        set_seed(rank)
        torch.save(rng_state.state(), folder / name)

    def drawn(rank: int) -> list[float]:
        process = SimpleNamespace(args=SimpleNamespace(process_index=rank, seed=0))
        ResumableTrainer._load_rng_state(process, str(folder))
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    found = [drawn(rank) for rank in range(4)]
    assert all(len(set(each)) == 4 for each in zip(*found, strict=True)) and found == [drawn(rank) for rank in range(4)]
    for rank in (0, 1):
        set_seed(rank)
        assert found[rank] == [random.random(), float(np.random.rand()), float(torch.rand(()))]
