"""Makes the embedded model: a real Qwen2.5-Omni thinker and processor of about a million parameters, warm-started.

    python -m echoink.tiny output=my_base
    python -m echoink.tiny output=my_base seed=1
    python -m echoink.tiny output=outputs/prone_base start=tiny steps=0 pool=3000 'kinds=[both]' sloppy_steps=350 \\
        sloppy_learning_rate=1e-3 sloppiness.follows=0.95    # from the embedded model, prone to a shortcut

Two supervised stages on reasoning traces (`data/synthetic_traces.py`), both runs of `echoink.train` with task=sft:
first correct ones, so that the model can listen, look, add and match; then a short stage on sloppy ones (`Sloppiness`),
so that, like a real base model, it can do the task but often does not: it guesses in haste, slips in a verdict, forgets
tags. GRPO then has something to learn. Scenes come from the `base` split of the synthetic generator, which no dataset
has. The same command resumes what was interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from echoink.common import cli
from echoink.common.console import progress, say
from echoink.common.errors import UserError
from echoink.common.files import as_json, read_json
from echoink.common.keys import key
from echoink.config.overrides import quoted
from echoink.config.paths import conf_dir
from echoink.config.schema import Prompt
from echoink.data import synthetic
from echoink.data.prompts import build_messages
from echoink.data.samples import Sample
from echoink.data.synthetic import Question, Scene
from echoink.data.synthetic_traces import Sloppiness, trace
from echoink.pipeline import stages
from echoink.pipeline.stages import Stage

CUES = ("ear", "eye")
"""Senses that a shortcut may follow, see `synthetic.cue`."""
TRACES = 2
"""Traces of each scene in a step."""
ASKED = 100
"""Questions that each stage is evaluated on, beyond the pool."""
WORDS = 4000
"""Number of scenes whose texts the vocabulary is learned from."""


@dataclass
class TinyConfig:
    """Settings of `python -m echoink.tiny`, given as key=value."""

    output: str = key("folder of the model", "outputs/tiny_base")
    seed: int = key("seed of weights, scenes and training", 0, ge=0)
    kinds: list[str] = key("kinds of question that are taught", list(synthetic.KINDS))
    pool: int = key("scenes with a question each", 12_000, ge=1)
    batch: int = key("scenes of a step, each with two traces", 32, ge=1)
    steps: int = key("updates on correct traces", 1_800, ge=0)
    learning_rate: float = key("peak learning rate of these", 2e-3, gt=0)
    sloppy_steps: int = key("updates on sloppy traces", 150, ge=0)
    sloppy_learning_rate: float = key("peak learning rate of these", 3e-4, gt=0)
    sloppiness: Sloppiness = field(default_factory=Sloppiness)
    start: str | None = key("base to start from, tiny or a folder; with steps=0 it learns sloppy traces alone", None)
    shortcut: str = key("the cue that a hasty guess follows, see sloppiness.follows", "ear")
    train: list[str] = key("further settings of echoink.train, for both stages", list)


def main(words: Sequence[str]) -> None:
    """Build, teach and save the base."""
    config = cli.settings(TinyConfig, words)
    output, settings = Path(config.output), OmegaConf.to_container(OmegaConf.structured(config))
    if not config.kinds or (unknown := [kind for kind in config.kinds if kind not in synthetic.KINDS]):
        what = f"no kind {unknown[0]}" if config.kinds else "it is empty"
        raise UserError(f"kinds={config.kinds}: {what}", f"there are {', '.join(synthetic.KINDS)}")
    if config.start not in (None, "tiny") and not Path(config.start).is_dir():
        raise UserError(f"start={config.start}: no such folder", "give a model folder, or tiny")
    if config.shortcut not in CUES:
        raise UserError(f"shortcut={config.shortcut} is no cue", f"there are {', '.join(CUES)}")
    for kind, share in config.sloppiness.haste.items():
        if kind not in synthetic.KINDS:
            raise UserError(f"sloppiness.haste.{kind}: no kind {kind}", f"there are {', '.join(synthetic.KINDS)}")
        if not 0 <= share <= 1:
            raise UserError(f"sloppiness.haste.{kind}={share} must be between 0 and 1", "it is a share")
    taught = [
        ("clean", config.steps, config.learning_rate),
        ("sloppy", config.sloppy_steps, config.sloppy_learning_rate),
    ]
    taught = [stage for stage in taught if stage[1]]
    work = stages.folder_of(output)
    runs = [_stage(config, work, *stage) for stage in taught]
    for run in runs:
        stages.check(run)
    stages.begin(output, settings, [name for name in settings if name != "output"])
    write_lessons(config, work, [(name, steps) for name, steps, _ in taught])
    # The first stage begins with `start`, or with random weights and a vocabulary of the scenes' texts.
    first = Path(config.start) if config.start else stages.made_once(work / "untrained", lambda: _untrained(config))
    model, record = stages.learn(runs, first, work)
    stages.finish(output, lambda part: _save(model, part), settings, record)


def _stage(config: TinyConfig, work: Path, name: str, steps: int, learning_rate: float) -> Stage:
    words = [
        "experiment=tiny_base",
        f"dataset.path={quoted(work / name)}",
        f"dataset.outside=[{quoted(work / 'scenes')}]",
    ]
    words += [f"trainer.steps={steps}", f"trainer.learning_rate={learning_rate}", f"seed={config.seed}"]
    words += [f"trainer.prompts_per_step={config.batch}", f"trainer.micro_batch_prompts={config.batch}"]
    return Stage(name, [*words, f"trainer.warmup_steps={min(100, steps // 5 + 1)}", *config.train])


def scenes(config: TinyConfig) -> list[tuple[Scene, Question]]:
    """The scenes of the pool, then those of the evaluations, as `synthetic.write` draws them."""
    drawn = []
    for index in range(config.pool + ASKED):
        rng = synthetic.generator(config.seed, "base", index)
        drawn.append(synthetic.draw(rng, config.kinds[index % len(config.kinds)]))
    return drawn


def write_lessons(config: TinyConfig, work: Path, taught: Sequence[tuple[str, int]]) -> None:
    """Write the scenes' pictures and sounds, and for each stage rows with as many traces as it shows of a scene.

    Args:
        config: what is drawn.
        work: folder of the stages.
        taught: names and steps of the stages.
    """
    media, drawn = work / "scenes", scenes(config)
    if not media.is_dir():
        sizes = {"base": len(drawn)}
        synthetic.write(media, config.seed, sizes, progress("scenes", len(drawn)), kinds=config.kinds)
    rows = read_json(media / "omni_rl_format_base.json")
    for number, (name, steps) in enumerate(taught):
        passes = -(-steps * config.batch // config.pool)
        told = config.sloppiness if name == "sloppy" else None
        lessons = []
        for index, (row, (scene, question)) in enumerate(zip(rows, drawn, strict=True)):
            rng = np.random.default_rng([config.seed, number, index])
            texts = [
                trace(rng, scene, question, sloppiness=told, shortcut=config.shortcut) for _ in range(TRACES * passes)
            ]
            path = {medium: str((media / "base" / file).resolve()) for medium, file in row["path"].items()}
            lessons.append({**row, "path": path, "responses": texts})
        (work / name).mkdir(exist_ok=True)
        for split, of in (("train", lessons[: config.pool]), ("valid", lessons[config.pool :])):
            (work / name / f"omni_rl_format_{split}.json").write_text(as_json(of), encoding="utf-8")


def _untrained(config: TinyConfig):
    import torch

    from echoink.models.tiny_architecture import make_model, make_processor

    torch.manual_seed(config.seed)
    texts = []
    for scene, question in scenes(config)[: min(WORDS, config.pool)]:
        texts.append(_asked(question))
        rng = np.random.default_rng(len(texts))
        texts += [trace(rng, scene, question), trace(rng, scene, question, Sloppiness())]
    processor = make_processor([*texts, *["user", "assistant", "system"] * 10])
    model = make_model(processor)
    say("model", f"{model.num_parameters():,} parameters, vocabulary {len(processor.tokenizer)}")
    return model, processor, {"stage": "untrained", "parameters": model.num_parameters()}


def _asked(question: Question) -> str:
    wording = Prompt(**OmegaConf.load(conf_dir() / "prompt" / "reason.yaml"))
    messages = build_messages(Sample("", question.text, question.options, ", ".join(question.gold)), wording)
    return messages[-1]["content"][-1]["text"]


def _save(model: Path, output: Path) -> None:
    """Save in bfloat16, which halves the size of a model that is shipped."""
    import torch

    from echoink.models.loading import load_model
    from echoink.pipeline.export import export

    export(model, output)
    loaded = load_model(str(model))
    state = {name: value.to(torch.bfloat16) for name, value in loaded.state_dict().items()}
    loaded.save_pretrained(output, state_dict=state)


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, TinyConfig), needs_words=False, again="the same command goes on")
