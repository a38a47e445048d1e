"""Trains on however many processes it was started on and writes what came out, for test_two_processes.py."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from echoink.common.startup import imports

with imports():
    import torch
    import torch.distributed
    from torch.distributed.tensor import DTensor
    from transformers import TrainerCallback

    from echoink.config.schema import Adapter, Sharding, Variant
    from echoink.data.ablations import without
    from echoink.data.processor import Caps, PromptProcessor
    from echoink.data.samples import DataType, Sample
    from echoink.data.splits import read_split, video_caps
    from echoink.distributed import sharding
    from echoink.distributed.process_group import processes
    from echoink.models.loading import load_model, load_processor, load_reference, lora
    from echoink.rewards.terms import make_rewards
    from echoink.training.host import Policy, Scoring
    from echoink.training.integration_reward import IntegrationReward
    from echoink.training.metrics import metrics_of
    from echoink.training.trainer import EchoInkTrainer
    from echoink.training.trl_config import arguments
    from tests.helpers import files
    from tests.helpers.configs import config_of


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Catch(TrainerCallback):
    """Metrics of every step, and the gradient that the first one applied."""

    def __init__(self):
        self.rows, self.gradient = [], None

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if self.gradient is None:
            named = [p for p in model.parameters() if p.requires_grad]
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in named]
            self.gradient = torch.cat([full(grad).flatten() for grad in grads])

    def on_log(self, args, state, control, logs=None, **_):
        self.rows.append(metrics_of(logs))


def mixed(samples: list[Sample], folder: Path) -> list[Sample]:
    """A fourth each with a video, with a sound alone, with a picture alone and with nothing."""
    shown = files.video(folder / "clip.mp4")
    video = {"data_type": DataType.video, "video": shown, "image": None, "audio": None}
    makes = (
        lambda sample: replace(sample, **video),
        lambda sample: without(sample, Variant.no_image),
        lambda sample: without(sample, Variant.no_audio),
        lambda sample: without(sample, Variant.text_only),
    )
    return [makes[number % 4](sample) for number, sample in enumerate(samples)]


def spoil(trainer: EchoInkTrainer) -> None:
    """Make the second step's loss nan in the last process alone."""
    compute, last = trainer._compute_loss, trainer.accelerator.num_processes - 1

    def spoiled(model, inputs):
        loss = compute(model, inputs)
        bad = trainer.state.global_step == 1 and trainer.accelerator.process_index == last
        return loss * float("nan") if bad else loss

    trainer._compute_loss = spoiled


def train(dataset: Path, folder: Path, settings: list[str]) -> dict:
    is_mixed, some_have_both, is_spoiled = (word in settings for word in ("mixed", "two senses", "spoiled"))
    settings = [word for word in settings if word not in ("mixed", "two senses", "spoiled")]
    config = config_of(*settings)
    torch.manual_seed(0)  # an adapter's initial weights
    shard_plan = None
    if config.trainer.sharding is Sharding.fsdp2:
        shard_plan = sharding.fsdp2(processes().num_processes, config.trainer.bf16)
    model, catch, rollouts = load_model("tiny", shard_plan=shard_plan), Catch(), []
    samples = read_split(dataset, "train")[:8]
    samples = mixed(samples, folder) if is_mixed else samples
    if some_have_both:  # of the first step's prompts those of one process
        samples = [without(s, Variant.no_audio) if n % 4 == 3 else s for n, s in enumerate(samples)]
    processor = PromptProcessor(
        load_processor("tiny", 112 * 112, 112 * 112),
        model,
        config.prompt,
        Caps(10.0, video_caps(config.model), config.model.max_prompt_tokens),
    )
    rows = config.trainer.micro_batch_prompts * config.grpo.group_size
    adapter = lora(4, 8, 0.0, ("q_proj", "v_proj")) if config.adapter.kind is Adapter.lora else None
    reference = None if adapter else load_reference("tiny", shard_plan=shard_plan)
    integration = IntegrationReward(config.reward, processor, rows) if config.reward.lambda_int else None
    trainer = EchoInkTrainer(
        Policy(model, reference, processor, adapter),
        samples,
        Scoring(make_rewards(config.reward, processor.prompt.thinks), integration),
        arguments(
            config.trainer,
            config.grpo,
            config.generation,
            seed=config.seed,
            steps=config.trainer.steps,
            folder=str(folder),
        ),
        config.grpo,
        callbacks=[catch],
        on_rollout=rollouts.extend,
    )
    before = torch.cat([full(p.detach()).flatten().clone() for p in model.parameters()])
    if is_spoiled:
        spoil(trainer)
    trainer.train()
    if config.trainer.sharding is Sharding.none:
        weights = [p.detach() for p in model.parameters()]
    elif config.trainer.bf16:  # together they are in bfloat16; the shares are not
        weights = [full(p.detach()) for p in model.parameters()]
    else:
        with trainer.unsharded():
            weights = [p.detach().clone() for p in model.parameters()]
    learnt = torch.cat([weight.flatten() for weight in weights])
    if torch.distributed.is_initialized():  # replicas must not drift apart
        others = [torch.empty_like(learnt) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(others, learnt)
        assert all(torch.equal(other, learnt) for other in others)
    divided = sharding.is_sharded(model) and torch.distributed.is_initialized()
    groups = next(model.parameters()).device_mesh.get_all_groups() if divided else []
    return {
        "waits": [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups],
        "reference": [isinstance(p, DTensor) for p in reference.parameters()] if divided and reference else [],
        "processes": trainer.accelerator.num_processes,
        "wrapped": type(trainer.model_wrapped).__name__,
        "before": before,
        "weights": learnt,
        "gradient": catch.gradient,
        "metrics": catch.rows,
        "rollouts": rollouts,
    }


def main() -> None:
    torch.set_num_threads(1)  # sums in another order are not what is compared here
    dataset, folder, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    found = [train(dataset, folder, settings) for settings in cases]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(found, folder / "found.pt")
