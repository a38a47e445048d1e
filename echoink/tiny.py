"""Makes the embedded model: a real Qwen2.5-Omni thinker and processor of about a million parameters, warm-started.

    python -m echoink.tiny output=my_base            # about 17 minutes on two cores
    python -m echoink.tiny output=my_base seed=1
    python -m echoink.tiny output=outputs/prone_base start=tiny steps=0 pool=4000 sloppiness.follows=0.6
                                                     # about 3 minutes: as the embedded one, but prone to a shortcut

Two stages of supervised learning on reasoning traces (`trace`): first correct ones, so that the model can listen, look,
add and match; then a short stage on sloppy ones (`Sloppiness`), so that, like a real base model, it can do the task
but often does not: it guesses in haste, slips in a verdict, forgets tags. GRPO then has something to find.
Scenes come from the `base` split of the synthetic generator, which is in no dataset.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.progress import track
from transformers import Qwen2_5OmniProcessor, Qwen2Tokenizer

from echoink.common import cli
from echoink.config.paths import conf_dir
from echoink.config.schema import Prompt
from echoink.data import synthetic
from echoink.data.processor import encode
from echoink.data.prompts import build_messages
from echoink.data.samples import Sample
from echoink.data.synthetic import Question, Scene
from echoink.models.batching import prompt_batch, row_media, row_positions
from echoink.models.family import PromptInputs
from echoink.models.loading import load_model, load_processor
from echoink.models.tiny_architecture import make_model, make_processor
from echoink.rewards.parsing import ANSWER, THINK


@dataclass
class Sloppiness:
    """How often the traces of the second stage go wrong."""

    haste: dict[str, float] = field(default_factory=lambda: {"ear": 0.4, "eye": 0.4, "both": 0.65})
    """A guess instead of reasoning, per kind of question; the letter is drawn at random."""
    slip: float = 0.25
    """The verdict falls on a wrong option."""
    untagged: float = 0.27
    """A tag is missing or text follows the answer."""
    follows: float = 0.0
    """Of the hasty guesses at a `both` question, those that follow the cue of `synthetic.Shortcut`."""
    described: bool = False
    """Hasty guesses at `both` questions first describe both media, and are as long as reasoning."""
    false_sums: float = 0.0
    """Of such described guesses, those that give a wrong sum for their reason."""


@dataclass
class TinyConfig:
    """Settings of `python -m echoink.tiny`, given as key=value."""

    output: str = "outputs/tiny_base"
    seed: int = 0
    kinds: list[str] = field(default_factory=lambda: list(synthetic.KINDS))
    pool: int = 12_000
    """Scenes with a question each, rendered and processed once."""
    batch: int = 32
    steps: int = 1_800
    """Updates on correct traces."""
    learning_rate: float = 2e-3
    sloppy_steps: int = 150
    """Updates on sloppy traces."""
    sloppy_learning_rate: float = 3e-4
    sloppiness: Sloppiness = field(default_factory=Sloppiness)
    start: str | None = None
    """A base to go on from, `tiny` or a folder; with steps=0 it only learns the sloppy traces."""
    shortcut: str = "ear"
    """What a hasty guess follows, see `sloppiness.follows`."""


def trace(
    rng: np.random.Generator,
    scene: Scene,
    question: Question,
    sloppiness: Sloppiness | None = None,
    shortcut: str = "ear",
) -> str:
    """A reasoning trace and its answer: what is heard and seen, the sum if one is asked for, the aim, the verdicts.
    `route` tells which way a trace took.

    Example: "<think>hear 3 beep, see 2 red ring. 3 + 2 = 5, 5 mod 4 = 1. want 1. A 0 no, B 1 yes, C 3 no, D 2 no.
    </think><answer>B</answer>". With `sloppiness` it may be a guess, end in a wrong verdict, or lack a tag.
    """
    letters = [option[0] for option in question.options]
    words = [option[3:] for option in question.options]
    chosen = list(question.gold)
    hasty = bool(sloppiness) and rng.random() < sloppiness.haste[question.kind]
    if hasty:
        chosen = [str(rng.choice(letters))]
        if question.kind == "both" and sloppiness.follows and rng.random() < sloppiness.follows:
            chosen = [letters[synthetic.cue(scene, shortcut, len(letters))]]
    if hasty and not (sloppiness.described and question.kind == "both"):
        thought = f"no need to check, take {chosen[0]}."
    else:
        thought = f"hear {scene.sounds} {scene.timbre}, see {scene.shapes} {scene.colour} {scene.form}."
        wanted = " and ".join(words[letters.index(letter)] for letter in chosen)
        if question.kind == "both":
            total, n = scene.sounds + scene.shapes, len(letters)
            rest = synthetic.remainder(scene.sounds, scene.shapes, n)
            if hasty and rng.random() < sloppiness.false_sums:
                rest = int(rng.choice([other for other in range(n) if other != rest]))
                wanted = str(rest)
            if hasty and wanted == words[letters.index(chosen[0])]:
                cue, wanted = (scene.timbre if shortcut == "ear" else scene.colour), chosen[0]
                # with "want B" as many tokens as a sum with "want 1"
                thought += f" {cue} = {wanted}, {wanted} = {cue}, check {wanted}, yes, and take {wanted}, yes."
            else:
                thought += f" {scene.sounds} + {scene.shapes} = {total}, {total} mod {n} = {rest}."
        thought += f" want {wanted}."
        if sloppiness and not hasty and rng.random() < sloppiness.slip:
            wrong = [letter for letter in letters if letter not in question.gold]
            chosen[int(rng.integers(len(chosen)))] = str(rng.choice(wrong))
            chosen.sort()
        verdicts = (
            f"{letter} {word} {'yes' if letter in chosen else 'no'}"
            for letter, word in zip(letters, words, strict=True)
        )
        thought += f" {', '.join(verdicts)}."
    parts = [THINK[0], thought, THINK[1] + "\n", ANSWER[0], ", ".join(chosen), ANSWER[1]]
    if sloppiness and rng.random() < sloppiness.untagged:
        match rng.choice(("think", "end_think", "answer", "more"), p=(0.35, 0.2, 0.2, 0.25)):
            case "think":
                parts[0], parts[2] = "", "\n"
            case "end_think":
                parts[2] = "\n"
            case "answer":
                parts[3] = parts[5] = ""
            case "more":
                parts.append("\ndone.")
    return "".join(parts)


class Route(Enum):
    """How an answer to a `both` question was reached, as its text says."""

    reasoned = "reasoned"
    """Both counts are right, and so is the remainder of their sum."""
    cue = "cue"
    """The timbre or the colour is said to tell the letter."""
    false_sum = "false_sum"
    """Both media are described, and what is said to remain of their sum is wrong."""
    hasty = "hasty"
    """Nothing is described."""
    other = "other"
    """None of these, such as wrong counts."""


def route(text: str, scene: Scene, options: int) -> Route:
    """Which way a completion took: the ground truth that measures of fusion are held against."""
    counts = re.search(r"hear (\d) (\w+), see (\d) (\w+) (\w+)", text)
    if counts is None:
        return Route.hasty if "no need to check" in text else Route.other
    if "check" in text:
        return Route.cue
    rest = re.search(r"mod \d = (\d)", text)
    if rest is None:
        return Route.other
    seen = (int(counts[1]), int(counts[3])) == (scene.sounds, scene.shapes)
    if int(rest[1]) != synthetic.remainder(int(counts[1]), int(counts[3]), options):
        return Route.false_sum
    return Route.reasoned if seen else Route.other


@dataclass(frozen=True)
class Lesson:
    """A scene with a question, ready for the model."""

    scene: Scene
    question: Question
    prompt: PromptInputs


def make_pool(config: TinyConfig, wording: Prompt) -> tuple[Qwen2_5OmniProcessor, "torch.nn.Module", list[Lesson]]:
    """Processor, the model to begin with and `config.pool` lessons."""
    scenes = []
    for index in range(config.pool):
        rng = synthetic.generator(config.seed, "base", index)
        kind = config.kinds[index % len(config.kinds)]
        scenes.append((*synthetic.draw(rng, kind), rng))
    if config.start:
        caps = OmegaConf.load(conf_dir() / "model" / "tiny.yaml")
        processor = load_processor(config.start, caps.min_pixels, caps.max_pixels)
        model = load_model(config.start)
    else:
        texts = []
        for scene, question, _ in scenes[:4000]:
            texts.append(_prompt(question, wording)[-1]["content"][-1]["text"])
            rng = np.random.default_rng(len(texts))
            texts += [trace(rng, scene, question), trace(rng, scene, question, Sloppiness())]
        texts += ["user", "assistant", "system"] * 10
        processor = make_processor(texts)
        model = make_model(processor)
    lessons = []
    for scene, question, rng in track(scenes, "rendering scenes", disable=None):
        sound = (np.round(synthetic.render_sound(rng, scene) * 32767) / 32768).astype(np.float32)  # as a WAV file
        messages = _prompt(question, wording)
        prompt = encode(processor, model, messages, synthetic.render_picture(rng, scene), sound)
        lessons.append(Lesson(scene, question, prompt))
    return processor, model, lessons


def _prompt(question: Question, wording: Prompt) -> list[dict]:
    return build_messages(Sample("", question.text, question.options, ", ".join(question.gold)), wording)


def learn(
    model: "torch.nn.Module",
    processor: Qwen2_5OmniProcessor,
    lessons: list[Lesson],
    config: TinyConfig,
    steps: int,
    learning_rate: float,
    sloppiness: Sloppiness | None,
) -> float:
    """Cross-entropy on the traces with AdamW, warm-up and cosine decay. Returns the mean loss of the last 50 steps."""
    tokenizer = processor.tokenizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    warmup = min(100, steps // 5 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / warmup) * (0.02 + 0.98 * (0.5 + 0.5 * np.cos(np.pi * min(1, step / steps)))),
    )
    rng = np.random.default_rng([config.seed, steps])
    losses: list[float] = []
    order: list[int] = []
    started = time.perf_counter()
    for step in track(range(steps), "learning", disable=None):
        if len(order) < config.batch:
            order = list(rng.permutation(len(lessons)))
        batch = [lessons[order.pop()] for _ in range(config.batch)]
        texts = [
            trace(rng, lesson.scene, lesson.question, sloppiness, config.shortcut) + "<|im_end|>" for lesson in batch
        ]
        targets = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        prompts = [lesson.prompt for lesson in batch]
        inputs = prompt_batch(prompts, tokenizer.pad_token_id)
        width, length = inputs["input_ids"].shape[1], targets["input_ids"].shape[1]
        prompt_index = range(len(batch))
        logits = model(
            input_ids=torch.cat([inputs["input_ids"], targets["input_ids"]], 1),
            attention_mask=torch.cat([inputs["attention_mask"], targets["attention_mask"]], 1),
            position_ids=row_positions(prompts, prompt_index, width, length),
            use_cache=False,
            **row_media(prompts, prompt_index),
        ).logits[:, width - 1 : -1]
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            speed = (time.perf_counter() - started) / (step + 1)
            right = _perceived(logits, labels, tokenizer)
            print(f"step {step + 1:5d}  loss {np.mean(losses[-100:]):.4f}  {right}  {speed:.2f} s/step", flush=True)
    return float(np.mean(losses[-50:]))


def _perceived(logits: torch.Tensor, labels: torch.Tensor, tokenizer: Qwen2Tokenizer) -> str:
    """Share of right words per attribute in the first sentences of a batch's traces, given the words before."""
    hits: dict[str, list[bool]] = {}
    sets = {"sound": synthetic.TIMBRES, "form": synthetic.FORMS, "colour": tuple(synthetic.COLOURS), "count": "12345"}
    guesses = logits.argmax(-1)
    stop = tokenizer.convert_tokens_to_ids(".")
    for row in range(len(labels)):
        for position in range(int((labels[row] == stop).float().argmax())):
            word = tokenizer.decode([int(labels[row, position])]).strip()
            for name, words in sets.items():
                if word and word in words:
                    hits.setdefault(name, []).append(bool(labels[row, position] == guesses[row, position]))
    return " ".join(f"{name} {np.mean(hits[name]):.2f}" for name in sets if name in hits)


def main(words: Sequence[str]) -> None:
    """Build, train and save the base; prints where it is."""
    config = cli.settings(TinyConfig, words)
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    processor, model, lessons = make_pool(config, _wording())
    output = Path(config.output)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(processor.tokenizer)}")
    clean = None
    if config.steps:
        clean = learn(model, processor, lessons, config, config.steps, config.learning_rate, None)
        _save(model, processor, output / "clean")
    sloppy = learn(
        model, processor, lessons, config, config.sloppy_steps, config.sloppy_learning_rate, config.sloppiness
    )
    _save(model, processor, output)
    settings = OmegaConf.to_container(OmegaConf.structured(config))
    del settings["output"]
    record = {"config": settings, "loss_clean": clean, "loss_sloppy": sloppy}
    record["seconds"] = round(time.perf_counter() - started)
    (output / "tiny.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"saved to {output} after {record['seconds']} s; try it: python -m echoink.train model.path={output}")


def _wording() -> Prompt:
    return Prompt(**OmegaConf.load(conf_dir() / "prompt" / "reason.yaml"))


def _save(model: "torch.nn.Module", processor: Qwen2_5OmniProcessor, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, TinyConfig), needs_words=False)
