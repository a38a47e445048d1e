"""A synthetic audio-visual set: rendered pictures and synthesized sounds, written in the official layout.

A scene is a sound (1 to 5 events of one timbre within a second) and a picture (1 to 5 shapes of one form and colour).
Three kinds of question are asked about it:

    ear     the timbre or the number of sounds
    eye     the form, the colour or the number of shapes
    both    (number of sounds + number of shapes) mod N, where N is the number of options

Both counts of a `both` scene are drawn uniformly from 1..N and independently of everything else, so given the text and
either medium alone each option is right with probability 1/N exactly: the answer needs both. Options are shuffled, so
position tells nothing. Some `ear` and `eye` questions ask for two right letters; some questions have three or five
options. Every scene has its own stream of random numbers, keyed by (seed, split, index): splits share no waveform and
no picture, and sample i does not depend on how many are made.

A set may have a shortcut (`Shortcut`). In a share of the training questions of kind `both`, and nowhere else, one
medium alone gives the right letter away, by a property that the question is not about: the timbre (or the colour)
decides the letter of the right option. A model that follows it is right in training and guesses in validation.
Such a set has only questions of kind `both`, unless others are asked for (`kinds`). Then each row says which senses its
question needs (`need`), and each `both` row whether the right letter is that of the cue (`cue`: agrees, contradicts).
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

from echoink.media.loaders import SAMPLING_RATE

VERSION = 1
"""Part of every seed: increase it when the same seed should give other data."""

TIMBRES = ("beep", "buzz", "hiss", "chirp", "knock")
FORMS = ("square", "ring", "cross", "bar", "dash")
COLOURS = {
    "red": (214, 48, 49),
    "green": (39, 174, 96),
    "blue": (41, 98, 255),
    "yellow": (245, 205, 30),
    "white": (250, 250, 250),
}
RECIPE = "synthetic.json"
"""The file of a set that says how it was made."""

KINDS = ("ear", "eye", "both")
NEEDS = {"ear": "audio", "eye": "image", "both": "both"}
"""Which senses a kind of question needs, in the words of `evaluation.modality_need`."""
SECONDS = 1.0
PIXELS = 224
_GRID = 4
_SPLIT_KEYS = {"train": 0, "valid": 1, "dev": 2, "base": 3}
"""`base` is used only to make the tiny base, so nothing that the base has seen is in another split."""


@dataclass(frozen=True)
class Shortcut:
    """A cue that gives the right letter away in training."""

    sense: str
    """`ear`: the timbre; `eye`: the colour."""
    share: float
    """Of the training questions of kind `both`, in [0, 1]."""


@dataclass(frozen=True)
class Scene:
    """What is heard and seen."""

    timbre: str
    sounds: int
    form: str
    colour: str
    shapes: int


@dataclass(frozen=True)
class Question:
    """A question about a scene with its labelled options and right letters."""

    kind: str
    text: str
    options: tuple[str, ...]
    gold: tuple[str, ...]
    chance: float | None = None
    """For two right letters: the chance of a guess that knows that each aspect has one of them."""


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one sample."""
    return np.random.default_rng([VERSION, seed, _SPLIT_KEYS[split], index])


def draw(rng: np.random.Generator, kind: str) -> tuple[Scene, Question]:
    """Draw a scene and a question of the given kind about it."""
    options = int(rng.choice((3, 4, 5), p=(0.1, 0.8, 0.1)))
    most = options if kind == "both" else 5
    scene = Scene(
        timbre=str(rng.choice(TIMBRES)),
        sounds=int(rng.integers(1, most + 1)),
        form=str(rng.choice(FORMS)),
        colour=str(rng.choice(list(COLOURS))),
        shapes=int(rng.integers(1, most + 1)),
    )
    return scene, ask(rng, scene, kind, options)


def cue(scene: Scene, sense: str, options: int) -> int:
    """The index at which a shortcut puts the right option among `options`."""
    names, seen = {"ear": (TIMBRES, scene.timbre), "eye": (tuple(COLOURS), scene.colour)}[sense]
    return names.index(seen) % options


def given_away(question: Question, scene: Scene, sense: str) -> Question:
    """The question, with its only right option swapped with the option that the cue points at."""
    letters = [option[0] for option in question.options]
    words = [option[3:] for option in question.options]
    right, wanted = letters.index(question.gold[0]), cue(scene, sense, len(words))
    words[right], words[wanted] = words[wanted], words[right]
    options = tuple(f"{letter}. {word}" for letter, word in zip(letters, words, strict=True))
    return Question(question.kind, question.text, options, (letters[wanted],))


def remainder(sounds: int, shapes: int, options: int) -> int:
    """The answer to a `both` question."""
    return (sounds + shapes) % options


