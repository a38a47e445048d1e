r"""The accuracy reward (Eq. 3), for every type of question. Pure functions on text.

`format.py` has Eq. 4, `parsing.py` the one parser that training and evaluation share, `training/grpo.py` Eq. 5:

    R = lambda_acc * R_acc + lambda_fmt * R_fmt,    R_acc, R_fmt in {0, 1} for multiple choice

A completion is `<think>...</think>`, then `<answer>...</answer>`. The parser is strict about what counts as an answer:
the content of the only answer block, never a letter elsewhere in the text (except with `Match.first_letter`). The
paper's public code checks the format with a regular expression that accepts repeated tags on several lines;
`format.py` counts tags.

The public code declares other problem types, some of them graded: `SCORES` has them all. Departures from it: a
temporal answer is compared as a union of spans (there, overlapping spans count twice) and may be written in any way, a
regression with a gold value of 0 is right or wrong, ROUGE-L knows words of any script and does not stem them (there
"dogs" is "dog"), and in OCR each character of a script without blanks is a word. Of several answer blocks the public
code reads the first; here there is no answer.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from types import SimpleNamespace

from echoink.rewards.numbers import PERCENT, count_in, number_in, plain_number, value_of
from echoink.rewards.parsing import ANSWER, equal_options, option_letter, parse_answer, parse_letters, read_letters
from echoink.rewards.text import as_written, comparable, normalize, words
from echoink.rewards.types import Match, ProblemType

_MAX_TEXT = 10_000
"""Only this many characters of a text are compared."""


def accuracy_reward(
    completion: str, problem_type: ProblemType, options: Sequence[str], solution: str, match: Match = Match.lenient
) -> float:
    """R_acc in [0, 1]: how right the answer block is (Eq. 3 for multiple choice; see `SCORES` for the others).

    Args:
        completion: the whole text.
        problem_type: decides how an answer is scored.
        options: the question's options, if it has some.
        solution: the right answer as in an answer block: "B", "A, C" or "3.5".
        match: how letters are read.
    """
    if problem_type is ProblemType.multiple_choice:
        chosen, gold = read_letters(completion, options, match), parse_letters(solution, options)
        if not gold or chosen == gold:
            return float(bool(gold))
        return float(equal_options(chosen, options) == equal_options(gold, options))
    answer = parse_answer(completion)
    return 0.0 if answer is None else SCORES[problem_type](answer[:_MAX_TEXT], solution)


def has_answer(completion: str, problem_type: ProblemType, options: Sequence[str], match: Match) -> bool:
    """Whether an answer, right or wrong, can be read from a completion, as `accuracy_reward` reads it."""
    if problem_type is ProblemType.multiple_choice:
        return bool(read_letters(completion, options, match))
    answer = parse_answer(completion)
    if answer is None or problem_type not in _READ:
        return answer is not None
    return _READ[problem_type](answer[:_MAX_TEXT])


def canonical(understood: str, problem_type: ProblemType, options: Sequence[str]) -> Hashable:
    """One value for all answers that the accuracy reward treats as equal: "7" and "7.0" as a count, two letters whose
    options are the same.

    Args:
        understood: the letters of a multiple-choice answer, "A, C"; else the content of the answer block.
        problem_type: decides how an answer is scored.
        options: the question's options, if it has some.
    """
    if problem_type is ProblemType.multiple_choice:
        return equal_options(frozenset(understood.split(", ")), options)
    if problem_type is ProblemType.temporal:
        return tuple(_spans(understood)) or comparable(understood)
    read = count_in if problem_type is ProblemType.counting else number_in
    number = read(understood) if problem_type in NUMBERS else None
    if number is not None:
        return round(number, 2) if problem_type is ProblemType.numerical else number
    return " ".join(as_written(understood)) if problem_type is ProblemType.ocr else comparable(understood)


def problem_with(solution: str, problem_type: ProblemType, options: Sequence[str]) -> str | None:
    """What is wrong with a dataset's right answer; None if it is readable and scores 1 against itself."""
    unreadable = problem_type in _PLAIN_GOLD and not _PLAIN_GOLD[problem_type](solution)
    right = accuracy_reward(f"{ANSWER[0]}{solution}{ANSWER[1]}", problem_type, options, solution) == 1
    if right and not unreadable:
        return None
    if problem_type is ProblemType.multiple_choice:
        letters = ", ".join(filter(None, map(option_letter, options)))
        return f"the answer {solution!r} is not among the options {letters}"
    return f"the answer {solution!r} cannot be read as one of type {problem_type.value!r}"


