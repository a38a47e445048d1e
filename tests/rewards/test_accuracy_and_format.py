"""The two rewards, case by case; a reward is a contract that a policy will try to break."""

import time

import pytest

from echoink.rewards.accuracy import accuracy_reward, problem_with
from echoink.rewards.format import format_reward
from echoink.rewards.parsing import option_text, parse_answer, parse_letters
from echoink.rewards.types import Match, ProblemType

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
        (GOOD, "A, B", 0),
        ("<answer>A, B</answer>", "A, B", 1),
        ("<answer>B and A</answer>", "A, B", 1),
        ("<answer>A, B</answer>", "B", 0),
        ("<answer>A, B, C, D</answer>", "B", 0),
        ("A bell. <answer>no letter</answer>", "A", 0),
        ("B", "B", 0),
        ("<answer>B</answer><answer>B</answer>", "B", 0),
    ],
)
def test_accuracy(completion, gold, reward):
    assert accuracy_reward(completion, ProblemType.multiple_choice, OPTIONS, gold) == reward


def test_exact_is_the_papers_rule():
    choice = ProblemType.multiple_choice
    assert accuracy_reward("<answer>B. bell</answer>", choice, OPTIONS, "B") == 1
    assert accuracy_reward("<answer>B. bell</answer>", choice, OPTIONS, "B", Match.exact) == 0


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("<answer>B</answer>", "B"),
        ("<answer>B. bell</answer>", "B"),  # the reply's first lone letter is that of the block
        ("The image shows a dog, so the answer is C.", "A"),  # the article
        ("I hear it. (d)", "D"),
        ("<answer>E</answer> B", "B"),
        ("dog", ""),
    ],
)
def test_first_letter_is_the_rule_of_the_public_evaluation(completion, letter):
    found = accuracy_reward(completion, ProblemType.multiple_choice, OPTIONS, letter or "A", Match.first_letter)
    assert found == bool(letter)


SCORED = [  # type, answer, solution, score by hand
    ("numerical", "3.14159", "3.14", 1),
    ("numerical", "3.15", "3.14", 0),
    ("numerical", " 1,234.50 ", "1234.5", 1),
    ("numerical", "12 %", "12", 1),
    ("numerical", "-7.", "-7", 1),
    ("numerical", "12 34", "1234", 0),
    ("numerical", "1,2", "12", 0),
    ("numerical", "nan", "3", 0),
    ("numerical", "three", "3", 0),
    ("OCR", "the quick fox", "the quick fox", 1),
    ("OCR", "the quack fox", "the quick fox", 2 / 3),
    ("OCR", "a b c d e f g h", "x", 0),
    ("free-form", "a dog barks", "a dog barks", 1),
    ("free-form", "a dog barks", "A dog, barks!", 1),
    ("free-form", "the dog is barking", "a dog barks", 2 / 7),
    ("free-form", "собака лает", "собака громко лает", 0.8),
    ("regression", "90", "100", 0.9),
    ("regression", "250", "100", 0),
    ("regression", "-1", "-2", 0.5),
    ("regression", "0", "0", 1),
    ("regression", "0.1", "0", 0),
    ("temporal retrieval", "[0, 10]", "0:05 to 0:15", 1 / 3),
    ("temporal retrieval", "0-2 and 1-4", "0-4", 1),  # a union: the overlap counts once
    ("temporal retrieval", "1:00:00-1:00:10", "[[3600, 3605], [3605, 3610]]", 1),
    ("temporal retrieval", "5", "0-4", 0),
    ("temporal retrieval", "4-2", "2-4", 0),
    ("temporal retrieval", "7-8", "2-4", 0),
    ("counting", "7", "7", 1),
    ("counting", "7.0", "7", 1),
    ("counting", "14/2", "7", 1),
    ("counting", "8", "7", 0),
    ("counting", "\\frac{14}{2}", "7", 1),
    ("counting", "(3 + 4)", "7", 1),
    *(("counting", text, "7", 0) for text in ("not 7", "7 knocks", "3 4 7", "x=8 or 7", "8=7", "7;8", "7%")),
    ("counting", "7+0*10**10**8", "7", 0),
    ("counting", "9**9**9**9**9**9" * 9, "7", 0),
]


@pytest.mark.parametrize(("kind", "answer", "solution", "score"), SCORED)
def test_scores_of_the_other_types(kind, answer, solution, score):
    found = accuracy_reward(f"<think>x</think><answer>{answer}</answer>", ProblemType(kind), (), solution)
    assert found == pytest.approx(score)
    assert accuracy_reward(answer, ProblemType(kind), (), solution) == 0, "outside an answer block nothing counts"


@pytest.mark.parametrize(
    ("kind", "solution", "fine"),
    [
        ("multiple choice", "B", True),
        ("multiple choice", "A, C", True),
        ("multiple choice", "E", False),
        ("numerical", "3.5", True),
        ("numerical", "about 3", False),
        ("temporal retrieval", "3-5", True),
        ("temporal retrieval", "3", False),
        ("OCR", "STOP", True),
        ("free-form", "!", False),
        ("counting", "7", True),
    ],
)
def test_a_right_answer_scores_1_against_itself(kind, solution, fine):
    assert (problem_with(solution, ProblemType(kind), OPTIONS) is None) == fine


def test_format_without_reasoning():
    assert format_reward("<answer>B</answer>\n", thinks=False) == 1
    for text in (GOOD, "B", "so <answer>B</answer>", "<answer></answer>", "<answer>A</answer><answer>B</answer>"):
        assert format_reward(text, thinks=False) == 0, text


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
    accuracy_reward(text, ProblemType.multiple_choice, OPTIONS, "B")
    format_reward(text)
    return time.perf_counter() - started


def test_option_text():
    assert [option_text(option) for option in OPTIONS] == ["cat", "bell", "dog", "rain and hail"]
