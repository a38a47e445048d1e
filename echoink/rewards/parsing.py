"""Reads the answer from a completion's text: the only parser, for training and evaluation."""

import functools
import re
import unicodedata
from collections.abc import Sequence

from echoink.rewards.text import CLOSING, alike, normalize, pattern_of, same
from echoink.rewards.types import Match

THINK = ("<think>", "</think>")

ANSWER = ("<answer>", "</answer>")

_MAX_ANSWER = 1_000
"""A longer answer (in characters) names no option; this bounds the parser's work."""

_LABEL = re.compile(r"\s*(?:[(（]([A-ZＡ-Ｚ])[)）]|([A-ZＡ-Ｚ])\s*[.:)、．：）])\s*")
"""The label of an option: "B. ", "B: ", "B) ", "(B) "."""

_SAID = (
    "(?:(?:final |correct |right )?answers?|(?:正[确確]|最[终終])?(?:答案|[选選][项項]|[选選][择擇])|[回解]?答|答え"
    "|正解|정?답|antwort|réponse|respuesta|risposta|resposta|ответ|jawaban|उत्तर|الإجابة)"
)
_BOLD_PREFIX = re.compile(rf"(\*\*|__){_SAID}(?:\1\s*[:=]|\s*[:=]\s*\1)\s*", re.IGNORECASE)
_LETTER = r"""[*_(\["'`【「]{0,2}(?-i:[A-Z](?![a-z])|[a-z](?![A-Za-z]))"""
_CHOOSE = rf"(?:故?[选選][择擇项項]?\s*:?\s*(?=\d|{_LETTER})|第\s*(?={_LETTER}))"
_PREFIX = re.compile(
    rf"""([*_(\["'`]{{0,2}})(?:{_SAID}\s*[:=]\s*|{_CHOOSE}|(?:options?|choices?)(?:\s*[:=]\s*|\s+))""", re.IGNORECASE
)
"""Words that may precede the letters, after a mark that stays: "Answer: B", "Option B", "**Option B**: a bell"."""

_WRAPPERS = tuple((mark, mark) for mark in ("$$", "**", "__", "*", "`", '"', "'", "$"))
_WRAPPERS += (("[", "]"), ("(", ")"), ("{", "}"), ("\\(", "\\)"), ("\\[", "\\]"), ("【", "】"), ("「", "」"))
"""Marks around an answer."""

_BOXED = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")

_CHOICE = re.compile(
    r"""(?:\(([A-Za-z])\)|\[([A-Za-z])\]|"([A-Za-z])"|'([A-Za-z])'|`([A-Za-z])`|\*\*\(?([A-Za-z])[.:)]?\*\*"""
    r"""|([A-Za-z])(?:[选選]?[项項]|(?=[和与與及])|(?![^\W_])\)?))(?:\s*[.:)。、]{1,2})?\s*"""
)
"""A letter in an answer: "B", "B.", "B:", "B)", "(b)", "[B]", "**B**", "**(B)**"."""

_JOIN = re.compile(r"(?:[,;&/+|、]\s*(?:and\b)?|and\b|[和与與及])\s*(?:(?:options?|choices?)\s+)?(?=\S)", re.IGNORECASE)
"""Separators of two letters."""

_NEXT = re.compile(r"""[A-Z](?![^\W_])|[(\["'`*]""")
"""Another letter after only a blank: a capital, or one in brackets, so that an article does not count."""


def parse_answer(completion: str) -> str | None:
    """The content of the only answer block, stripped; None if there is not exactly one, or if it is empty."""
    opening, closing = ANSWER
    if completion.count(opening) != 1 or completion.count(closing) != 1:
        return None
    start, end = completion.index(opening) + len(opening), completion.index(closing)
    return (completion[start:end].strip() or None) if start <= end else None


def option_letter(option: str) -> str | None:
    """The label of an option: "B" for "B. bell"."""
    found = _LABEL.match(option)
    return unicodedata.normalize("NFKC", found.group(1) or found.group(2)) if found else None


def option_text(option: str) -> str:
    """The text of an option without its label: "bell" for "B. bell"."""
    return _LABEL.sub("", option, count=1).strip()


