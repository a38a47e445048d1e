"""Checks echoink/planning/step_time.py on this machine: its operations against the executed ones, and its times.

    python experiments/step_time.py          the table of shapes
    python experiments/step_time.py paper    the estimate for the paper's run

The first shape gives one rate for each part (operations per second). The times of the other shapes are predicted with
it and measured in the same run. The model is the widened tiny architecture of `shape=paper`, in float32; see
experiments/scale.md.
"""

import gc
import sys

import torch
from hydra import compose, initialize_config_dir

from echoink.benchmark.baselines import Step
from echoink.benchmark.measure import BenchmarkConfig, executed_flops, make_systems, phases, timed
from echoink.config.compose import VERSION_BASE
from echoink.config.compose import compose as compose_run
from echoink.config.paths import conf_dir
from echoink.config.validate import typed
from echoink.data.token_counts import Tokens
from echoink.planning import memory, plan, step_time

SHAPES = {
    "as it is": [],
    "G 4": ["shape.group_size=4"],
    "G 32": ["shape.group_size=32"],
    "C 50": ["shape.completion_tokens=50"],
    "C 400": ["shape.completion_tokens=400"],
    "P 600": ["shape.prompt_tokens=600"],
    "P 2000": ["shape.prompt_tokens=2000"],
    "2 prompts": ["shape.prompts=2"],
}


def composed(words: list[str]) -> BenchmarkConfig:
    """The benchmark's configuration at a shape."""
    with initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
        settings = ["shape=paper", "growth=false", "device=cpu", "repeats=3", *words]
        return typed(compose("benchmark", overrides=settings), BenchmarkConfig)


def predicted(system: Step) -> dict[str, float]:
    """Operations of each phase of our step, by `step_time.operations`."""
    thinker, work = system.unwrapped, system.work
    tower = lambda part: sum(p.numel() for p in part.parameters())  # noqa: E731
    model = step_time.Model(
        memory.model_of(thinker).dimensions,
        audio=tower(thinker.model.audio_tower),
        vision=tower(thinker.model.visual),
        learning=thinker.num_parameters(),
        learning_language=True,
        learning_towers=True,
        total=thinker.num_parameters(),
    )
    tokens = torch.stack([prompt.input_ids for prompt in work.prompts[:1]])
    step = step_time.Step(
        prompts=len(work.prompts),
        prompt=sum(len(prompt.input_ids) for prompt in work.prompts) / len(work.prompts),
        seen=int((tokens == thinker.config.image_token_id).sum()),
        heard=int((tokens == thinker.config.audio_token_id).sum()),
        group=work.group,
        completion=float(work.mask.sum(1).float().mean()),
        micro_batch=len(work.prompts),
        updates=1,
    )
    does = step_time.operations(model, step)
    return {
        "prefill": does["prefill"],
        "rollout": does["prefill"] + does["decode"],
        "reference": does["forward"],
        "update": 3 * does["forward"],
    }


def paper() -> None:
    """The paper's run: 4,490 samples with pictures of 640x360 and sounds of 10 s, about 78 tokens of text."""
    config = compose_run(["experiment=echoink_r1_7b", "dataset.path=unused"])[0].config
    tokens = [Tokens(text=78, image=252, audio=250, video=0)] * 4490
    config.dataset.train, parameters = len(tokens), plan.count_parameters(config)
    for mean in (step_time.LENGTH, config.generation.max_new_tokens // 2):
        step_time.LENGTH = mean
        found = plan.gpus(config, parameters, tokens)
        print(f"\ncompletions of {mean} tokens, the longest of a step {2 * mean}\n")
        print("| | steps | rollout | reference | update | optimizer | s per step | hours | GPU-hours |\n|" + "---|" * 9)
        for count in ("8", "64"):
            for gpu in step_time.GPUS:
                of = found[count][gpu.name]
                parts = " | ".join(f"{value:.2f}" for value in of["seconds_per_step"].values())
                steps = f"{of['steps']} of {of['prompts_per_step']} prompts"
                print(f"| {count} x {gpu.name} | {steps} | {parts} | {of['hours']:.1f} | {of['gpu_hours']:.1f} |")
        print("twice of it costs", {name: round(times, 2) for name, times in found["twice of it costs"].items()})


def main() -> None:
    """Print the table."""
    rates: dict[str, float] = {}
    print("| shape | part | operations: predicted / executed | seconds: predicted / timed |\n|---|---|---|---|")
    for name, words in SHAPES.items():
        config = composed(words)
        systems = {"ours": make_systems(config, torch.device("cpu"))["ours"]}
        system = systems["ours"]
        says = predicted(system)
        executed = {phase: executed_flops(run) for phase, run in phases(system)}
        spent = {
            phase: of["median"] for phase, of in timed(systems, config.repeats, torch.device("cpu"))["ours"].items()
        }
        for part in ("rollout", "reference", "update"):
            rates.setdefault(part, says[part] / spent[part])
            foretold = says[part] / rates[part]
            counted = f"{says[part] / 1e9:.0f} / {executed[part] / 1e9:.0f} G = {says[part] / executed[part]:.2f}"
            timing = f"{foretold:.2f} / {spent[part]:.2f} = {foretold / spent[part]:.2f}"
            print(f"| {name} | {part} | {counted} | {timing} |", flush=True)
        del systems, system
        gc.collect()


if __name__ == "__main__":
    paper() if sys.argv[1:] == ["paper"] else main()
