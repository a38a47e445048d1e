r"""The paper's two rewards (Eq. 3-5), and the one parser that training and evaluation share. Pure functions on text.

    R = lambda_acc * R_acc + lambda_fmt * R_fmt,    R_acc, R_fmt in {0, 1}

A completion is `<think>...</think>` then `<answer>...</answer>`. The parser is strict about what it takes for an
answer: the content of the one answer block, never a letter found elsewhere in the prose. The public code of the paper
checks the format with a regular expression that lets repeated tags on several lines pass; here tags are counted.
"""

import re
from collections.abc import Sequence
from enum import Enum

THINK = ("<think>", "</think>")
ANSWER = ("<answer>", "</answer>")

_MAX_ANSWER = 1_000
"""An answer longer than this many characters is not an option; bounds the work of the parser."""

_LABEL = re.compile(r"\s*([A-Z])\s*[.:)]\s*")
"""The label of an option, "B. "."""
_CHOICE = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])(?![^\W_])\)?)\s*[.:]?\s*")
"""A letter as an answer names it: "B", "B.", "B:", "B)", "(b)"."""
_JOIN = re.compile(r"(?:[,;&/]\s*(?:and\b)?|and\b)\s*(?=\S)", re.IGNORECASE)
"""What may stand between two letters."""


class Match(Enum):
    """How the text of the answer becomes a set of option letters."""

    lenient = "lenient"
    """"C", "C.", "(c)", "C. dog" where that is option C, "A, C", "A and C" for several."""
    exact = "exact"
    """The bare upper-case letter, as the paper's public code wants; several as in "A, C"."""


def parse_answer(completion: str) -> str | None:
    """The content of the only answer block, stripped; None where there is not exactly one or it is empty."""
    opening, closing = ANSWER
    if completion.count(opening) != 1 or completion.count(closing) != 1:
        return None
    start, end = completion.index(opening) + len(opening), completion.index(closing)
    return (completion[start:end].strip() or None) if start <= end else None


def option_letter(option: str) -> str | None:
    """The label of an option: "B" for "B. bell"."""
    found = _LABEL.match(option)
    return found.group(1) if found else None


def option_text(option: str) -> str:
    """The text of an option without its label: "bell" for "B. bell"."""
    return _LABEL.sub("", option, count=1).strip()


def parse_letters(answer: str, options: Sequence[str], match: Match = Match.lenient) -> frozenset[str]:
    """The set of option letters that an answer names; empty where it names none or anything besides.

    Args:
        answer: the content of the answer block.
        options: the question's options, "A. dog" and so on.
        match: see `Match`.
    """
    valid = {letter: option_text(option) for option in options if (letter := option_letter(option))}
    answer = answer.strip()
    if len(answer) > _MAX_ANSWER:
        return frozenset()
    if match is Match.exact:
        letters = answer.split(", ")
        return frozenset(letters) if set(letters) <= valid.keys() and len(set(letters)) == len(letters) else frozenset()
    found: list[str] = []
    at = 0
    while True:
        choice = _CHOICE.match(answer, at)
        letter = (choice.group(1) or choice.group(2)).upper() if choice else ""
        if letter not in valid or letter in found:
            return frozenset()
        found.append(letter)
        at, text = choice.end(), valid[letter]
        if text and answer[at : at + len(text)].casefold() == text.casefold():
            at += len(text)
            at += len(answer[at:]) - len(answer[at:].lstrip(" \t\n."))
        if at == len(answer):
            return frozenset(found)
        join = _JOIN.match(answer, at)
        if join is None:
            return frozenset()
        at = join.end()


def accuracy_reward(
    completion: str, options: Sequence[str], gold: frozenset[str], match: Match = Match.lenient
) -> float:
    """R_acc: 1 where the set of letters in the answer equals the gold set, else 0 (Eq. 3)."""
    answer = parse_answer(completion)
    return float(answer is not None and parse_letters(answer, options, match) == gold)


def format_reward(completion: str) -> float:
    """R_fmt: 1 for one non-empty think block, one non-empty answer block, and only white space besides (Eq. 4)."""
    positions = []
    for tag in (*THINK, *ANSWER):
        if completion.count(tag) != 1:
            return 0.0
        positions.append(completion.index(tag))
    if positions != sorted(positions):
        return 0.0
    text = completion.strip()
    if not text.startswith(THINK[0]) or not text.endswith(ANSWER[1]):
        return 0.0
    thought = text[len(THINK[0]) : text.index(THINK[1])]
    between = text[text.index(THINK[1]) + len(THINK[1]) : text.index(ANSWER[0])]
    return float(bool(thought.strip()) and not between.strip() and parse_answer(text) is not None)