def _numerical(answer: str, solution: str) -> float:
    """1 if both numbers are equal after rounding to two decimals."""
    found, gold = number_in(answer), number_in(solution)
    return float(found is not None and gold is not None and round(found, 2) == round(gold, 2))


def _regression(answer: str, solution: str) -> float:
    """1 - |answer - gold| / |gold|, at least 0; if gold is 0, only 0 is right."""
    found, gold = number_in(answer), number_in(solution)
    if found is None or gold is None:
        return 0.0
    return max(0.0, 1 - abs(found - gold) / abs(gold)) if gold else float(found == 0)


def _ocr(answer: str, solution: str) -> float:
    """1 - word error rate, at least 0; each character of a script without spaces is a word (`text.as_written`)."""
    import jiwer  # slow to import, and needed by few runs

    gold = as_written(solution)
    return max(0.0, 1 - jiwer.wer(" ".join(gold), " ".join(as_written(answer)))) if gold else 0.0


def _free_form(answer: str, solution: str) -> float:
    """F1 of ROUGE-L, the longest common subsequence of words (Lin 2004)."""
    from rouge_score.rouge_scorer import RougeScorer  # slow to import, and needed by few runs

    # Words of any script: the scorer's own tokenizer knows only a-z and digits.
    return RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=words)).score(solution, answer)["rougeL"].fmeasure


_OTHER_UNITS = (
    rf"(?:{PERCENT}|(?:m|mins?|minut\w*|h|hrs?|hours?|heures?|horas?|ore|stunden?|std|uhr|мин\w*|ч|час\w*|phút|giờ|ms|msecs?|milli\w*"
    r"|μs|us|ns|micro\w*|frames?|fps|beats?|bars?|days?)(?![^\W\d_])"
    r"|分|小[时時]|[时時点點]|毫秒|[帧幀]|시간|분)"
)
"""What follows a number that is no time in seconds: minutes, hours, frames, beats, percent, in several languages."""
_NO_SECONDS = re.compile(
    rf"\d(?:st|nd|rd|th)?[\s\])(-]*{_OTHER_UNITS}|(?<![\d.:'])\d[\d.:]*'(?!\W*$)"
    r"|\b(?:frames?|minut\w*|mins?|hours?|heures?|horas?|stunden?|beats?|bars?)(?:\s*(?:no|nr|number))?\W*\d",
    re.I,
)
"""A number that is not a time in seconds."""

_TIMECODE = re.compile(r"(\d:\d\d),(\d{3})(?![\d:])")
"""The end of a time as subtitles write it: 00:00:02,500."""
_COMMA = re.compile(r"(?<![\d.,:])[\d:]+,\d+(?![:,.]?\d)")
"""A number with a decimal comma, or two numbers."""
_BRACKETS = re.compile(r"\s*[])}>].*[[({<]\s*")
_LISTS = re.compile(r"""[\s"'`*]*[,;&+|]?\s*(?:and\b|or\b)?[\s"'`*]*""")
"""What may stand between two spans, and not between the ends of one: each in its brackets, or a list."""