def ask(rng: np.random.Generator, scene: Scene, kind: str, options: int) -> Question:
    """Draw a question of a kind about a scene, with that number of options."""
    numbers = [str(number) for number in range(1, 6)]
    if kind == "both":
        text = f"Add the number of sounds to the number of shapes. What is left after division by {options}?"
        right = [str(remainder(scene.sounds, scene.shapes, options))]
        wrong = [str(number) for number in range(options) if str(number) not in right]
        return _shuffled(rng, kind, text, right=right, wrong=wrong)
    if kind == "ear":
        heard = {"timbre": (scene.timbre, list(TIMBRES)), "count": (str(scene.sounds), numbers)}
        asked = {"timbre": "What kind of sound is heard?", "count": "How many sounds are heard?"}
        pair = ("timbre", "count"), "Which two fit the sound?"
    else:
        heard = {
            "form": (scene.form, list(FORMS)),
            "colour": (scene.colour, list(COLOURS)),
            "count": (str(scene.shapes), numbers),
        }
        asked = {
            "form": "What kind of shape is seen?",
            "colour": "Which colour do the shapes have?",
            "count": "How many shapes are seen?",
        }
        pair = tuple(rng.permutation(list(heard))[:2]), "Which two fit the picture?"
    if options > 3 and rng.random() < 0.12:
        aspects, text = pair
        right = [heard[aspect][0] for aspect in aspects]
        wrong = [word for aspect in aspects for word in heard[aspect][1] if word not in right]
    else:
        aspect = str(rng.choice(list(heard)))
        text, right = asked[aspect], [heard[aspect][0]]
        wrong = [word for word in heard[aspect][1] if word not in right]
    wrong = [str(word) for word in rng.permutation(wrong)[: options - len(right)]]
    made = _shuffled(rng, kind, text, right=right, wrong=wrong)
    if len(right) == 1:
        return made
    offered = [sum(word in heard[aspect][1] for word in right + wrong) for aspect in aspects]
    return replace(made, chance=1 / (offered[0] * offered[1]))


def _shuffled(rng: np.random.Generator, kind: str, text: str, right: list[str], wrong: list[str]) -> Question:
    words = [str(word) for word in rng.permutation(right + wrong)]
    letters = [chr(ord("A") + position) for position in range(len(words))]
    return Question(
        kind=kind,
        text=text,
        options=tuple(f"{letter}. {word}" for letter, word in zip(letters, words, strict=True)),
        gold=tuple(letter for letter, word in zip(letters, words, strict=True) if word in right),
    )


def render_sound(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """One second of mono float32 at 16 kHz with `scene.sounds` events, shape [16000]."""
    rate, length = SAMPLING_RATE, int(0.1 * SAMPLING_RATE)
    sound = rng.normal(0, 0.003, int(SECONDS * rate))
    slots = np.sort(rng.permutation(5)[: scene.sounds])
    pitch = rng.uniform(0.85, 1.15)
    for slot in slots:
        start = int((0.2 * slot + rng.uniform(0.01, 0.06)) * rate)
        sound[start : start + length] += rng.uniform(0.6, 1.0) * _event(rng, scene.timbre, length, pitch)
    return (0.5 * sound / np.abs(sound).max() * rng.uniform(0.6, 1.0)).astype(np.float32)


def _event(rng: np.random.Generator, timbre: str, length: int, pitch: float) -> np.ndarray:
    t = np.arange(length) / SAMPLING_RATE
    fade = np.minimum(1, np.minimum(t, t[::-1]) / 0.008)
    match timbre:
        case "beep":
            return fade * np.sin(2 * np.pi * 1000 * pitch * t)
        case "buzz":
            return fade * 0.7 * np.sign(np.sin(2 * np.pi * 140 * pitch * t))
        case "hiss":
            return fade * rng.normal(0, 0.4, length)
        case "chirp":
            return fade * np.sin(2 * np.pi * pitch * (600 * t + 12_000 * t**2))
        case "knock":
            return np.exp(-t / 0.012) * np.sin(2 * np.pi * 220 * pitch * t) * 1.4
    raise AssertionError(timbre)


def render_picture(rng: np.random.Generator, scene: Scene) -> Image.Image:
    """A 224x224 RGB picture with `scene.shapes` shapes on a dark background."""
    scale = 2
    cell = PIXELS * scale // _GRID
    ground = tuple(int(value) for value in rng.integers(10, 60, 3))
    image = Image.new("RGB", (PIXELS * scale, PIXELS * scale), ground)
    pen = ImageDraw.Draw(image)
    fill = tuple(int(np.clip(value + rng.integers(-18, 19), 0, 255)) for value in COLOURS[scene.colour])
    for place in rng.permutation(_GRID * _GRID)[: scene.shapes]:
        radius = cell * rng.uniform(0.36, 0.44)
        slack = 0.6 * (cell / 2 - radius)
        x = (place % _GRID + 0.5) * cell + rng.uniform(-slack, slack)
        y = (place // _GRID + 0.5) * cell + rng.uniform(-slack, slack)
        _draw_form(pen, scene.form, (x, y), r=radius, fill=fill)
    return image.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)


def _draw_form(pen: ImageDraw.ImageDraw, form: str, centre: tuple[float, float], r: float, fill: tuple) -> None:
    x, y = centre
    match form:
        case "square":
            pen.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=fill)
        case "ring":
            pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=round(0.38 * r))
        case "cross":
            pen.rectangle((x - r, y - 0.28 * r, x + r, y + 0.28 * r), fill=fill)
            pen.rectangle((x - 0.28 * r, y - r, x + 0.28 * r, y + r), fill=fill)
        case "bar":
            pen.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=fill)
        case "dash":
            pen.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=fill)
        case _:
            raise AssertionError(form)


