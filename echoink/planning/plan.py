"""The plan of a run before anything is loaded: steps, tokens, parameters, memory, disk (`dry_run=true`, plan.json).

Everything is arithmetic on the configuration, the dataset's files and the architecture's dimensions in `conf/model/`.
Estimates are labelled as such: the text's tokens (a quarter of its characters: no tokenizer is loaded) and the memory
(see `memory.py`; its activations are within 25 % of what autograd keeps on the tiny model).
"""

import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from echoink.common.console import counted
from echoink.config.compose import shipped_models
from echoink.config.paths import resolve
from echoink.config.schema import Adapter, Config, Dtype, ModelConfig, Part, Prompt, Sharding, Task, TrainerConfig
from echoink.data.profile import spread
from echoink.data.prompts import build_messages
from echoink.data.samples import Sample
from echoink.data.splits import Splits
from echoink.data.token_counts import Tokens, prompt_tokens
from echoink.planning import memory, step_time
from echoink.planning.steps import training_steps
from echoink.run_folder import checkpoint

CHARACTERS = 4
"""Characters of English text per token, about."""
CHAT = 12
"""Tokens of the chat template around a turn, about."""
NF4 = 4.5 / 8
"""Bytes of a 4-bit weight, with a 32-bit scale for each block of 64."""


