"""The two rewards, case by case; a reward is a contract that a policy will try to break."""

import time

import pytest

from echoink.rewards import Match, accuracy_reward, format_reward, option_text, parse_answer, parse_letters

OPTIONS = ("A. cat", "B. bell", "C. dog", "D. rain and hail")

LETTERS = [  # answer, letters when lenient, letters when exact
    ("C", "C", "C"),
    (" C\n", "C", "C"),
    ("C.", "C", ""),
    ("C:", "C", ""),
    ("C)", "C", ""),
    ("(C)", "C", ""),
    ("(c)", "C", ""),
    ("c", "C", ""),
    ("C. dog", "C", ""),
    ("C: DOG.", "C", ""),
    ("C dog", "C", ""),
    ("(C) dog", "C", ""),
    ("D. rain and hail", "D", ""),
    ("A, C", "AC", "AC"),
    ("C, A", "AC", "AC"),
    ("A,C", "AC", ""),
    ("A and C", "AC", ""),
    ("A & C", "AC", ""),
    ("A; C", "AC", ""),
    ("A, and C", "AC", ""),
    ("A. cat, D. rain and hail", "AD", ""),
    ("A, B, C, D", "ABCD", "ABCD"),
    ("", "", ""),
    ("E", "", ""),
    ("A, A", "", ""),
    ("A C", "", ""),
    ("AC", "", ""),
    ("C or D", "", ""),
    ("(C", "", ""),
    ("dog", "", ""),
    ("a dog", "", ""),
    ("C. cat", "", ""),
    ("C. dogs", "", ""),
    ("The answer is C", "", ""),
    ("C because it barks", "", ""),
    ("not C", "", ""),
    ("A, ", "", ""),
    (", A", "", ""),
    ("\N{CYRILLIC CAPITAL LETTER ES}", "", ""),
    ("\N{FULLWIDTH LATIN CAPITAL LETTER C}", "", ""),
    ("C\N{COMBINING ACUTE ACCENT}", "", ""),
    ("Cat", "", ""),
    ("1", "", ""),
]


@pytest.mark.parametrize(("answer", "lenient", "exact"), LETTERS)
def test_letters(answer, lenient, exact):
    assert parse_letters(answer, OPTIONS) == frozenset(lenient)
    assert parse_letters(answer, OPTIONS, Match.exact) == frozenset(exact)


GOOD = "<think>a bell rings</think>\n<answer>B</answer>"

FORMATS = [
    (GOOD, 1),
    (f"  \n{GOOD}\n ", 1),
    ("<think>x</think><answer>B</answer>", 1),
    ("<think>two\nlines</think>\n\n<answer>A, C</answer>", 1),
    ("<think></think><answer>B</answer>", 0),
    ("<think> \n </think><answer>B</answer>", 0),
    ("<think>x</think><answer> </answer>", 0),
    ("<think>x</think><answer></answer>", 0),
    ("<answer>B</answer>", 0),
    ("<think>x</think>", 0),
    ("B", 0),
    ("", 0),
    (f"Sure. {GOOD}", 0),
    (f"{GOOD} done.", 0),
    (f"{GOOD}\nand more", 0),
    ("<think>x</think> so <answer>B</answer>", 0),
    ("<answer>B</answer><think>x</think>", 0),
    ("<think>a\n<think>b</think>\n<answer>c</answer>", 0),
    ("<think>a</think>\n<think>b</think>\n<answer>c</answer>", 0),
    ("<think>x</think>\n<answer>A</answer>\n<answer>B</answer>", 0),
    ("<think>x <answer>A</answer></think><answer>B</answer>", 0),
    ("<think>x<answer>B</answer></think>", 0),
    ("<think>x</think><answer><answer>B</answer></answer>", 0),
    ("<think>x</think><answer>B", 0),
    ("<think>x<answer>B</answer>", 0),
    ("<Think>x</Think><Answer>B</Answer>", 0),
    ("<think >x</think ><answer>B</answer>", 0),
    ("\N{FULLWIDTH LESS-THAN SIGN}think>x</think><answer>B</answer>", 0),
]


@pytest.mark.parametrize(("completion", "reward"), FORMATS)
def test_format(completion, reward):
    assert format_reward(completion) == reward


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (GOOD, "B"),
        ("I think it is <answer> B </answer> for sure", "B"),
        ("<answer>A</answer> or <answer>B</answer>", None),
        ("</answer>B<answer>", None),
        ("<answer></answer>", None),
        ("the answer is B", None),
    ],
)
def test_answer(completion, answer):
    assert parse_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "gold", "reward"),
    [
        (GOOD, "B", 1),
        (GOOD, "A", 0),
        (GOOD, "AB", 0),
        ("<answer>A, B</answer>", "AB", 1),
        ("<answer>B and A</answer>", "AB", 1),
        ("<answer>A, B</answer>", "B", 0),
        ("<answer>A, B, C, D</answer>", "B", 0),
        ("A bell. <answer>no letter</answer>", "A", 0),
        ("B", "B", 0),
        ("<answer>B</answer><answer>B</answer>", "B", 0),
    ],
)
def test_accuracy(completion, gold, reward):
    assert accuracy_reward(completion, OPTIONS, frozenset(gold)) == reward


def test_exact_is_the_papers_rule():
    assert accuracy_reward("<answer>B. bell</answer>", OPTIONS, frozenset("B")) == 1
    assert accuracy_reward("<answer>B. bell</answer>", OPTIONS, frozenset("B"), Match.exact) == 0


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "<think>" * 15_000,
        "<think>" + "a" * 100_000 + "</think><answer>B</answer>",
        "<think>x</think><answer>" + "A, " * 33_000 + "</answer>",
        "<think>x</think><answer>" + "(" * 100_000 + "</answer>",
        "<think>x</think><answer>" + "A " * 400 + "!</answer>",
        "<" * 100_000,
        " " * 100_000 + GOOD,
    ],
)
def test_long_and_pathological_texts_are_fast(text):
    best = min(_seconds(text) for _ in range(3))
    assert best < 0.05


def _seconds(text: str) -> float:
    started = time.perf_counter()
    accuracy_reward(text, OPTIONS, frozenset("B"))
    format_reward(text)
    return time.perf_counter() - started


def test_option_text():
    assert [option_text(option) for option in OPTIONS] == ["cat", "bell", "dog", "rain and hail"]
