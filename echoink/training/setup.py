"""What a run works with, built from its configuration: model, processor, prompt, sampling, the user's reward."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
import torch
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from echoink.common import allocator, console
from echoink.common.errors import UserError
from echoink.config.schema import Adapter, Config, Dtype, Sharding, TrainerConfig, Variant
from echoink.data.processor import Caps, PromptProcessor
from echoink.data.samples import DataType
from echoink.data.splits import Splits, video_caps
from echoink.data.token_counts import Tokens, prompt_tokens
from echoink.distributed import collectives, sharding
from echoink.distributed.process_group import processes
from echoink.models import loading
from echoink.models.rounding import bf16_slowdown, round_frozen
from echoink.planning import memory, plan
from echoink.rewards import terms
from echoink.rewards.terms import ExtraReward
from echoink.rewards.types import Rule
from echoink.rollout.sampling import Sampling

SLOW = 1.5
"""A warning is printed if bfloat16 takes more than so many times as long as float32 on this CPU."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model and what is needed to generate with it."""

    model: PreTrainedModel
    processor: PromptProcessor
    sampling: Sampling


def load_for_inference(config: Config, path: str, learns: bool = False) -> Loaded:
    """Load the model and the processor of a path, with the configuration's caps, prompt and sampling.

    Args:
        config: `model`, `prompt`, `generation`, `adapter`, `trainer` and `dataset.workers` are read.
        path: a model folder or hub id.
        learns: whether it will be trained, divided among processes as `trainer` says; if not, weights that bfloat16
            autocast would round are rounded here.

    Raises:
        UserError: the path has no model or processor that can be loaded.
    """
    if processes().device.type == "cpu":
        allocator.keep_freed()
    wanted, generation = config.model, config.generation
    bf16 = config.trainer.bf16 or wanted.dtype is Dtype.bfloat16
    quantized = ("bfloat16" if bf16 else wanted.dtype.name) if config.adapter.kind is Adapter.qlora else None
    model = loading.load_model(
        path,
        wanted.dtype.name,
        wanted.attention.name,
        freeze=tuple(part.name for part in wanted.freeze),
        quantized=quantized,
        shard_plan=shard_plan_of(config) if learns else None,
        merges=learns or not bf16,
    )
    if not learns and config.trainer.bf16:
        round_frozen(model.requires_grad_(False), torch.bfloat16)
    processor = loading.load_processor(path, wanted.min_pixels, wanted.max_pixels)
    caps = Caps(wanted.max_audio_seconds, video_caps(wanted), wanted.max_prompt_tokens)
    sampling = Sampling(
        generation.temperature,
        generation.top_p,
        generation.top_k,
        max_new_tokens=generation.max_new_tokens,
        end_ids=loading.end_ids(model, processor),
    )
    prompts = PromptProcessor(processor, model, config.prompt, caps=caps, workers=config.dataset.workers)
    return Loaded(model=model, processor=prompts, sampling=sampling)


@dataclass(frozen=True, kw_only=True)
class Job(Loaded):
    """Configuration, data, model and rewards of a run."""

    config: Config
    splits: Splits
    path: str
    """The model folder or hub id that the weights come from."""
    extra_rewards: Sequence[ExtraReward]


