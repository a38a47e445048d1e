"""What a step costs on GPUs, from its arithmetic: operations, bytes and traffic of each part (dry_run=true, plan.json).

The operations are those that `python -m echoink.benchmark` counts (a test compares them). How fast a GPU
runs them is not measured: its peaks are the vendor's, and the fractions of them that are reached are assumed (`Gpu`).
So the hours serve to compare plans and to ask for time in a queue; they are no promise.

Shapes: B prompts a step, P prompt tokens, G completions of C tokens each, the longest of a rollout 2 C.
"""

from dataclasses import dataclass, replace

from echoink.config.schema import Dimensions

LENGTH = 200
"""Mean tokens of a completion if the cap is higher; the paper's curve has 110 to 275."""
KERNELS = 52
"""Kernels that a layer launches for one decoded token (`tests/rollout/test_decoder_cost.py` counts them)."""
OF_LORA = 42
"""Further kernels with LoRA in all seven linear layers."""
LARGE = 7
"""How many of a layer's kernels read a weight matrix; its bytes determine their time."""
NODE = 8
"""GPUs of one machine; FSDP2 shards within it, ZeRO across all GPUs."""


@dataclass(frozen=True)
class Gpu:
    """Peaks per second as published by the vendor, and the fractions of them that are assumed to be reached."""

    name: str
    flops: float
    """Dense, bfloat16."""
    bandwidth: float
    """Bytes to and from its memory."""
    link: float
    """Bytes to the other GPUs of its machine."""
    network: float
    """Bytes to other machines."""
    memory: float
    launch: float = 2.5e-6
    """Seconds from one small kernel of a replayed CUDA graph to the next."""
    busy: float = 0.4
    """Fraction of `flops` that is reached."""
    flowing: float = 0.6
    """Fraction of the bandwidth that is reached, in memory and between GPUs."""


GPUS = (
    Gpu("A100 80 GB", 312e12, 2.04e12, 300e9, 25e9, 80e9),
    Gpu("H100 80 GB", 989e12, 3.35e12, 450e9, 50e9, 80e9),
    Gpu("H200 141 GB", 989e12, 4.8e12, 450e9, 50e9, 141e9),
)


@dataclass(frozen=True)
class Model:
    """What the arithmetic needs to know of a model: numbers of parameters, and dimensions."""

    dimensions: Dimensions
    audio: int
    vision: int
    learning: int
    learning_language: bool
    learning_towers: bool
    """Whether any weight of a tower learns, including its projection's."""
    total: int
    adapts: bool = False
    """Whether an adapter learns; the rollout runs its kernels too."""


@dataclass(frozen=True)
class Step:
    """What one step works on, all processes together."""

    prompts: int
    """B"""
    prompt: float
    """P, media and text."""
    seen: float
    """Of these, tokens of pictures and videos."""
    heard: float
    """Tokens of sound."""
    group: int
    """G"""
    completion: float
    """C"""
    micro_batch: int
    """Prompts per forward and backward of one process."""
    updates: int
    """Per rollout."""
    given: bool = False
    """Whether completions are given instead of sampled."""
    shared: bool = True
    """Whether the loss computes a prompt once for its G completions, or once for each."""


def operations(model: Model, step: Step) -> dict[str, float]:
    """Floating-point operations of one pass over a rollout of B prompts.

    Returns:
        `prefill`: prompts through the towers and the language model, the head on their last tokens. `decode`: one
        token at a time. `forward`: each prompt once (in plain rows G times) and its completions, the head on these.
        `towers`: the part of `forward` that the media take.
    """
    b, p, g, c = step.prompts, step.prompt, step.group, step.completion
    d = model.dimensions
    seen = 4 * step.seen * 2 * model.vision  # 4 patches a token, 2 operations a weight
    towers = b * (seen + 2 * step.heard * 2 * model.audio)
    pair = 4 * d.width * d.layers  # of a token with one that it sees
    prefill = b * (2 * d.linear * p + pair * p * p / 2 + 2 * d.head)
    decode = b * g * c * (2 * d.linear + 2 * d.head) + pair * b * g * (p * c + c * c / 2)
    forward = (1 if step.shared else g) * prefill + decode + towers
    return {"prefill": prefill + towers, "decode": decode, "forward": forward, "towers": towers}


