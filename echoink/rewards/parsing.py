"""From a completion's text to its answer: the one parser for training and evaluation."""

import re
from collections.abc import Sequence

from echoink.rewards.types import Match

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


def read_letters(completion: str, options: Sequence[str], match: Match = Match.lenient) -> frozenset[str]:
    """The option letters that a completion chooses: those of its answer block, and see `Match.first_letter`."""
    answer = parse_answer(completion) or ""
    if match is not Match.first_letter:
        return parse_letters(answer, options, match)
    chosen = re.fullmatch(r"[A-D]", answer) or re.search(r"\b[A-D]\b", completion, re.IGNORECASE)
    return frozenset(chosen.group(0).upper()) if chosen else frozenset()
