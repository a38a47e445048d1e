"""Writes questions about recordings that the base of the split by packages has never heard (experiments/open_media.md).

    python -m echoink.data get open_media                      # its packages stay in work
    python experiments/new_recordings.py outputs/data/new_recordings          # or, after it, the folder that was work=

All recordings are of the packages that `packages/` holds out. Of each class with two independent recordings or more,
half are for training and half for validation. A question is "What is heard?", without a picture: four options, three of
them of the same kind where there are enough. Each class is right equally often, and so is each letter. Each
row has a `response` for task=sft.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from scipy.cluster.hierarchy import DisjointSet

from echoink.common.files import as_json
from echoink.data.open_media import catalogue, lessons, packages, probes
from echoink.data.open_media.build import TRAINS, OpenMediaConfig
from echoink.data.open_media.catalogue import Catalogue
from echoink.data.open_media.questions import Question, Side
from echoink.media.loaders import SAMPLING_RATE

ROUNDS = {"train": 20, "valid": 12}
"""Questions of each class."""


def halves(found: Catalogue) -> dict[str, Side]:
    """The recordings of each class, divided. Two that are nearly the same stay together; none is like the base's."""
    groups, rng = DisjointSet(found.media), np.random.default_rng(0)
    for one, other in found.near:
        groups.merge(one, other)
    sides: dict[str, dict[str, list[str]]] = {"train": {}, "valid": {}}
    chosen: dict[str, str] = {}  # the side of each group
    for entry in found.entries.values():
        of = [n for n in entry.sounds if all(found.media[near].package not in TRAINS for near in groups.subset(n))]
        independent = sorted({min(groups.subset(name)) for name in of})
        if len(independent) < 2:
            continue
        order = [independent[place] for place in rng.permutation(len(independent))]
        for number, first in enumerate(order):
            side = chosen.setdefault(first, "valid" if number % 2 else "train")
            sides[side].setdefault(entry.name, []).extend(sorted(groups.subset(first) & set(of)))
    kinds = {entry.name: entry.kind for entry in found.entries.values()}
    return {name: Side(sounds, {}, kinds, ()) for name, sounds in sides.items()}


def questions(side: Side, rounds: int, seed: int) -> Iterator[Question]:
    """Each class in turn; its recordings and the letters take turns too.

    A class is a wrong option three times as often as it is right. Else the words alone would tell something: `like`
    never offers a snare drum beside a cymbal, so that a guitar would be wrong more often than a cymbal.
    """
    rng, classes = np.random.default_rng(seed), sorted(side.sounds)
    offered = Counter()
    for turn in range(rounds):
        for place, name in enumerate(classes):
            due = 3 * (turn + 1)
            options = sorted(side.like(name, classes, rng), key=lambda other: offered[other] >= due)[:3]
            offered.update(options)
            right = (turn + place) % 4
            options.insert(right, name)
            sounds = side.sounds[name]
            heard = (sounds[turn % len(sounds)],)
            yield Question(
                "heard", "audio", "What is heard?", tuple(options), "ABCD"[right], heard=heard, heard_class=name
            )


def row(number: int, question: Question, folder: Path, samples: np.ndarray) -> dict:
    """A row of the official layout; its recording is written once."""
    source = question.heard[0].replace(":", "_").replace("/", "_")
    file = folder / "audios" / f"{source}.flac"
    if not file.is_file():
        soundfile.write(file, samples[: catalogue.SECONDS * SAMPLING_RATE], SAMPLING_RATE, subtype="PCM_16")
    written = {
        "problem_id": number,
        "problem": question.text,
        "data_type": "audio",
        "problem_type": "multiple choice",
        "options": [f"{letter}. {text}" for letter, text in zip("ABCD", question.options, strict=True)],
        "solution": f"<answer>{question.answer}</answer>",
        "path": {"audio": f"audios/{file.name}"},
        "kind": question.form,
        "need": question.need,
        "heard": question.heard_class,
        "audio_source": source,
    }
    return {**written, "response": lessons.response(written)}


def main(output: Path, work: Path) -> None:
    if output.exists():
        sys.exit(f"{output} is there already\n→ give a new folder")
    unpacked = {each.key: work / f"{each.name}_{each.version}" for each in packages.PACKAGES}
    if missing := [str(folder) for folder in unpacked.values() if not folder.is_dir()]:
        sys.exit(f"{missing[0]} is missing\n→ make it first: python -m echoink.data get open_media")
    found = catalogue.read(unpacked, iter)
    sounds = {name: of for entry in found.entries.values() for name, of in entry.sounds.items()}
    known = {
        entry.name for entry in found.entries.values() if {found.media[n].package for n in entry.sounds} & {*TRAINS}
    }
    asked = {}
    for seed, (name, side) in enumerate(halves(found).items()):
        asked[name] = list(questions(side, ROUNDS[name], seed))
        (output / name / "audios").mkdir(parents=True)
        rows = [row(n, each, output / name, sounds[each.heard[0]]) for n, each in enumerate(asked[name])]
        for each in rows:
            each["known"] = each["heard"] in known
        (output / name / f"omni_rl_format_{name}.json").write_text(as_json(rows), encoding="utf-8")
        count = sum(map(len, side.sounds.values()))
        new = sum(each not in known for each in side.sounds)
        print(f"{name}: {len(rows)} questions, {count} recordings of {len(side.sounds)} classes, {new} of them new")
    measured = probes.measure(asked["train"], asked["valid"], found)
    (output / "probes.json").write_text(json.dumps(measured, indent=2), encoding="utf-8")
    print(*probes.lines(measured), sep="\n")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("give the new folder: python experiments/new_recordings.py outputs/data/new_recordings")
    main(Path(sys.argv[1]), Path((sys.argv[2:] or [OpenMediaConfig().work])[0]))