def build_job(config: Config, splits: Splits, path: str) -> Job:
    """Build the job of a run: load the model of a path and set it up as the configuration says.

    Raises:
        UserError: the model cannot be loaded, the adapter does not fit it, or the user's reward cannot be used.
    """
    trains = config.trains
    extra = terms.extra_rewards(config.reward, splits.valid[0])
    loaded = load_for_inference(config, path, learns=trains)
    model = loaded.model
    if trains and config.adapter.kind is not Adapter.none:
        if config.adapter.kind is Adapter.qlora and loading.is_adapter(path):
            hint = "use adapter=lora; merged first (python -m echoink.export), 4 bits would round the first one away"
            raise UserError(f"adapter=qlora cannot train a second adapter on top of {path}", hint)
        loading.check_targets(model, config.adapter.targets)
        model.requires_grad_(False)  # only PEFT's adapter learns
    if trains and loading.is_adapter(path) and (config.trainer.bf16 or config.model.dtype is Dtype.bfloat16):
        lost = "in bfloat16 this loses much of a small update"
        kept = "model.dtype=float32 trainer.bf16=false keeps it"
        console.say("warning", f"{path} is an adapter, which is merged before the next one learns: {lost}; {kept}")
    console.say("model", f"{path} · {loading.describe(model, trains)}")
    text = model.config.get_text_config()
    if warning := plan.other_architecture(config.model, text.num_hidden_layers, text.hidden_size):
        console.say("warning", warning)
    if note := precision_note(config):
        console.say("warning", note)
    if config.trainer.bf16 and model.device.type == "cpu" and (slower := bf16_slowdown()) > SLOW:
        slow = f"this CPU multiplies bfloat16 about {slower:.0f} times as slowly as float32"
        console.say("warning", f"{slow}; faster: trainer.bf16=false")
    if (seen := torch.cuda.device_count()) > 1 and processes().num_processes == 1:
        console.say("", f"one of {seen} GPUs is used; torchrun --nproc_per_node={seen} -m echoink.train … uses all")
    return Job(**vars(loaded), config=config, splits=splits, path=path, extra_rewards=extra)


def precision_note(config: Config) -> str | None:
    """A warning if base and trained model would be evaluated with weights of two precisions."""
    rounds = config.trainer.bf16 and config.trainer.sharding.is_deepspeed and config.model.dtype is Dtype.float32
    if not (config.trains and config.eval.base and rounds and config.adapter.kind is Adapter.none):
        return None
    return (
        "DeepSpeed rounds the weights to bfloat16 when training begins: the base answers with float32 weights, the "
        "trained model with rounded ones. task=compare checkpoint=<the run> evaluates both alike"
    )


def shard_plan_of(config: Config) -> DistributedConfig | None:
    """How FSDP2 divides the policy and its reference while they are loaded, see `sharding`; None if it does not."""
    if not config.trains or config.trainer.sharding is not Sharding.fsdp2:
        return None
    return sharding.fsdp2(processes().num_processes, config.trainer.bf16)


def longest_prompt(job: Job) -> int:
    """Tokens of the longest prompt. The length of every prompt is checked before anything is computed.

    A prompt that gets the sound, or the picture or video, of another sample counts with the longest one that it may
    get. If that would be too long, this prints a warning: which prompts get which media is decided later.

    Raises:
        UserError: a prompt is longer than `model.max_prompt_tokens`.
    """
    wanted, longest, borrowed = job.config.model, 0, 0
    evaluated = job.config.eval.split.name
    for split, samples, takes in (
        ("train", job.splits.train, _borrowed(job.config, trains=True)),
        ("dev", job.splits.dev, []),
        (evaluated, job.splits.valid, _borrowed(job.config, trains=False)),
    ):
        counts: dict[DataType, list[Tokens]] = {}
        for sample in samples:
            info, text = job.splits.media_info[f"{split} {sample.id}"], job.processor.text_tokens(sample)
            tokens = prompt_tokens(info, text, wanted)
            job.processor.check_length(sample, tokens.total)
            longest = max(longest, tokens.total)
            counts.setdefault(sample.data_type, []).append(tokens)
        for kinds in takes:
            for sample_counts in counts.values():
                most = {kind: max(getattr(each, kind) for each in sample_counts) for kind in kinds}
                borrowed = max(borrowed, *(replace(each, **most).total for each in sample_counts))
    if borrowed > wanted.max_prompt_tokens:
        said = f"with the media of another sample a prompt may have {borrowed} tokens, over model.max_prompt_tokens"
        console.say("warning", f"{said}={wanted.max_prompt_tokens}: the run would end at such a prompt")
    return max(longest, min(borrowed, wanted.max_prompt_tokens))


