"""What can be answered without understanding: from the words, from the other sense, and by the nearest training file.

A model that is no better than these has learned no more than they have. Every result on the set is given beside them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from echoink.common.statistics import wilson
from echoink.data.open_media.catalogue import Catalogue, on_white
from echoink.data.open_media.questions import Question
from echoink.media.loaders import SAMPLING_RATE

Answerer = Callable[[Question], str]
"""The letter that a probe answers."""


def measure(train: Sequence[Question], valid: Sequence[Question], found: Catalogue) -> dict[str, dict[str, Any]]:
    """Accuracy of each probe on the validation questions that it can answer and that have one right letter.

    Returns:
        By probe and form: `n`, `right`, `accuracy`, `interval` (Wilson, 95 %), `chance`.
    """
    asked: dict[str, list[Question]] = {}
    for q in valid:
        of_form = asked.setdefault(q.form, [])
        if q.options and "," not in q.answer:
            of_form.append(q)
    answerers: dict[str, tuple[Answerer, tuple[str, ...]]] = {
        "words alone": (_by_words(train), tuple(asked)),
        "the other sense": (
            _by_the_other_sense,
            tuple(form for form in ("heard", "seen") if all(q.heard and q.seen for q in asked.get(form, ()))),
        ),
        "nearest recording": (
            _by_nearest(train, found, "sounds", features=_of_sound, asked=lambda q: q.heard[0]),
            ("heard", "first"),
        ),
        "nearest picture": (
            _by_nearest(train, found, "pictures", features=_of_picture, asked=lambda q: q.seen),
            ("seen",),
        ),
    }
    measured: dict[str, dict[str, Any]] = {}
    for name, (answer, forms) in answerers.items():
        for form in forms:
            if questions := asked.get(form):
                right = sum(answer(question) == question.answer for question in questions)
                measured.setdefault(name, {})[form] = {
                    "n": len(questions),
                    "right": right,
                    "accuracy": right / len(questions),
                    "interval": list(wilson(right, len(questions))),
                    "chance": float(np.mean([1 / len(question.options) for question in questions])),
                }
    return measured


def lines(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The probes, as lines for the screen."""
    said = []
    for name, of in measured.items():
        parts = " · ".join(
            f"{form} {100 * at['accuracy']:.0f} % (a guess {100 * at['chance']:.0f})" for form, at in of.items()
        )
        said.append(f"probe, {name}: {parts}")
    return said


def _by_the_other_sense(question: Question) -> str:
    """The class that is seen where the question is about the sound, and the other way round."""
    return "ABCD"[question.options.index(question.seen_class if question.form == "heard" else question.heard_class)]


def _by_words(train: Sequence[Question]) -> Answerer:
    """The option whose text was right most often, when offered, in training questions of this form."""
    shown, right = Counter(), Counter()
    for question in train:
        for letter, option in zip("ABCD", question.options, strict=False):
            shown[question.form, option] += 1
            right[question.form, option] += letter in question.answer

    def answer(question: Question) -> str:
        odds = [(right[question.form, o] + 1) / (shown[question.form, o] + 4) for o in question.options]
        return "ABCD"[int(np.argmax(odds))]

    return answer


def _by_nearest(
    train: Sequence[Question],
    found: Catalogue,
    which: str,
    features: Callable[[Any], np.ndarray],
    asked: Callable[[Question], str],
) -> Answerer:
    """The option that has the training file nearest to the file of the question."""
    used = {name for question in train for name in (*question.heard, question.seen)}
    every = {name: features(of) for entry in found.entries.values() for name, of in getattr(entry, which).items()}
    table = np.stack(list(every.values()))
    mean, spread = table.mean(0), table.std(0) + 1e-6
    units = {}
    for name, values in every.items():
        scaled = (values - mean) / spread
        units[name] = scaled / np.linalg.norm(scaled)
    of_class = {
        entry.name: [units[name] for name in getattr(entry, which) if name in used] for entry in found.entries.values()
    }

    def answer(question: Question) -> str:
        unit = units[asked(question)]
        best = [max((float(unit @ other) for other in of_class.get(o, ())), default=-1.0) for o in question.options]
        return "ABCD"[int(np.argmax(best))]

    return answer


def _of_sound(samples: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of the log power in 32 bands, over at most four seconds."""
    samples = samples[: 4 * SAMPLING_RATE]
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (0, max(0, 512 - len(samples)))), 512)[::256]
    power = np.abs(np.fft.rfft(frames * np.hanning(512), axis=1)) ** 2
    edges = np.unique(np.geomspace(1, power.shape[1] - 1, 42).astype(int))
    bands = np.log(np.stack([power[:, a : b + 1].mean(1) for a, b in pairwise(edges)]) + 1e-8)
    return np.concatenate([bands.mean(1), bands.std(1)])


def _of_picture(picture) -> np.ndarray:
    """16 × 16 pixels, on white."""
    return np.asarray(on_white(picture).resize((16, 16)), dtype=np.float32).flatten()