def seconds(
    model: Model,
    step: Step,
    gpu: Gpu,
    gpus: int,
    sharded: tuple[str, ...],
    reference: bool,
    again: bool,
    across_machines: bool = False,
) -> dict[str, float]:
    """Seconds of one step: `rollout`, `reference`, `update`, `optimizer`, and the `total`.

    Args:
        model: the policy.
        step: its work.
        gpu: one of them.
        gpus: how many, each with one process and whole prompts.
        sharded: which of "weights", "gradients", "optimizer" they divide.
        reference: whether pi_ref is computed.
        again: whether activations are recomputed in the backward pass.
        across_machines: whether they divide across all machines, not within each.
    """
    does = operations(model, step)
    share = -(-step.prompts // gpus) / step.prompts  # of the slowest
    rate, memory, link = gpu.busy * gpu.flops, gpu.flowing * gpu.bandwidth, gpu.flowing * gpu.link
    within = gpus if across_machines else min(gpus, NODE)  # processes with one shard each
    link = gpu.flowing * gpu.network if within > NODE else link
    moved = (within - 1) / within
    gather = 2 * model.total * moved / link if "weights" in sharded else 0.0
    batches = -(-step.prompts // (gpus * step.micro_batch))

    # Each token of the longest completion reads all weights once, and the keys and values there are.
    d = model.dimensions
    small = d.layers * (KERNELS + (OF_LORA if model.adapts else 0) - LARGE)
    per_token = 2 * (d.linear + d.head) / memory + small * gpu.launch
    rows = share * step.prompts * step.group
    kept = 2 * 2 * d.layers * d.key_width * (share * step.prompts * step.prompt + rows * step.completion / 2)
    decode = max(2 * step.completion * (per_token + kept / memory), share * does["decode"] / rate)
    rollout = 0.0 if step.given else gather + share * does["prefill"] / rate + decode

    # If the towers do not learn, the loss reuses their features from the rollout.
    forward = share * (does["forward"] - (0 if model.learning_towers else does["towers"])) / rate
    looked_at = max(forward, batches * gather) if reference else 0.0
    passes = 2 + model.learning_language + again  # the backward pass is two, one where the large matrices do not learn
    reduced = 4 * model.learning * moved / link  # gradients, within the machine, then across
    if "optimizer" in sharded and "weights" not in sharded:
        reduced += 2 * model.learning * moved / link  # the weights that each has updated
    across = 2 * 4 * model.learning / within / (gpu.flowing * gpu.network) if gpus > within else 0.0
    looked_at += max(forward, batches * gather) if step.updates > 1 else 0.0  # the policy's, before the first update
    update = step.updates * (max(passes * forward, batches * 2 * gather) + reduced + across)
    own = model.learning / (within if "optimizer" in sharded else 1)
    optimizer = step.updates * 7 * 4 * own / memory
    parts = {"rollout": rollout, "reference": looked_at, "update": update, "optimizer": optimizer}
    return parts | {"total": sum(parts.values())}


def hours(model: Model, step: Step, samples: float, gpu: Gpu, gpus: int, **setting) -> dict:
    """What training on `samples` prompts takes on `gpus` GPUs; a step has at least one micro-batch for each GPU.
    The other arguments are those of `seconds`.

    Returns:
        `prompts_per_step`, `steps`, `hours`, `gpu_hours`, `seconds_per_step` by part.
    """
    step = replace(step, prompts=max(step.prompts, gpus * step.micro_batch))
    steps = -(-samples // step.prompts) * step.updates
    once = seconds(model, step, gpu, gpus=gpus, **setting)
    whole = steps / step.updates * once["total"] / 3600
    return {
        "prompts_per_step": step.prompts,
        "steps": int(steps),
        "hours": whole,
        "gpu_hours": whole * gpus,
        "seconds_per_step": {part: value / step.updates for part, value in once.items()},
    }


def growth(model: Model, step: Step, samples: float, gpu: Gpu, **setting) -> dict[str, float]:
    """By what factor the GPU-hours of `hours` grow with twice of one thing; `setting`: its other arguments."""
    once = hours(model, step, samples, gpu, **setting)["gpu_hours"]
    twice = {
        "samples": (2 * samples, step),
        "group_size": (samples, replace(step, group=2 * step.group)),
        "completion_tokens": (samples, replace(step, completion=2 * step.completion)),
        "prompt_tokens": (samples, replace(step, prompt=2 * step.prompt, seen=2 * step.seen, heard=2 * step.heard)),
    }
    return {name: hours(model, of, many, gpu, **setting)["gpu_hours"] / once for name, (many, of) in twice.items()}
