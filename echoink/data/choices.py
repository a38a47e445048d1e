"""Converts options and answers of multiple-choice questions from the forms of other datasets to ours.

Options come with or without their own labels, as a list, an object or the text of either; answers as a label, as the
text of an option, or as both. Here options get the labels A, B, … in their order, and the answer becomes one of these.
Labels keep their meaning: with ["A. Rain", "C. Wind"] the answer "C" is "Wind", which becomes B.
"""

import ast
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping

from echoink.common.errors import UserError
from echoink.rewards.text import alike, same

MAX_OPTIONS = 26

_LABEL = re.compile(
    r"\s*(?:[(（]\s*([A-Za-z]|\d{1,2})\s*[)）]|([A-Za-z](?!\.[A-Za-z]\.)|\d{1,2}(?!\s*[:：]\s*\d))\s*[.:)、．：）](?!\d))\s*"
)
"""The label of an option; neither "A.M." nor the 1 of "1 : 2" is one."""

_BARE = re.compile(r"[(\[]?\s*([A-Za-z]|\d{1,2})\s*[.:)\]]*")


def choices(options: object, answer: object) -> tuple[list[str], str]:
    """Options "A. …" in their order and the solution "<answer>B</answer>"; options that are `alike` are offered once.

    Args:
        options: a list, an object from label to text, or the text of either.
        answer: the label, the text, or both, of the right option.

    Example: `choices(["(A) Man", "(B) Woman"], "(B) Woman")` and `choices(["Man", "Woman"], "Woman")` give
    (["A. Man", "B. Woman"], "<answer>B</answer>").

    Raises:
        UserError: the options cannot be read, the answer is none of them, or its label and its text disagree.
    """
    labels, texts = labelled(options)
    if answer is None or not str(answer).strip():
        raise UserError("the answer is empty")
    gold = _place(_text(answer), labels, texts)
    offered: list[str] = []
    for text in texts:
        if not any(alike(text, other) for other in offered):
            offered.append(text)
    if len(offered) > MAX_OPTIONS:
        raise UserError(f"{len(offered)} options are more than {MAX_OPTIONS}")
    right = next(place for place, text in enumerate(offered) if alike(text, texts[gold]))
    return [f"{letter(place)}. {text}" for place, text in enumerate(offered)], f"<answer>{letter(right)}</answer>"


def letter(place: int) -> str:
    """0 → "A"."""
    return chr(ord("A") + place)


def labelled(options: object) -> tuple[list[str] | None, list[str]]:
    """The options' own labels, or None, and their texts.

    Raises:
        UserError: the value holds no options.
    """
    if isinstance(options, str):
        options = _parsed(options)
    if isinstance(options, Mapping):
        labels = [str(key).strip().upper() for key in options]
        return labels, _or_labels([_text(value) for value in options.values()], labels)
    if not isinstance(options, Iterable):
        raise UserError(f"the options are not a list: {options!r}")
    texts = [_text(option) for option in options]
    found = [_LABEL.match(text) for text in texts]
    labels = [_upper(match.group(1) or match.group(2)) for match in found if match]
    whole = len(labels) == len(texts) and len(set(labels)) == len(labels)
    if not whole or not {"A", "1", "0"} & set(labels):  # "E. coli" and "F. nucleatum" have no labels
        return None, texts
    if len({label.isdigit() for label in labels}) > 1 or any(_number(label) > len(texts) + 2 for label in labels):
        return None, texts
    return labels, _or_labels([text[match.end() :].strip() for text, match in zip(texts, found, strict=True)], labels)


def _or_labels(texts: list[str], labels: list[str]) -> list[str]:
    """The texts; where no option has one, as where a picture shows them, the labels."""
    return texts if any(texts) else labels


def _parsed(text: str) -> object:
    """A list or an object that is stored as a text."""
    readers: tuple[Callable[[str], object], ...] = (json.loads, ast.literal_eval)
    for read in readers:
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise UserError(f"the options are not a list: {text[:100]!r}")


def _text(value: object) -> str:
    if value is None:
        raise UserError("an option is null")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise UserError(f"an option is not a text: {value!r}")
    return str(value).strip()


def _upper(label: str) -> str:
    return unicodedata.normalize("NFKC", label).upper()


def _number(label: str) -> int:
    return int(label) if label.isdigit() else ord(label) - ord("A") + 1


def _place(answer: str, labels: list[str] | None, texts: list[str]) -> int:
    """The index of the answer's option."""
    exact = [place for place, text in enumerate(texts) if text == answer]
    by_text = exact or [place for place, text in enumerate(texts) if same(text, answer)]
    if not all(alike(texts[place], texts[by_text[0]]) for place in by_text):
        raise UserError(f"the answer {answer!r} may be several of the options {texts}")
    bare = _BARE.fullmatch(unicodedata.normalize("NFKC", answer))
    by_label = _of_label(_upper(bare.group(1)), labels, texts) if bare else None
    if labels is None and by_text:  # options that are letters themselves: "C" among C, G, Am, F
        return by_text[0]
    if by_label is not None:
        if bare.group(1).isdigit() and by_text and not alike(texts[by_text[0]], texts[by_label]):
            raise UserError(f"the answer {answer!r} is the number of one option and the text of another: {texts}")
        return by_label
    if by_text:
        return by_text[0]
    if both := _LABEL.match(answer):
        label, rest = _upper(both.group(1) or both.group(2)), answer[both.end() :]
        place = _of_label(label, labels, texts)
        if place is not None and (same(texts[place], rest) or same(texts[place], answer)):
            return place
        if place is not None and any(same(text, rest) for text in texts):
            raise UserError(f"the answer {answer!r}: its label and its text are different options of {texts}")
    raise UserError(f"the answer {answer!r} is not among the options {texts}")


def _of_label(label: str, labels: list[str] | None, texts: list[str]) -> int | None:
    if labels is not None:
        return labels.index(label) if label in labels else None
    if label.isdigit() or all(re.fullmatch(r"[A-Za-z]", text) for text in texts):
        return None  # a number may count from 0 or from 1; a letter among letters is a text
    own = [_upper(match.group(1) or match.group(2)) if (match := _LABEL.match(text)) else None for text in texts]
    if None not in own:
        return own.index(label) if own.count(label) == 1 else None
    place = ord(label) - ord("A")
    return place if place < len(texts) else None