def _borrowed(config: Config, trains: bool) -> list[set[str]]:
    """The media, as fields of `Tokens`, that a prompt of a split gets from another sample, at one time each."""
    sound, sight = {"audio"}, {"image", "video"}
    if trains:
        twins = config.trains and config.reward.lambda_int and config.reward.integration is Rule.twin
        return [sound, sight] if twins else []
    swaps = {Variant.swapped_audio: sound, Variant.swapped_image: sight}
    return [swaps[variant] for variant in config.eval.ablations if variant in swaps]


def divided_among(trainer: TrainerConfig) -> int:
    """How many processes a model is divided among: with FSDP2 those of one machine, else all."""
    return sharding.shard_group_size(trainer.processes) if trainer.sharding is Sharding.fsdp2 else trainer.processes


def with_checkpointing_decided(job: Job, longest: int) -> TrainerConfig:
    """The trainer's settings; a null `gradient_checkpointing` becomes true if activations probably do not fit."""
    config = job.config
    if config.trainer.gradient_checkpointing is not None:
        return config.trainer
    learning = sum(p.numel() for p in job.model.parameters() if p.requires_grad)  # without an adapter's, which are few
    model, among = memory.model_of(job.model), divided_among(config.trainer)
    needs = memory.of_run(config, model, learning, longest=longest, among=among)
    there = available_memory(job.model.device)
    fits = collectives.on_main_process(
        lambda: needs.total <= memory.USABLE * there
    )  # all must gather a divided model in the same order
    console.say(
        "memory",
        f"at most about {needs.total / 2**30:.1f} of {there / 2**30:.0f} GiB · activations "
        f"({needs.activations / 2**30:.1f}) {'kept' if fits else 'recomputed'} for the backward pass",
    )
    return replace(config.trainer, gradient_checkpointing=not fits)


def evaluation_batch_prompts(job: Job, longest: int) -> int:
    """How many prompts an evaluation decodes together: `eval.batch_prompts`, or as many as the GPU has memory for.

    If unset, it is `memory.MOST_PROMPTS` on a CPU and at most that on a GPU. A training run leaves memory for optimizer
    and reference free from the beginning, so that base and trained model are evaluated in batches of the same size.
    """
    config, model = job.config, memory.model_of(job.model)
    if config.eval.batch_prompts:
        return config.eval.batch_prompts
    device = job.model.device
    if device.type != "cuda":  # it shares the machine's memory with everything else
        return memory.MOST_PROMPTS
    beside = model.weight_bytes
    if config.trains:
        learning = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
        if config.adapter.kind is not Adapter.none:
            learning = 0  # the adapter is not there yet, and has few
        needs = memory.of_run(config, model, learning, longest=longest, among=divided_among(config.trainer))
        beside = needs.weights + needs.reference + needs.optimizer + needs.gathered + needs.engine_between + needs.cache
        copies = config.trainer.bf16 and model.itemsize > 2 and config.trainer.sharding is Sharding.none
        if copies and config.adapter.kind is Adapter.none:
            beside += 2 * model.dimensions.linear  # an evaluation's decoder has rounded copies of its own
        if config.adapter.kind is not Adapter.none:
            # Before training the float32 base and the decoder's rounded copy are both in memory.
            beside = max(beside, model.weight_bytes + 2 * model.parameters * config.trainer.bf16)
    draws = max(config.eval.samples + config.eval.greedy, config.eval.dev_samples)
    room = torch.cuda.mem_get_info(device)[1]
    completion, bf16 = config.generation.max_new_tokens, config.trainer.bf16
    own = memory.prompts_that_fit(model, beside, draws, longest=longest, completion=completion, bf16=bf16, room=room)
    chosen = min(collectives.share(lambda number, count: own))  # all processes must evaluate in the same rounds
    console.say("", f"{console.counted(chosen, 'prompt')} decoded together in evaluations (eval.batch_prompts)")
    return chosen


def available_memory(device: torch.device) -> int:
    """Bytes of memory that this process can use: what it holds now and what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss
