"""Time, memory and operations of each phase of a step, with the prompt shared and as plain rows, in one process."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import trl.trainer.utils
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from trl.trainer.utils import add_fused_lm_head

from echoink.benchmark.baselines import OneGroupAtATime, PlainRows, SharedPrefix, Step
from echoink.benchmark.config import PARTS, SYSTEMS, BenchmarkConfig, Device
from echoink.benchmark.workload import make_model, make_workload
from echoink.common import console
from echoink.common.errors import UserError
from echoink.config.schema import flatten
from echoink.models import loading
from echoink.models.encoders import encode_media, towers_learn
from echoink.models.shared_prefix import install
from echoink.run_folder.environment import environment

GROWTH = {"group_size": (2, 4, 8, 16, 32), "prompt_tokens": (1, 1.5, 2)}
"""Where the growth of the cost is measured: G, and P as multiples of the shape's, which must hold picture and sound."""


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Compare the systems, then time them.

    Returns:
        What `benchmark.json` holds, except `growth`: `parity`, `seconds` by system and phase (median and quartiles),
        `ratio` (plain rows over ours), `ratio_reference_equivalent` (one group at a time over ours), executed `flops`
        (on a CPU only: what a CUDA graph replays cannot be counted), `needed_flops`, `peak_memory` of the update,
        `completion_tokens_per_second`, `mfu` if the device's peak is given, and what it ran on.

    Raises:
        UserError: the systems do not compute the same.
    """
    device = device_of(config)
    systems = make_systems(config, device)
    work = systems["ours"].work
    completion_tokens = int(work.mask.sum())
    console.say(
        "shape",
        f"{len(work.prompts)} prompts of {', '.join(str(len(prompt.input_ids)) for prompt in work.prompts)} tokens · "
        f"G {work.group} · completions of {int(work.mask.sum(1).min())} to {int(work.mask.sum(1).max())} · "
        f"{sum(p.numel() for p in systems['ours'].unwrapped.parameters()):,} parameters · {device.type}",
    )
    console.say("", "first all systems are compared; then each phase is timed, and its operations are counted")
    parity = compare(systems, tolerance=1e-4 if config.shape.dtype.name == "float32" else 0.3)
    console.say("parity", " · ".join(f"{name.replace('_', ' ')} {value:.1e}" for name, value in parity.items()))

    seconds = timed(systems, config.repeats, device)
    flops = None
    if device.type == "cpu":
        counted = [(name, phase, run) for name, of in systems.items() for phase, run in phases(of)]
        flops = {name: {} for name in systems}
        for name, phase, run in console.progress("operations", len(counted))(counted):
            flops[name][phase] = executed_flops(run)
    memory = {name: peak_memory(of.update, device) for name, of in console.progress("memory", 3)(systems.items())}
    needed = needed_flops(systems["ours"])
    medians = {name: {phase: of["median"] for phase, of in found.items()} for name, found in seconds.items()}
    ours, rows, groups = (medians[name] for name in SYSTEMS)

    def ratio(other: dict[str, float], name: str) -> dict[str, float]:
        ratios = {phase: other[phase] / ours[phase] for phase in PARTS if phase != "reference" or config.beta}
        return ratios | {"peak_memory": memory[name] / memory["ours"]}

    found = {
        "config": flatten(config),
        "environment": environment(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "parity": parity,
        "seconds": seconds,
        "ratio": ratio(rows, "plain rows"),
        "ratio_reference_equivalent": ratio(groups, "one group at a time"),
        "peak_memory": memory,
        "flops": flops,
        "needed_flops": needed,
        "completion_tokens_per_second": {name: completion_tokens / medians[name]["step"] for name in SYSTEMS},
    }
    if config.peak_tflops:
        work_done = needed["reference"] + needed["update"]
        spent = {name: medians[name]["reference"] + medians[name]["update"] for name in SYSTEMS}
        found["mfu"] = {name: work_done / seconds / config.peak_tflops / 1e12 for name, seconds in spent.items()}
    return found


def device_of(config: BenchmarkConfig) -> torch.device:
    """The device to run on.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if config.device is Device.cuda and not torch.cuda.is_available():
        raise UserError("device=cuda: PyTorch finds no GPU", "device=cpu")
    return torch.device("cpu" if config.device is Device.cpu or not torch.cuda.is_available() else "cuda")


def make_systems(config: BenchmarkConfig, device: torch.device) -> dict[str, Step]:
    """The three systems over one model, one reference and one workload."""
    # TRL's head uses a buffer of 32,768 entries for any vocabulary; for a small one it would dominate the memory.
    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(32_768, config.shape.vocabulary)
    model = make_model(config.shape, config.seed, device)
    work = make_workload(model, config.shape, config.seed)
    reference = None if config.lora else make_model(config.shape, config.seed + 1, device).eval()
    for each in (model, reference):
        if each is not None:
            install(each)
            add_fused_lm_head(each, outputs=("log_probs", "entropy"))
    if config.lora:
        targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        model = get_peft_model(model, loading.lora(16, 32, 0.0, targets))
    else:
        reference.requires_grad_(False)
    shared = (model, reference, work, config.beta)
    return {
        "ours": SharedPrefix(*shared),
        "plain rows": PlainRows(*shared, checkpointing=config.shape.rows_checkpointing),
        "one group at a time": OneGroupAtATime(*shared),
    }


def phases(system: Step) -> list[tuple[str, Callable]]:
    """The phases in the order of a step."""
    return [
        ("prefill", system.prefill),
        ("rollout", system.rollout),
        ("reference", system.infer),
        ("update", system.update),
    ]


def compare(systems: dict[str, Step], tolerance: float) -> dict[str, float]:
    """The largest differences of the baselines' log-probabilities and gradients from ours; checks that ours replays.

    Raises:
        UserError: a difference is larger than `tolerance`.
    """
    found = {"max_logprob_difference": 0.0, "gradient_relative_difference": 0.0}
    ours, *others = systems.values()
    script = [ids[mask].tolist() for ids, mask in zip(ours.work.completion_ids, ours.work.mask, strict=True)]
    assert ours.rollout() == script, "the rollout does not replay the completions"
    expected = _log_probabilities_and_gradient(ours)
    for system in others:
        logps, gradient = _log_probabilities_and_gradient(system)
        difference = (logps - expected[0]).abs().max().item()
        distance = ((gradient - expected[1]).norm() / expected[1].norm()).item()
        found["max_logprob_difference"] = max(found["max_logprob_difference"], difference)
        found["gradient_relative_difference"] = max(found["gradient_relative_difference"], distance)
        if not max(difference, distance) <= tolerance or not torch.isfinite(logps).all():
            raise UserError(
                f"{type(system).__name__} and SharedPrefix differ: log-probabilities by {difference:.1e}, gradients by "
                f"{distance:.1e}, tolerance {tolerance}",
                "this is a defect of the package: please report it",
            )
    return found


def _log_probabilities_and_gradient(system: Step) -> tuple[torch.Tensor, torch.Tensor]:
    system.model.train()
    system.infer()
    found = []
    for index, rows in system.groups():
        logps = system.log_probabilities(system.model, index, rows)
        system.loss(logps, rows).backward()
        found.append(logps.detach())
    learning = [parameter for parameter in system.model.parameters() if parameter.requires_grad]
    gradient = torch.cat([p.grad.flatten().float() for p in learning if p.grad is not None])
    system.optimizer.zero_grad()
    return torch.cat(found), gradient