def make(config: Config, splits: Splits) -> dict[str, Any]:
    """The plan, see the module's docstring; keys with `bytes` are in bytes.

    Raises:
        UserError: see `training_steps`.
    """
    trainer, grpo = config.trainer, config.grpo
    tokens = [
        _tokens(sample, splits.media_info[f"train {sample.id}"], config.prompt, config.model) for sample in splits.train
    ]
    steps = training_steps(trainer, grpo.updates_per_rollout, len(splits.train))
    parameters = count_parameters(config)
    longest = max(each.total for each in tokens)
    needed = {}
    if not trainer.sharding.is_deepspeed:  # DeepSpeed computes in other types than a run without it
        own = -(-trainer.prompts_per_step // trainer.processes)
        alone = replace(trainer, sharding=Sharding.none, processes=1, prompts_per_step=own)
        needed["not sharded"] = needs(replace(config, trainer=alone), parameters, longest)
    if trainer.processes > 1 or not needed:
        how = "sharded over" if memory.SHARDED_PARTS[trainer.sharding] else "not sharded, on each of"
        among = _among(trainer)
        several = f"the {among} of a node" if among < trainer.processes else f"{among}"
        needed[f"{how} {several}"] = needs(config, parameters, longest)
    rollouts = -(-steps // grpo.updates_per_rollout)
    return {
        "samples": {"train": len(splits.train), "dev": len(splits.dev), "valid": len(splits.valid)},
        "steps": steps,
        "epochs": round(rollouts * trainer.prompts_per_step / len(splits.train), 3),
        "prompts_per_step": trainer.prompts_per_step,
        "completions_per_step": trainer.prompts_per_step * grpo.group_size,
        "completions": rollouts * trainer.prompts_per_step * grpo.group_size,
        "world_size": trainer.processes,
        "accumulation": trainer.prompts_per_step // (trainer.micro_batch_prompts * trainer.processes),
        "prompt_tokens": {
            "text (estimated)": spread([each.text for each in tokens]),
            "image": spread([each.image for each in tokens]),
            "audio": spread([each.audio for each in tokens]),
            "video": spread([each.video for each in tokens]),
            "total": spread([each.total for each in tokens]),
        },
        "completion_tokens_at_most": config.generation.max_new_tokens,
        "parameters": parameters,
        "gradient_checkpointing": trainer.gradient_checkpointing,
        "prompt_tokens_cap": config.model.max_prompt_tokens,
        "memory_bytes_per_process": {
            name: {**asdict(estimate), "total": estimate.total} for name, estimate in needed.items()
        },
        "disk_bytes": disk_bytes(config, parameters),
        "gpus": gpus(config, parameters, tokens),
        "hours_without": _not_counted(config),
        "computes_in": "bfloat16" if config.trainer.bf16 else config.model.dtype.name,
    }


def other_architecture(config: ModelConfig, layers: int, width: int) -> str | None:
    """A warning if the group `model` describes another model than weights of so many layers of that width: the plan
    is wrong then, and the caps may be.
    """
    says = config.architecture
    if (says.layers, says.width) == (layers, width):
        return None
    side = round(config.max_pixels**0.5)
    return (
        f"the weights have {layers} layers of width {width:,}, and model.architecture says {says.layers} of "
        f"{says.width:,}: the plan is for another model, and the caps may be too. Pictures are scaled to at most about "
        f"{side} x {side} pixels, sounds cut at {config.max_audio_seconds:g} s. model=qwen2_5_omni_3b model.path=… has "
        "those of a real one"
    )


def warning_before_loading(config: ModelConfig) -> str | None:
    """`other_architecture` of a folder whose config.json has the dimensions, or of a path in a file of conf/model; a
    warning if a path that is not on this disk is planned as the embedded model; else None.
    """
    file = Path(resolve(config.path)) / "config.json"
    if not file.parent.exists():
        known = {model.path: model.architecture for model in shipped_models().values()}
        if config.path in known:
            return other_architecture(config, known[config.path].layers, known[config.path].width)
        says = config.architecture
        if (says.layers, says.width) != (known["tiny"].layers, known["tiny"].width):
            return None  # the closest file of conf/model was chosen
        return (
            f"the dimensions of {config.path} are not known before it is loaded; the plan is for the embedded model. "
            "model=qwen2_5_omni_3b model.path=… has those of a real one"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:  # a run says what is wrong with it, when it loads the weights
        return None
    text = found.get("thinker_config", found).get("text_config", {})
    if not {"num_hidden_layers", "hidden_size"} <= text.keys():
        return None
    return other_architecture(config, text["num_hidden_layers"], text["hidden_size"])


def _not_counted(config: Config) -> list[str]:
    """What a run also does but the hours do not include."""
    found = ["evaluations", "saves", "the start"]
    found += ["the rollouts and passes of reward.integration"] if config.reward.lambda_int else []
    found += ["unpacking 4-bit weights"] if config.adapter.kind is Adapter.qlora else []
    return found + (["how vLLM differs from our decoder"] if config.uses_vllm else [])


def gpus(config: Config, parameters: dict[str, int], tokens: list[Tokens]) -> dict[str, Any]:
    """Hours, memory and growth on 1, 8 and 64 GPUs and on the run's number of them, by `step_time`; none is measured on
    a GPU.

    Args:
        config: the run's.
        parameters: of `count_parameters`.
        tokens: of each training prompt.
    """
    architecture, trainer = config.model.architecture, config.trainer
    adapts = config.adapter.kind is not Adapter.none
    frozen = _frozen(config)
    model = step_time.Model(
        architecture,
        audio=architecture.audio_parameters,
        vision=architecture.vision_parameters,
        learning=parameters["learning"],
        learning_language=not adapts and "language" not in frozen,
        learning_towers=not adapts and not {Part.audio, Part.vision} <= set(config.model.freeze),
        adapts=adapts,
        total=parameters["total"],
    )
    step = step_time.Step(
        prompts=trainer.prompts_per_step,
        prompt=statistics.fmean(each.total for each in tokens),
        seen=statistics.fmean(each.image + each.video for each in tokens),
        heard=statistics.fmean(each.audio for each in tokens),
        group=config.grpo.group_size,
        completion=min(step_time.LENGTH, config.generation.max_new_tokens),
        micro_batch=trainer.micro_batch_prompts,
        updates=config.grpo.updates_per_rollout,
        given=config.task is Task.sft,
        shared=config.grpo.shared_prefix,
    )
    rollouts = -(-training_steps(trainer, step.updates, len(tokens)) // step.updates)
    asked = rollouts * step.prompts
    longest = max(each.total for each in tokens)
    found: dict[str, Any] = {"completion_tokens": step.completion, "longest_completion": 2 * step.completion}
    for count in sorted({1, step_time.NODE, 8 * step_time.NODE, trainer.processes}):
        sharding = trainer.sharding if count > 1 or trainer.sharding.is_deepspeed else Sharding.none
        if count > 1 and trainer.processes == 1 and sharding is Sharding.none and not adapts:
            sharding = Sharding.fsdp2  # what a run for one GPU is likely to use there
        several = replace(config, trainer=replace(trainer, processes=count, sharding=sharding))
        setting = {"gpus": count, "sharded": memory.SHARDED_PARTS[sharding], "reference": config.grpo.beta > 0}
        setting["across_machines"] = sharding.is_deepspeed
        at: dict[str, Any] = {"sharding": sharding.name}
        for gpu in step_time.GPUS:
            again, needed = _memory_on(several, parameters, longest, gpu.memory)
            at[gpu.name] = {
                "fits": needed <= memory.USABLE * gpu.memory,
                "memory_bytes": needed,
                "gradient_checkpointing": again,
                **step_time.hours(model, step, asked, gpu, again=again, **setting),
            }
        found[str(count)] = at
        if count == step_time.NODE:
            gpu = step_time.GPUS[1]
            again = at[gpu.name]["gradient_checkpointing"]
            found["twice of it costs"] = step_time.growth(model, step, asked, gpu, again=again, **setting)
    return found


def _memory_on(config: Config, parameters: dict[str, int], longest: int, room: int) -> tuple[bool, int]:
    """Whether activations are recomputed on a GPU with `room` bytes of memory, and the bytes that are needed then.

    If the configuration leaves it open, they are kept if they fit, as in `setup.with_checkpointing_decided`.
    """

    def needed(again: bool) -> int:
        trainer = replace(config.trainer, gradient_checkpointing=again)
        return needs(replace(config, trainer=trainer), parameters, longest).total

    again = config.trainer.gradient_checkpointing
    if again is None:
        again = needed(False) > memory.USABLE * room
    return again, needed(again)


def _tokens(sample: Sample, media_info, prompt: Prompt, model: ModelConfig) -> Tokens:
    written = sum(len(part.get("text", "")) for turn in build_messages(sample, prompt) for part in turn["content"])
    media = bool(media_info.image) + bool(media_info.frame) + (media_info.kept is not None and not media_info.frame)
    return prompt_tokens(media_info, written // CHARACTERS + CHAT + media, model)


def count_parameters(config: Config) -> dict[str, int]:
    """Parameters of the model by part, and how many learn; an adapter's are added to the total."""
    architecture, adapter = config.model.architecture, config.adapter
    parts = {
        "language": architecture.language_parameters,
        "head": 0 if architecture.tied_head else architecture.head,
        "audio": architecture.audio_parameters,
        "vision": architecture.vision_parameters,
    }
    added = 0
    if adapter.kind is Adapter.none:
        learning = sum(parts.values()) - sum(parts[name] for name in _frozen(config))
        learning += sum(
            getattr(architecture, f"{part.name.removesuffix('_encoder')}_projection_parameters")
            for part in config.model.freeze
            if part in (Part.audio_encoder, Part.vision_encoder)
        )
    else:
        width = architecture.width
        sides = {
            **dict.fromkeys(("q_proj", "o_proj"), 2 * width),
            **dict.fromkeys(("k_proj", "v_proj"), width + architecture.key_width),
            **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), width + architecture.feed_forward),
        }
        learning = added = architecture.layers * adapter.rank * sum(sides.get(target, 0) for target in adapter.targets)
    return {**parts, "adapter": added, "total": sum(parts.values()) + added, "learning": learning}


def _frozen(config: Config) -> set[str]:
    """Names of the frozen parts; a frozen tower's projection may still learn."""
    frozen = {part.name.removesuffix("_encoder") for part in config.model.freeze}
    return frozen | {"head"} if "language" in frozen else frozen


def disk_bytes(config: Config, parameters: dict[str, int]) -> dict[str, int]:
    """Bytes of checkpoints: the weights (or the adapter) of one, the optimizer's state of one that training can resume
    from, what the first process writes of both, the export for the hub, and the most that exists at a time, including
    the checkpoint that is being written and the export.
    """
    trainer, adapts = config.trainer, config.adapter.kind is not Adapter.none
    deepspeed = trainer.sharding.is_deepspeed
    halves = deepspeed and trainer.bf16  # it holds and saves the module in bfloat16
    weights = parameters["learning"] * 4 if adapts else _bytes(config, parameters)
    weights = min(weights, 2 * parameters["total"]) if halves and not adapts else weights
    state = 2 * parameters["learning"] * (4 if adapts or config.model.dtype is Dtype.float32 else 2)
    if deepspeed:  # float32 weights and moments; ZeRO-2 also the module, once more
        state = 12 * parameters["learning"] + (weights if trainer.sharding is Sharding.zero2 else 0)
    kept = (trainer.keep_checkpoints if trainer.save_every else 1) + bool(config.eval.every)
    export = 4 * (parameters["total"] - parameters["adapter"]) if trainer.push_to_hub else 0  # float32, merged
    total = (kept + 1) * weights + (min(kept, checkpoint.RESUMABLE) + 1) * state + export
    # FSDP2's processes write a shard each, DeepSpeed's of the optimizer alone; of an adapter there are none.
    divided = 0 if adapts or trainer.sharding is Sharding.none else state + (0 if deepspeed else weights)
    first = weights + state - divided + divided // trainer.processes
    return {
        "checkpoint": weights,
        "optimizer": state,
        "first_process": first,
        "kept": kept,
        "export": export,
        "total": total,
    }


def _bytes(config: Config, parameters: dict[str, int]) -> int:
    """Bytes of the weights as they are loaded."""
    size = 4 if config.model.dtype is Dtype.float32 else 2
    small = config.model.architecture.linear if config.adapter.kind is Adapter.qlora else 0  # in 4 bits
    return round((parameters["total"] - parameters["adapter"] - small) * size + small * NF4) + parameters["adapter"] * 4


def needs(config: Config, parameters: dict[str, int], longest: int) -> memory.Estimate:
    """Memory of one process, as on a GPU.

    Args:
        config: the run's.
        parameters: of `count_parameters`.
        longest: tokens of the longest prompt.
    """
    model = memory.Model(
        config.model.architecture,
        parameters=parameters["total"],
        weight_bytes=_bytes(config, parameters),
        itemsize=4 if config.model.dtype is Dtype.float32 else 2,
        quantized=config.adapter.kind is Adapter.qlora,
        joins_keys=False,
    )
    return memory.of_run(config, model, parameters["learning"], longest=longest, among=_among(config.trainer))


def _among(trainer: TrainerConfig) -> int:
    """How many processes divide weights and optimizer among themselves: with FSDP2 those of one node."""
    return min(trainer.processes, step_time.NODE) if trainer.sharding is Sharding.fsdp2 else trainer.processes


def lines(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """The plan for the screen: labels and texts."""
    gib = lambda size: f"{size / 2**30:,.1f} GiB" if size >= 2**27 else f"{size / 2**20:,.1f} MiB"  # noqa: E731
    samples, tokens, parameters = plan["samples"], plan["prompt_tokens"], plan["parameters"]
    prompt = [f"{name} {of['median']:,.0f} (most {of['most']:,})" for name, of in tokens.items() if of["most"]]
    rows = [
        ("samples", " · ".join(f"{number:,} {split}" for split, number in samples.items() if number)),
        (
            "steps",
            f"{plan['steps']:,} of {plan['prompts_per_step']} prompts, {plan['completions_per_step']} completions "
            f"({counted(plan['epochs'], 'epoch')}, {plan['completions']:,} completions in all)",
        ),
        ("processes", f"{plan['world_size']}, gradients accumulated {plan['accumulation']} times"),
        ("prompt", f"{' · '.join(prompt)} tokens"),
        ("weights", f"{parameters['total']:,} parameters, {parameters['learning']:,} learn"),
    ]
    apart = ("total", "engine_between")  # included in the engine's
    for name, parts in plan["memory_bytes_per_process"].items():
        inside = " · ".join(f"{part} {gib(size)}" for part, size in parts.items() if size and part not in apart)
        rows.append(("memory", f"{name}: about {gib(parts['total'])} a process at worst ({inside})"))
    if tokens["total"]["most"] > (cap := plan["prompt_tokens_cap"]):
        rows.append(("", f"the longest is over model.max_prompt_tokens={cap}: it will be refused"))
    how = {None: "kept if they fit, else recomputed", True: "recomputed", False: "kept"}
    again = how[plan["gradient_checkpointing"]]
    rows.append(("", f"activations {again} in the backward pass; an estimate, see echoink/planning/memory.py"))
    disk = plan["disk_bytes"]
    state = f"{gib(disk['optimizer'])} of optimizer beside the newest {checkpoint.RESUMABLE}"
    rows.append(("disk", f"{gib(disk['checkpoint'])} a checkpoint, {state}, at most {gib(disk['total'])} at a time"))
    read = gib((disk["checkpoint"] + disk["optimizer"]) / plan["world_size"])
    then = " (the first process), each" if plan["world_size"] > 1 else " and"
    rows.append(("", f"a save writes {gib(disk['first_process'])}{then} reads {read} again for its checksums"))
    if parameters["total"] > 1e8:  # for a smaller one nobody rents a GPU
        rows += [("GPUs", line) for line in _gpu_lines(plan["gpus"])]
        rows.append(("", f"the hours leave out {', '.join(plan['hours_without'])}"))
        if plan["computes_in"] == "float32":
            rows.append(("", "they are for bfloat16 (trainer.bf16=true); in float32 they are several times as many"))
    return rows


def _gpu_lines(found: dict[str, Any]) -> list[str]:
    name = step_time.GPUS[1].name
    made = []
    for gpus in sorted(int(key) for key in found if key.isdigit()):
        at, of = found[str(gpus)], found[str(gpus)][name]
        how = "" if at["sharding"] == "none" else f" with trainer.sharding={at['sharding']}"
        spent = of["seconds_per_step"]
        parts = " · ".join(f"{part} {spent[part]:.1f}" for part in spent if part != "total" and spent[part] >= 0.05)
        parts = parts or "under 0.1"
        took = f"{of['hours']:.1f} h" if of["hours"] >= 0.1 else counted(max(1, round(60 * of["hours"])), "minute")
        text = f"{gpus} x {name}{how}: about {took}, {of['gpu_hours']:.0f} GPU-hours"
        text += f" ({counted(of['steps'], 'step')} of {of['prompts_per_step']} prompts; s a step: {parts})"
        full = f"does not fit, {of['memory_bytes'] / 2**30:.0f} GiB would be needed on each{how}"
        made.append(text if of["fits"] else f"{gpus} x {name}: {full}")
    twice = found["twice of it costs"]
    grows = " · ".join(f"{key.replace('_', ' ')} {times:.2f}" for key, times in twice.items())
    made.append(f"twice as many {grows} times the cost; completions of {found['completion_tokens']} tokens assumed")
    made.append(
        "peaks are the vendor's, the fractions reached are assumed; not measured, see echoink/planning/step_time.py"
    )
    return made