def parse_letters(answer: str, options: Sequence[str], match: Match = Match.lenient) -> frozenset[str]:
    """The set of option letters that an answer names; empty if it names none, or says anything else.

    Lenient reading accepts a letter with or without its option's text, in the forms of `docs/rewards.md`; any other
    text makes the answer unreadable. Texts are compared as by `text.same`.

    Args:
        answer: the content of the answer block.
        options: the question's options, "A. dog" and so on.
        match: see `Match`.
    """
    valid = {letter: option_text(option) for option in options if (letter := option_letter(option))}
    answer = answer.strip()
    if len(answer) > _MAX_ANSWER:
        return frozenset()
    letters = answer.split(", ")
    is_exact = set(letters) <= valid.keys() and len(set(letters)) == len(letters)
    # If the options' texts are letters themselves, "A, C" names two options, not A with its text.
    if is_exact or match is Match.exact:
        return frozenset(letters) if is_exact else frozenset()
    answer = _unescaped(unwrapped(answer))
    joined = answer.rstrip(CLOSING)
    if re.fullmatch(r"[A-Z]{2,}", joined) and set(joined) <= valid.keys():  # "AB"
        is_text = any(same(joined, text) for text in valid.values())
        return frozenset(joined) if len(set(joined)) == len(joined) and not is_text else frozenset()
    found: list[str] = []
    at = 0
    while True:
        choice = _CHOICE.match(answer, at)
        letter = next(filter(None, choice.groups())).upper() if choice else ""
        if letter not in valid or letter in found:
            return frozenset()
        found.append(letter)
        at = choice.end()
        if valid[letter] and (named := _text_pattern(valid[letter]).match(answer, at)):
            at = named.end()
        if at == len(answer):
            return frozenset(found)
        if join := _JOIN.match(answer, at):
            at = join.end()
        elif not _NEXT.match(answer, at):
            return frozenset()


@functools.lru_cache(maxsize=4096)
def _text_pattern(text: str) -> re.Pattern[str]:
    # The option's text, perhaps after a dash, in brackets or in bold; it does not end within a word. A dash before a
    # number is its sign: "B. -6 dB" is not the option "6 dB".
    before = r"""(?:[-–—](?![\d.$€£¥])\s*)?[,("'\[]?[*`]{0,2}\s*"""
    after = rf"""\s*[*`]{{0,2}}[)"'\]]?[{CLOSING}]*[*`]{{0,2}}\s*"""
    return re.compile(rf"{before}{pattern_of(_unescaped(_unboxed(text)))}(?![^\W_]){after}", re.IGNORECASE)


def unwrapped(answer: str) -> str:
    r"""The answer itself, normalized: without words such as "Answer: Option" before it and marks such as **B**, $B$,
    "B" or \boxed{B} around the whole of it.
    """
    text = _unwrapped(normalize(answer))
    while True:
        if bold := _BOLD_PREFIX.match(text):
            text = _unwrapped(text[bold.end() :])
        elif words := _PREFIX.match(text):
            text = _unwrapped(words.group(1) + text[words.end() :])
        else:
            return text


def _unboxed(text: str) -> str:
    while (inner := _BOXED.sub(r"\1", text)) != text:
        text = inner
    return text


def _unescaped(text: str) -> str:
    r"""A text without LaTeX's marks before signs and around formulas: "50\%" is "50%", "\(x\)" and "$x$" are "x"."""
    text = re.sub(r"\\([%$&#_])", r"\1", re.sub(r"\\[()]", "", text))
    return re.sub(r"(?<![\w$])\$(?=\S)([^$]*[^\s$\d][^$]*)(?<=\S)\$(?![\w$])", r"\1", text)


def _unwrapped(text: str) -> str:
    while True:
        before, text = text, _unboxed(text).strip()
        closed = text.rstrip(f"{CLOSING} ")  # a full stop may follow the marks
        for opening, closing in _WRAPPERS:
            inner = closed[len(opening) : -len(closing)]
            size = len(opening) + len(closing)
            around = closed.startswith(opening) and closed.endswith(closing) and len(closed) >= size
            if around and opening not in inner and closing not in inner:
                text = inner
                break
        if text == before:
            return text


def equal_options(letters: frozenset[str], options: Sequence[str]) -> frozenset[str]:
    """Letters, each replaced by the first letter whose option is the same (`text.alike`): an option that occurs twice
    is right under both letters. An option without a text, such as "A." where a picture shows the options, is the same
    as no other.
    """
    texts = {letter: option_text(option) for option in options if (letter := option_letter(option))}
    first = {
        letter: next(each for each in texts if each == letter or (text and alike(texts[each], text)))
        for letter, text in texts.items()
    }
    return frozenset(first.get(letter, letter) for letter in letters)  # a letter may name no option


def read_letters(completion: str, options: Sequence[str], match: Match = Match.lenient) -> frozenset[str]:
    """The option letters that a completion chooses, in its answer block or as `Match.first_letter` says."""
    if match is not Match.first_letter:
        return parse_letters(parse_answer(completion) or "", options, match)
    block = rf"{ANSWER[0]}\s*([A-D])\s*{ANSWER[1]}"  # the first that holds a letter alone, in either case
    chosen = re.search(block, completion, re.IGNORECASE) or re.search(r"\b([A-D])\b", completion, re.IGNORECASE)
    return frozenset(chosen.group(1).upper()) if chosen else frozenset()