def timed(
    systems: dict[str, Step], repeats: int, device: torch.device, aloud: bool = True
) -> dict[str, dict[str, dict[str, float]]]:
    """Wall-clock seconds of every phase: median and quartiles (extremes of fewer than 3). The systems alternate."""
    found: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in PARTS} for name in systems}
    names = list(systems)
    turns = [name for turn in range(repeats + 1) for name in (names if turn % 2 == 0 else names[::-1])]
    for count, name in enumerate(console.progress("time", len(turns))(turns) if aloud else turns):
        spent = {}
        for phase, run in phases(systems[name]):
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent[phase] = time.perf_counter() - started
        spent["step"] = spent["rollout"] + spent["reference"] + spent["update"]
        if count >= len(names):  # the first turn is a warm-up
            for phase, value in spent.items():
                found[name][phase].append(value)
    return {name: {phase: _quartiles(values) for phase, values in of.items()} for name, of in found.items()}


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    low, high = (min(values), max(values)) if len(values) < 3 else statistics.quantiles(values, method="inclusive")[::2]
    return {"median": statistics.median(values), "lower": low, "upper": high}


def executed_flops(run: Callable[[], Any]) -> int:
    """Executed floating-point operations of matrix products and attention, counted on a CPU."""

    def attention(query, key, value, *_, out_shape=None, **__) -> int:
        batch, heads, queries, width = query
        return 4 * batch * heads * queries * key[2] * width

    def backward(_gradient, query, key, value, *_, out_shape=None, **__) -> int:
        return 5 * attention(query, key, value) // 2

    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops()


def needed_flops(system: Step) -> dict[str, float]:
    """The operations that a step needs at least, by phase.

    Each distinct token passes once through the language model (2 per weight, plus attention to what it sees), each
    completion token through the head, each medium through its tower. A backward pass costs two forward passes, or one
    where the weights do not learn.
    """
    config = system.unwrapped.config.get_text_config()
    layers = system.unwrapped.model.language_model.layers
    matrices = [(name, p.numel()) for name, p in layers.named_parameters() if p.ndim == 2]
    weights = sum(size for name, size in matrices if "lora" not in name)
    added = sum(size for name, size in matrices if "lora" in name)
    prompts, lengths = system.work.prompts, system.work.mask.sum(1).view(-1, system.work.group)
    pairs = tokens = 0
    for prompt, of in zip(prompts, lengths.tolist(), strict=True):
        prefix = len(prompt.input_ids) - 1
        tokens += prefix + sum(of)
        pairs += prefix * (prefix + 1) / 2 + sum(prefix * length + length * (length + 1) / 2 for length in of)
    language = 2 * weights * tokens + 4 * config.hidden_size * config.num_hidden_layers * pairs
    head = 2 * system.unwrapped.lm_head.weight.numel() * int(system.work.mask.sum())
    with torch.no_grad():
        towers = executed_flops(lambda: encode_media(system.unwrapped.model, prompts))
    learns, tower_learns = system.reference is not None, towers_learn(system.unwrapped.model)
    forward, adapter = language + head, 2 * added * tokens
    return {
        "rollout": forward + adapter + towers,
        "reference": forward + (towers if tower_learns else 0) if system.beta else 0,
        "update": forward * (3 if learns else 2) + 3 * adapter + (3 * towers if tower_learns else 0),
    }


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """The peak of allocated bytes while it runs, above what was allocated before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def growth(config: BenchmarkConfig) -> list[dict[str, float]]:
    """Seconds of reference and update, ours and plain rows, over G and over P: one timed repetition after a warm-up."""
    device = device_of(config)
    points = [("group_size", group) for group in GROWTH["group_size"]]
    points += [("prompt_tokens", round(share * config.shape.prompt_tokens)) for share in GROWTH["prompt_tokens"]]
    rows = []
    for key, value in console.progress("growth", len(points))(points):
        changed = replace(config, shape=replace(config.shape, prompts=1, **{key: value}))
        systems = make_systems(changed, device)
        del systems["one group at a time"]
        gc.collect()  # frees the models of the previous point
        systems["ours"].rollout()  # for its features, where the towers are frozen
        for system in systems.values():
            system.prefill = system.rollout = lambda: None
        found = timed(systems, 1, device, aloud=False)
        spent = {name: of["reference"]["median"] + of["update"]["median"] for name, of in found.items()}
        del systems
        rows.append({"key": key, "value": value, **spent, "ratio": spent["plain rows"] / spent["ours"]})
    return rows