def _spans(text: str) -> list[tuple[float, float]]:
    """The time spans in a text, in seconds, in order, overlapping ones merged; empty if times do not pair up or have
    another unit.

    Example: "0:05-0:10 and [8, 12.5]" is [(5, 12.5)].
    """
    times = []
    text = normalize(text)
    if re.search(r"(?:^|[\[({,;]|\bfrom|\bbetween)\s*-\s*\.?\d", text) or _NO_SECONDS.search(text):
        return []  # a time is never negative
    if len(_TIMECODE.findall(text)) > 1:
        text = _TIMECODE.sub(r"\1.\2", text)
    # "2,5 bis 3,9" is from 2.5 to 3.9, or two spans; but "2-5,7-9" is a list
    commas = [comma for comma in _COMMA.finditer(text) if not _is_between_dashes(text, comma)]
    joints = [text[one.end() : other.start()] for one, other in pairwise(commas)]
    joints = [joint for joint in joints if not _BRACKETS.fullmatch(joint)]
    if not all(map(_LISTS.fullmatch, joints)) or (joints and re.search(r"\bbetween\b", text, re.I)):
        return []
    for token in re.findall(r"\d+(?::\d{1,2}){0,2}(?:\.\d+)?|\.\d+", text):
        seconds = 0.0
        for part in token.split(":"):
            seconds = 60 * seconds + float(part)
        times.append(seconds)
    pairs = list(zip(times[::2], times[1::2], strict=False))
    if len(times) % 2 or any(start >= end for start, end in pairs):
        return []
    union: list[tuple[float, float]] = []
    for start, end in sorted(pairs):
        if union and start <= union[-1][1]:
            start, end = union[-1][0], max(end, union.pop()[1])
        union.append((start, end))
    return union


def _is_between_dashes(text: str, found: re.Match) -> bool:
    before, after = text[: found.start()].rstrip(), text[found.end() :].lstrip()
    return before.endswith(("-", "–", "—", "~")) and after.startswith(("-", "–", "—", "~"))


def _temporal(answer: str, solution: str) -> float:
    """Intersection over union of the answer's and the solution's time spans."""
    found, gold = _spans(answer), _spans(solution)
    shared = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in found for b in gold)
    either = sum(end - start for start, end in found) + sum(end - start for start, end in gold) - shared
    return shared / either if either else 0.0


def _counting(answer: str, solution: str) -> float:
    """1 if both have the same value, as "7", "7 knocks" and "14/2" do."""
    found, gold = count_in(answer), count_in(solution)
    if found is None or gold is None:
        return float(normalize(answer) == normalize(solution))
    return float(found == gold)


SCORES: dict[ProblemType, Callable[[str, str], float]] = {
    ProblemType.numerical: _numerical,
    ProblemType.ocr: _ocr,
    ProblemType.free_form: _free_form,
    ProblemType.regression: _regression,
    ProblemType.temporal: _temporal,
    ProblemType.counting: _counting,
}
"""How an answer is scored against the solution, in [0, 1]; multiple choice needs the options and is not here."""

_PLAIN_GOLD: dict[ProblemType, Callable[[str], object]] = {
    ProblemType.numerical: lambda gold: plain_number(gold) is not None,
    ProblemType.regression: lambda gold: plain_number(gold) is not None,
    # "7-8" is a range, not -1
    ProblemType.counting: lambda gold: plain_number(gold) is not None or (value_of(gold) or -1) > 0,
}
"""Checks of a gold answer: it must be a number in digits, or for a count an expression. A model may write "seven"."""

NUMBERS = frozenset(_PLAIN_GOLD)
"""Problem types whose answer is a number."""

_READ: dict[ProblemType, Callable[[str], bool]] = {
    **dict.fromkeys(NUMBERS, lambda answer: number_in(answer) is not None),
    ProblemType.counting: lambda answer: number_in(answer) is not None or value_of(answer) is not None,
    ProblemType.temporal: lambda answer: bool(_spans(answer)),
}
"""Whether an answer can be read; as a text any can."""

GRADED = frozenset({ProblemType.ocr, ProblemType.free_form, ProblemType.regression, ProblemType.temporal})
"""Problem types whose scores may lie between 0 and 1."""
