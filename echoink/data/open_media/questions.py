"""Questions about a recording and a picture, in several forms, that need the sound, the picture, both or neither.

Wrong options are of the same kind as the right one where there are enough (a dog among animals), unless a class would
be a wrong option much too seldom. What the other sense shows is among them, so a model that uses the wrong sense is
wrong. The position of the right option rotates.

| form | asks | needs |
|---|---|---|
| heard, seen | what is heard, what is seen | audio, image |
| heard_name, seen_name | the same, to be named without options | audio, image |
| pair | what is seen and what is heard | both |
| together | whether sound and picture show the same thing | both |
| rule | what is heard, unless it is also seen | both |
| first | which of two recordings comes first | audio |
| several | which two options are heard in two recordings | audio |
| count | how often a recording is played | audio |
| words | which word is of a kind; a control without media | none |
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

OPTIONS = 4
OVERLAP = (
    {"drum kit", "snare drum", "tom-tom drum", "cymbal", "bongo"},
    {"guitar", "electric guitar"},
    {"train", "steam train"},
    {"orca", "whale", "dolphin"},
    {"hen", "rooster"},
    {"truck", "bus", "car", "fire engine"},
    {"monkey", "chimpanzee", "gorilla"},
    {"horn", "trumpet", "trombone", "tuba"},
    {"bee", "hornet"},
    {"cow", "bull", "bison"},
    {"deer", "caribou"},
    {"saw", "chainsaw"},
    {"bell", "railroad crossing"},
    {"duck", "rubber duck"},
)
"""Classes of which one may be mistaken for another, or includes it: one is never a wrong option for another."""
NOUNS = {"animal": "an animal", "instrument": "a musical instrument", "vehicle": "a vehicle"}
"""Kinds that the words alone can tell. "thing" is left out, because a tool is also a thing."""
UNCLEAR = ("bell", "keyboard", "clapping")
"""Classes that some call instruments."""
SELDOM = 12
"""How many times too seldom a class may have been a wrong option, before it stands beside classes of other kinds."""
GAP = 0.4
"""Seconds between recordings that are joined."""


@dataclass(frozen=True)
class Question:
    """A question before its media are written."""

    form: str
    need: str
    """audio, image, both or none."""
    text: str
    options: tuple[str, ...]
    """Without letters; empty where the answer is free."""
    answer: str
    """Letters, a word or a number."""
    problem_type: str = "multiple choice"
    heard: tuple[str, ...] = ()
    """Recordings in order, as `package:file`."""
    seen: str = ""
    """A picture, as `package:file`."""
    heard_class: str = ""
    seen_class: str = ""


@dataclass(frozen=True)
class Side:
    """What one side of a split may use: the names of its recordings and of its pictures, by class."""

    sounds: Mapping[str, Sequence[str]]
    pictures: Mapping[str, Sequence[str]]
    kinds: Mapping[str, str]
    """The kind of each class."""
    single: Collection[str]
    """Recordings that are one short burst, see `catalogue.is_single`."""

    def like(self, name: str, chosen: Sequence[str], rng: np.random.Generator) -> list[str]:
        """The classes in `chosen` that may stand beside `name`, its own kind first, in random order."""
        near = set().union(*(group for group in OVERLAP if name in group))
        others = [other for other in chosen if other != name and other not in near]
        order = rng.permutation(len(others))
        return sorted((others[place] for place in order), key=lambda other: self.kinds[other] != self.kinds[name])


class Writer:
    """Draws questions for one side of a split.

    Args:
        side: what it may use.
        seed: of all draws.
    """

    def __init__(self, side: Side, seed: int):
        self._side, self._rng = side, np.random.default_rng(seed)
        self._heard = sorted(name for name, of in side.sounds.items() if of)
        self._seen = sorted(name for name, of in side.pictures.items() if of)
        self._both = [name for name in self._heard if name in set(self._seen)]
        self._countable = [name for name in self._heard if set(side.sounds[name]) & set(side.single)]
        self._form, self._turn, self._every = "", 0, 1
        self._right: Counter[tuple[str, str]] = Counter()
        self._wrong: Counter[tuple[str, str]] = Counter()

    def draw(self, form: str, turn: int) -> Question:
        """One question of a form. `turn`, from 0, decides the right letter and whether sound and picture match."""
        self._form, self._turn, self._every = form, turn, 1
        return FORMS[form](self)

    # --- what is drawn ---

    def _one(self, of: Sequence[str]) -> str:
        return of[int(self._rng.integers(len(of)))]

    def _like(self, name: str, chosen: Sequence[str]) -> list[str]:
        """`Side.like`, with classes first that were wrong options too seldom, and last that were so too often.

        Else the words alone would tell something: a class of `OVERLAP`, or the only one of its kind, stands beside
        fewer others, so it would be right more often, when offered, than a class that stands beside all.
        """

        def due(other: str) -> int:
            lacks = (OPTIONS - 1) * self._right[self._form, other] - self._wrong[self._form, other]
            return -1 if lacks > SELDOM else int(lacks < 0)

        return sorted(self._side.like(name, chosen, self._rng), key=due)

    def _sound(self, name: str) -> str:
        return self._one(self._side.sounds[name])

    def _pair(self, every: int = 2) -> tuple[str, str]:
        """A class that is heard and one that is seen; they are the same in one turn of `every`."""
        heard, self._every = self._one(self._both), every
        if self._turn % every == 0:
            return heard, heard
        return heard, self._like(heard, self._seen)[int(self._rng.integers(3))]

    def _choice(self, right: str, wrong: Sequence[str]) -> tuple[tuple[str, ...], str]:
        """Options with the right one at the position that is due, and its letter."""
        others = list(dict.fromkeys(option for option in wrong if option != right))[: OPTIONS - 1]
        others = [others[place] for place in self._rng.permutation(len(others))]
        round_of_pairs = self._turn // self._every if self._every > 1 else 0  # no pair keeps one letter
        place = (self._turn + round_of_pairs) % (len(others) + 1)
        self._right[self._form, right] += 1
        self._wrong.update((self._form, other) for other in others)
        others.insert(place, right)
        return tuple(others), "ABCD"[place]

    # --- the forms ---

    def _sense(self, ear: bool, named: bool) -> Question:
        heard, seen = self._pair(OPTIONS)  # the other sense shows the answer no more often than a guess does
        right, other = (heard, seen) if ear else (seen, heard)
        known = self._heard if ear else self._seen
        options, answer = self._choice(right, [other, *self._like(right, known)])
        what = "heard" if ear else "seen"
        return Question(
            form=f"{what}_name" if named else what,
            need="audio" if ear else "image",
            text=f"Name what is {what}." if named else f"What is {what}?",
            options=() if named else options,
            answer=right if named else answer,
            problem_type="free-form" if named else "multiple choice",
            **self._media(heard, seen),
        )

    def _media(self, heard: str, seen: str) -> dict:
        return {
            "heard": (self._sound(heard),),
            "seen": self._one(self._side.pictures[seen]),
            "heard_class": heard,
            "seen_class": seen,
        }

    def _pairing(self) -> Question:
        heard, seen = self._pair()
        other = self._like(seen, self._both)[0] if heard == seen else heard
        said = [f"{eye} is seen, {ear} is heard" for eye in (seen, other) for ear in (seen, other)]
        right = f"{seen} is seen, {heard} is heard"
        options, answer = self._choice(right, said)
        text = "What is seen, and what is heard?"
        return Question("pair", "both", text, options=options, answer=answer, **self._media(heard, seen))

    def _together(self) -> Question:
        heard, seen = self._pair()
        options, answer = self._choice("yes" if heard == seen else "no", ["no" if heard == seen else "yes"])
        text = "Is what makes the sound the thing in the picture?"
        return Question("together", "both", text, options=options, answer=answer, **self._media(heard, seen))

    def _rule(self) -> Question:
        heard, seen = self._pair(OPTIONS)  # no option is right more often than another
        right = "the same" if heard == seen else heard
        wrong = ["the same", seen, heard, *self._like(heard, self._heard)]
        options, answer = self._choice(right, wrong)
        text = "What is heard? Where the picture shows it too, answer: the same."
        return Question("rule", "both", text, options=options, answer=answer, **self._media(heard, seen))

    def _two(self) -> tuple[str, str, list[str]]:
        """Two classes that are heard one after the other, and wrong options like them."""
        one = self._one(self._heard)
        other, *rest = self._like(one, self._heard)
        beside = set(self._side.like(other, self._heard, self._rng))
        return one, other, [name for name in rest if name in beside][: OPTIONS - 1]

    def _first(self) -> Question:
        one, other, rest = self._two()
        options, answer = self._choice(one, [other, *rest])
        heard = (self._sound(one), self._sound(other))
        text = "Two things are heard, one after the other. Which is the first?"
        return Question(
            "first", "audio", text, options=options, answer=answer, heard=heard, heard_class=f"{one}, {other}"
        )

    def _several(self) -> Question:
        one, other, rest = self._two()
        shown = [one, other, *rest[: OPTIONS - 2]]
        shown = [shown[place] for place in self._rng.permutation(len(shown))]
        answer = ", ".join(sorted("ABCD"[shown.index(name)] for name in (one, other)))
        heard = (self._sound(one), self._sound(other))
        text = "Which of these are heard? Two options are right."
        return Question(
            "several", "audio", text, options=tuple(shown), answer=answer, heard=heard, heard_class=f"{one}, {other}"
        )

    def _count(self) -> Question:
        name, times = self._one(self._countable), 1 + int(self._rng.integers(4))
        heard = (self._one([sound for sound in self._side.sounds[name] if sound in self._side.single]),) * times
        text = "A sound is played one or more times. How many times?"
        return Question(
            "count", "audio", text, (), answer=str(times), problem_type="counting", heard=heard, heard_class=name
        )

    def _words(self) -> Question:
        right = self._one([name for name in self._heard if self._side.kinds[name] in NOUNS])
        kind = self._side.kinds[right]
        others = [name for name in self._heard if self._side.kinds[name] != kind and name not in UNCLEAR]
        wrong = [others[place] for place in self._rng.permutation(len(others))]
        options, answer = self._choice(right, wrong)
        text = f"Which of these is {NOUNS[kind]}?"
        return Question("words", "none", text, options=options, answer=answer)


FORMS: dict[str, Callable[[Writer], Question]] = {
    "heard": lambda writer: writer._sense(ear=True, named=False),
    "seen": lambda writer: writer._sense(ear=False, named=False),
    "pair": Writer._pairing,
    "together": Writer._together,
    "rule": Writer._rule,
    "first": Writer._first,
    "several": Writer._several,
    "count": Writer._count,
    "heard_name": lambda writer: writer._sense(ear=True, named=True),
    "seen_name": lambda writer: writer._sense(ear=False, named=True),
    "words": Writer._words,
}
"""How each form is drawn."""