def recipe(
    seed: int, sizes: dict[str, int], shortcut: Shortcut | None = None, kinds: Sequence[str] | None = None
) -> dict:
    """What decides every byte of a set."""
    made = {"version": VERSION, "seed": seed, "sizes": sizes}
    return made | ({"shortcut": asdict(shortcut)} if shortcut else {}) | ({"kinds": list(kinds)} if kinds else {})


def write(
    root: Path,
    seed: int,
    sizes: dict[str, int],
    progress: Callable[[Iterable], Iterable] = iter,
    shortcut: Shortcut | None = None,
    kinds: Sequence[str] | None = None,
) -> None:
    """Write the set in the official layout, completely or not at all.

    The set is made in a folder beside `root` and renamed. So a killed process leaves no partial set at `root`, and the
    first of several concurrent processes wins.

    Args:
        root: the dataset's folder; it must not exist yet.
        seed: decides every sample.
        sizes: samples per split, `{"train": 2000, "dev": 256, "valid": 1000}`.
        progress: wraps the iteration over all samples.
        shortcut: of some training questions.
        kinds: of the questions, in turn; None: all of `KINDS`, or only `both` in a set with a shortcut.
    """
    part = root.with_name(f".{root.name}-{uuid.uuid4().hex[:8]}")
    rows: dict[str, list[dict]] = {split: [] for split in sizes}
    try:
        for split in sizes:
            for folder in ("images", "audios"):
                (part / split / folder).mkdir(parents=True)
        jobs = [(split, index) for split, size in sizes.items() for index in range(size)]
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda job: (job[0], _write_sample(part, seed, *job, shortcut=shortcut, kinds=kinds)), jobs)
            for split, row in progress(made):
                rows[split].append(row)
        for split, content in rows.items():
            (part / f"omni_rl_format_{split}.json").write_text(json.dumps(content, indent=1), "utf-8")
        (part / RECIPE).write_text(json.dumps(recipe(seed, sizes, shortcut, kinds)), "utf-8")
        (part / "README.md").write_text(
            f"Synthetic audio-visual questions, version {VERSION}, seed {seed}, made by `python -m echoink.train`.\n"
            "Delete this folder to have it written again.\n",
            "utf-8",
        )
        try:
            os.rename(part, root)
        except OSError:
            if not root.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_sample(
    root: Path, seed: int, split: str, index: int, shortcut: Shortcut | None, kinds: Sequence[str] | None
) -> dict:
    rng = generator(seed, split, index)
    cycle = kinds or (("both",) if shortcut else KINDS)
    kind = cycle[index % len(cycle)]
    scene, question = draw(rng, kind)
    # a separate generator, so that picture and sound do not depend on the share
    coin = np.random.default_rng([VERSION, seed, index]).random()
    has_one = shortcut is not None and kind == "both" and split == "train" and coin < shortcut.share
    if has_one:
        question = given_away(question, scene, shortcut.sense)
    fields = {"kind": kind} | ({"chance": question.chance} if question.chance else {})
    if shortcut:
        fields["shortcut"] = shortcut.sense if has_one else "none"
    if kinds:
        fields["need"] = NEEDS[kind]
    if kinds and shortcut and kind == "both":
        at_cue = question.options[cue(scene, shortcut.sense, len(question.options))][0]
        fields["cue"] = "agrees" if question.gold == (at_cue,) else "contradicts"
    image, audio = f"images/sample_{index}.jpg", f"audios/sample_{index}.wav"
    soundfile.write(root / split / audio, render_sound(rng, scene), SAMPLING_RATE, subtype="PCM_16")
    render_picture(rng, scene).save(root / split / image, quality=92)
    return {
        "problem_id": index,
        "problem": question.text,
        "data_type": "image_audio",
        "problem_type": "multiple choice",
        "options": list(question.options),
        "solution": f"<answer>{', '.join(question.gold)}</answer>",
        "path": {"image": image, "audio": audio},
        "data_source": f"synthetic-v{VERSION}",
        **fields,
    }
