"""The two rewards, case by case; a reward is a contract that a policy will try to break."""

import re
import time
from functools import partial

import pytest

from echoink.data.samples import DataType, Sample
from echoink.evaluation.prediction import judged
from echoink.rewards.accuracy import accuracy_reward, problem_with
from echoink.rewards.format import format_reward
from echoink.rewards.numbers import count_in, number_in
from echoink.rewards.parsing import option_letter, option_text, parse_answer, parse_letters
from echoink.rewards.types import Match, ProblemType
from tests.helpers.paths import ROOT

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
    ("A C", "AC", ""),
    ("AC", "AC", ""),
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
    ("\N{FULLWIDTH LATIN CAPITAL LETTER C}", "C", ""),
    ("C\N{COMBINING ACUTE ACCENT}", "", ""),
    ("Cat", "", ""),
    ("1", "", ""),
]


@pytest.mark.parametrize(("answer", "lenient", "exact"), LETTERS)
def test_letters(answer, lenient, exact):
    assert parse_letters(answer, OPTIONS) == frozenset(lenient)
    assert parse_letters(answer, OPTIONS, Match.exact) == frozenset(exact)


TABLE = re.findall(r"^\| (`+.*?`+(?:, `+.*?`+)*) \| (.*?) \|$", (ROOT / "docs/rewards.md").read_text(), re.MULTILINE)
"""What the guide says that lenient reading takes for which letters."""


def test_the_guides_table_of_lenient_answers_is_long():
    assert sum(len(re.findall(r"`+(.+?)`+(?=,|$)", answers)) for answers, _ in TABLE) >= 40


@pytest.mark.parametrize(("answers", "letters"), TABLE)
def test_lenient_reading_takes_what_the_guide_says(answers, letters):
    for answer in re.findall(r"(?:^|, )(?:`` (.+?) ``|`([^`]+)`)", answers):
        text = next(filter(None, answer)).replace("\\n", "\n").replace("\\|", "|")
        wanted = frozenset() if letters == "nothing" else frozenset(letters.split(", "))
        assert parse_letters(text, GUIDE) == wanted, text


@pytest.mark.parametrize(
    "text",
    [
        "Both options A and B",
        "Options A and B",
        "There are two choices left",
        "The choices are limited.",
        "A multiple choice test",
        "The answer: silence",
        "Answer: silence",
        "选手在跑步",
        "选项A和B",
    ],
)
def test_an_option_that_holds_a_word_for_options_can_be_copied(text):
    options = ("A. cat", "B. bell", f"C. {text}")
    for answer in (f"C. {text}", f"Answer: C. {text}", f"C {text}", f"**C. {text}**"):
        assert parse_letters(answer, options) == {"C"}, answer
    assert parse_letters("A option B", options) == frozenset()
    assert problem_with(f"C. {text}", ProblemType.multiple_choice, options) is None


@pytest.mark.parametrize("answer", ["A. a bell", "B. A BELL.", "A, B"])
def test_a_repeated_option_is_right_under_each_of_its_letters(answer):
    options = ("A. a bell", "B. a  bell.", "C. a dog")
    for gold in "AB":
        text = f"<answer>{answer}</answer>"
        assert accuracy_reward(text, ProblemType.multiple_choice, options, gold) == 1
        assert accuracy_reward("<answer>C</answer>", ProblemType.multiple_choice, options, gold) == 0


@pytest.mark.parametrize(
    "options",
    [
        ("A.", "B.", "C.", "D."),
        ("A. Really.", "B. Really?", "C. Really!"),
        ("A. Dm7", "B. DM7"),
        ("A. 10²", "B. 102"),
        ("A. therapist", "B. the rapist"),
        ("A. C", "B. G", "C. A"),
    ],
)
@pytest.mark.parametrize("match", [Match.lenient, Match.exact])
def test_options_that_look_alike_are_different_answers(options, match):
    letters = [option[0] for option in options]
    for gold in letters:
        paid = [
            accuracy_reward(f"<answer>{one}</answer>", ProblemType.multiple_choice, options, gold, match)
            for one in letters
        ]
        assert paid == [float(one == gold) for one in letters]


def test_letters_that_are_named_in_the_exact_form_are_read_so_whatever_the_options_are():
    options = ("A. C", "B. G", "C. A", "D. F")
    assert parse_letters("A, C", options) == {"A", "C"} and parse_letters("A. C", options) == {"A"}
    for answer, paid in (("A, C", 1), ("A", 0), ("C", 0)):
        text = f"<answer>{answer}</answer>"
        assert accuracy_reward(text, ProblemType.multiple_choice, options, "A, C") == paid


@pytest.mark.parametrize(
    "answer",
    [
        "3 fifths",
        "7 tenths",
        "1 eighth",
        "2 thousandths",
        "10 squared",
        "2π",
        "2 π",
        "5 below",
        "$5M",
        "$5B",
        "5bn",
        "5 lakh",
        "5 K",
        "3 tens",
        "3 half-hours",
        "3万",
        "5千",
        "2百",
        "1亿",
        "5十",
        "3万只",
        "7多",
        "7个多",
        "7半",
        "7余",
        "5百米",
        "5百克",
        "5万米",
        "3亿瓦",
        "2万卡",
        "30多个",
        "10多米",
        "3个半小时",
        "3个多月",
        "5千字",
        "$5$ million",
    ],
)
def test_a_word_or_a_sign_that_changes_a_number_is_no_unit(answer):
    assert number_in(answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        *[
            "5 metres",
            "5m",
            "$5",
            "5 MB",
            "5千克",
            "5 千米",
            "5千字节",
            "5兆字节",
            "5千牛",
            "5来回",
            "5只",
            "5个",
            "5多边形",
            "5个多边形",
            "5个半圆",
            "5个半音",
            "5个多媒体",
        ],
        *("5 miles", "5 nautical miles", "5 bin bags", "USD$5", "5 percent", "5 per cento"),
        *("₹5", "US$5", "CHF 5", "5 ₽", "5 EUR", "R$ 5", "HK$5", "Rs. 5", "5 €"),
        "5 T-shirts",
        "5 drum-beats",
        "5 o'clock",
        "5 o’clock",
        "**5** knocks",
        "$5$ knocks",
        "__5__ knocks",
        "**five** knocks",
        *[
            "**Answer**: 5",
            "**Answer**: **5**",
            "**Answer:** **5** knocks",
            "Answer: **5** knocks",
            "Answer: 5 knocks.",
        ],
    ],
)
def test_a_number_is_read_with_units_and_marks(answer):
    assert number_in(answer) == 5


@pytest.mark.parametrize(
    "options", [("(A) cat", "(B) bell"), ("A) cat", "B) bell"), ("A: cat", "B: bell"), ("（A） cat", "Ｂ． bell")]
)
def test_labels_of_options_are_read_in_every_form(options):
    assert [option_letter(option) for option in options] == ["A", "B"]
    assert [option_text(option) for option in options] == ["cat", "bell"]
    assert parse_letters("(B) bell", options) == parse_letters("B. bell", options) == {"B"}


SIGNED = ("A. 6 dB", "B. -6 dB", "C. 12 dB", "D. -12 dB", "E. - they talk")


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        *(
            (answer, "B")
            for answer in ("B", "B. -6 dB", "**B. -6 dB**", "(B) -6 dB", "B: −6 dB", "B - -6 dB", "B -6 dB")
        ),
        *((answer, "A") for answer in ("A. 6 dB", "A - 6 dB")),
        *((answer, "") for answer in ("A. -6 dB", "C. -12 dB", "B. 6 dB", "A -6 dB")),
        ("D. -12 dB", "D"),
        *((answer, "E") for answer in ("E. - they talk", "E - they talk")),
    ],
)
def test_the_sign_of_an_option_belongs_to_its_number(answer, letters):
    assert parse_letters(answer, SIGNED) == frozenset(letters)


def test_the_sign_before_a_point_or_a_currency_belongs_to_the_number_too():
    options = ("A. .5", "B. -.5", "C. $5", "D. -$5")
    assert [parse_letters(answer, options) for answer in ("A. -.5", "C. -$5")] == [frozenset()] * 2
    assert [parse_letters(option, options) for option in options] == [{"A"}, {"B"}, {"C"}, {"D"}]


FORMULAS = (r"A. $5\,\text{kg}$", r"B. **dog**", r"C. $\mathrm{H_2O}$", r"D. $\frac{1}{2}$")


@pytest.mark.parametrize("label", ["{}", "**{}**", r"\boxed{{{}}}", r"\({}\)", r"\[\boxed{{{}}}\]"])
def test_an_option_with_marks_in_its_text_can_be_repeated(label):
    for option in FORMULAS:
        letter, plain = option[0], option.replace("**", "")
        assert parse_letters(label.format(letter), FORMULAS) == {letter}
        if "**" not in label or "**" not in option:
            assert parse_letters(label.format(option), FORMULAS) == {letter}, label.format(option)
        assert parse_letters(label.format(plain), (*FORMULAS[:1], "B. dog", *FORMULAS[2:])) == {letter}
    assert parse_letters("B. **dog**", ("A. cat", "B. dog")) == {"B"}


GUIDE = ("A. They talk.", "B. It's a  bell", "C. 50 %", "D. Both A and B")

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
    assert accuracy_reward("<answer>B. bell</answer>", choice, OPTIONS, solution="B", match=Match.exact) == 0


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("<answer>B</answer>", "B"),
        ("<answer>B. bell</answer>", "B"),  # the reply's first lone letter is that of the block
        ("The image shows a dog, so the answer is C.", "A"),  # the article
        ("I hear it. (d)", "D"),
        ("<answer>E</answer> B", "B"),
        ("<think>It is a bell.</think><answer>b</answer>", "B"),  # either case
        ("<think>I must write <answer> tags. It is a bell.</think><answer>B</answer>", "B"),
        ("dog", ""),
    ],
)
def test_first_letter_is_the_rule_of_the_public_evaluation(completion, letter):
    found = accuracy_reward(
        completion, ProblemType.multiple_choice, OPTIONS, solution=letter or "A", match=Match.first_letter
    )
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
    *(("numerical", text, "3", 1) for text in ("three", "Three knocks", "3 m", "$3", "3.0 km", "(3)", "+3", "**3**")),
    ("numerical", "\N{MINUS SIGN}3", "-3", 1),
    *(("numerical", text, "3", 0) for text in ("3 or 4", "3 thousand", "3 dozen", "not 3", "3 to 4", "about 3")),
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
    ("regression", "unknown", "3", 0),
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
    *(("counting", text, "7", 0) for text in ("not 7", "3 4 7", "x=8 or 7", "8=7", "7;8", "7%")),
    *(("counting", text, "7", 1) for text in ("7 knocks", "seven", "Seven times.", "7.")),
    *(("numerical", text, "3", 1) for text in ("3 m²", "3m²", "3kg", "3 °C", "$3")),
    *(("numerical", text, "3", 0) for text in ("3k", "3 million", "3-4")),
    ("numerical", "\N{EN DASH}7", "-7", 1),
    ("counting", "twenty-one", "21", 1),
    ("counting", "Twenty one dogs", "21", 1),
    ("counting", "twenty one", "20", 0),
    *(("counting", text, "7", 0) for text in ("seven eight", "seven point five", "7 dozens", "7 half", "seven thirds")),
    ("numerical", "one half", "1", 0),
    ("counting", "7+0*10**10**8", "7", 0),
    ("OCR", "NO\nENTRY", "NO ENTRY", 1),
    ("OCR", "cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", 1),
    ("OCR", "禁止进内", "禁止入内", 0.75),
    ("OCR", "禁止 入内", "禁止入内", 1),
    ("free-form", "cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", 1),
    ("free-form", "一只猫在叫", "一只狗在叫", 0.8),
    ("free-form", "犬が吠えている", "犬が吠えている。", 1),
    ("free-form", "แมวร้อง", "แมวร้อง", 1),
    ("free-form", "कुत्ता भौंकता है", "कुत्ता भौंक रहा है", 4 / 7),
    ("free-form", "كَلْبٌ ينبح", "كلب ينبح", 0.5),
    ("temporal retrieval", ".5-7", "0.5-7", 1),
    ("temporal retrieval", "-2-5", "0-5", 0),
    ("temporal retrieval", "2.5 s - 7 s", "2.5-7", 1),
    ("temporal retrieval", "2m - 7m", "2-7", 0),
    ("temporal retrieval", "from 2 s (frame 60) to 7 s (frame 210)", "2-7", 0),
    ("temporal retrieval", "2-7 seconds", "2-7", 1),
    ("counting", "9**9**9**9**9**9" * 9, "7", 0),
    *(
        ("counting", text, "7", 0)
        for text in ("7+", "7-", "7/", "7(8)", "7 (8)", "7)8", "(7", "/7", "7--8", "7**1", "7//1")
    ),
    *(("counting", text, "7", 0) for text in ("7{8}", "3. 7", "7.7.7", r"\frac{14}{2}+1", r"7\frac{1}{2}", "7,0*1")),
    *(("counting", text, "7", 1) for text in ("* 7", "**7", "7**", "```7```", "```\n7\n```", '7"', "$$7$$", "10 + -3")),
    *(("counting", text, "34", 0) for text in (r"\boxed{3}\boxed{4}", "3 4", "3. 4")),
    ("counting", "3/4/", "3", 0),
    ("counting", "- 7", "7", 0),
    ("counting", "0/0", "7", 0),
    ("counting", r"\frac{14}{2}+1", "8", 1),
    ("numerical", "10\N{SUPERSCRIPT THREE}", "103", 0),
    *(("numerical", text, "3", 1) for text in (r"$3\,\text{kg}$", r"3^\circ", r"\$3", r"3\%", "3 m/s^2")),
    *(("counting", text, "14/2", 1) for text in ("7", "7 knocks", "seven", "21/3", "14/2")),
    *(
        ("counting", text, "7", 1)
        for text in ("$7$", "\\boxed{7}", "\\(7\\)", "**7**", "Answer: 7", "[7]", "\\text{seven}")
    ),
    *(
        ("numerical", text, "3", 1)
        for text in ("$\\boxed{3}$", "$3.00$", "3 €", "3€", "3°", "3°C", "3 km/h", "3km/h", "3 m/s²")
    ),
    ("numerical", r"3~\text{kg}", "3", 1),
    *(("counting", text, "7", 0) for text in ("~7", "7~8")),
    *(("numerical", text, "3", 0) for text in ("3 and/or 4", "3/4", "3€4", "≈3")),
    ("temporal retrieval", "2,5-3,9", "2.5-3.9", 0),
    ("temporal retrieval", "2,5 bis 4,8", "2.5-4.8", 0),
    ("temporal retrieval", "2,5 s - 4,8 s", "2.5-4.8", 0),
    ("temporal retrieval", "between 2,5 and 4,8", "2.5-4.8", 0),
    ("temporal retrieval", "00:00:02,500 --> 00:00:04,800", "2.5-4.8", 1),
    ("temporal retrieval", "00:02,500 - 00:04,800", "2.5-4.8", 1),
    ("temporal retrieval", "0:05,0:10", "5-10", 1),
    ("temporal retrieval", "[[5,10],[12,15]]", "5-10 and 12-15", 1),
    ("temporal retrieval", "[2,5]", "2-5", 1),
    ("temporal retrieval", "2,5 and 7,9", "2-5 and 7-9", 1),
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
        "<think>x</think><answer>" + "\\text{" * 1_400 + "}" * 1_400 + "</answer>",
        "<think>x</think><answer>7" + "+1" * 4_000 + "</answer>",
    ],
)
def test_long_and_pathological_texts_are_fast(text):
    best = min(_seconds(text) for _ in range(3))
    assert best < 0.05


def _seconds(text: str) -> float:
    started = time.perf_counter()
    for kind, gold in ((ProblemType.multiple_choice, "B"), (ProblemType.counting, "7"), (ProblemType.temporal, "2-7")):
        accuracy_reward(text, kind, OPTIONS, gold)
    format_reward(text)
    return time.perf_counter() - started


def test_option_text():
    assert [option_text(option) for option in OPTIONS] == ["cat", "bell", "dog", "rain and hail"]


@pytest.mark.parametrize(
    ("kind", "gold"),
    [
        *(("counting", gold) for gold in ("seven", "7 knocks", "(7", "about 7", "", "7-8", "7 8", "7+")),
        *(("counting", gold) for gold in ("1/0", "..", "()", r"\frac", r"\frac{1}{0}", "{7}{8}", "- 7", "3. 7")),
        *(("numerical", gold) for gold in ("three", "$3", "3 m", "1/2", "\N{MINUS SIGN}3")),
        *(("temporal retrieval", gold) for gold in ("-1-5", "5", "10-5", "5-10-15", "[-1, 5]")),
        *(
            ("temporal retrieval", gold)
            for gold in ("2,5-3,9", "1,200-1,300", "1,5 to 2,5", "2,5s - 3,9 s", "from 2,5 until 3,9", "2,5 ~ 3,9")
        ),
        *(("temporal retrieval", gold) for gold in ("1m5s-1m10s", "0.5min-1min", "10-20%", "300-450 ms")),
    ],
)
def test_a_right_answer_that_no_model_could_match_is_refused_when_it_is_read(kind, gold):
    assert problem_with(gold, ProblemType(kind), ()) is not None


def test_an_answer_without_a_number_is_a_parse_failure_where_a_number_is_asked():
    sample = partial(Sample, id="1", problem="How many?", options=(), fields={}, data_type=DataType.text)
    counted = sample(problem_type=ProblemType.counting, solution="7")
    span = sample(problem_type=ProblemType.temporal, solution="2-7")
    free = sample(problem_type=ProblemType.free_form, solution="a dog")
    for asked, text, read in (
        (counted, "7", True),
        (counted, "14/2", True),
        (counted, "7%", True),
        (counted, "I cannot tell", False),
        (span, "2 to 7", True),
        (span, "at once", False),
        (free, "I cannot tell", True),
    ):
        found = judged(f"<think>x</think><answer>{text}</answer>", asked, Match.lenient, thinks=True)
        assert (found["letters"], found["answer"]) == (text if read else "", text), "what was said stays"


def test_right_answers_in_digits_and_fractions_are_taken():
    for kind, gold in (
        ("counting", "7"),
        ("counting", "14/2"),
        ("numerical", "-1,234.5"),
        ("temporal retrieval", ".5-7"),
    ):
        assert problem_with(gold, ProblemType(kind), ()) is None


def test_a_letter_that_no_option_has_is_wrong_and_no_error():
    two = OPTIONS[:2]
    assert accuracy_reward("I say D", ProblemType.multiple_choice, two, solution="B", match=Match.first_letter) == 0


@pytest.mark.parametrize(
    ("answers", "letters"),
    [
        (("$B$.", r"$\boxed{\text{B}}$.", "**B. It's a bell**.", "【B】。", "「B」。", r"\(B\).", "$$B$$."), "B"),
        (("[A, C].", "(A, C).", "**A, C**.", "AC.", "AC。", "选AC。"), "AC"),
        (("选项：B", "选项: B", "选择：B", "选：B", "正确选项：B", "Option:B"), "B"),
        ((r"C. 50\%", r"C. $50\%$"), "C"),
        ((r"D. \$5", "D. $5"), "D"),
        ((r"E. \frac{1}{2}", r"E. \(\frac{1}{2}\)", r"E. $\frac{1}{2}$"), "E"),
        (("C. 50", r"D. \$6", "E. $x$", "选项：", "ACC.", "[B] or [A]."), ""),
    ],
)
def test_letters_are_read_in_marks_before_a_full_stop_after_a_colon_and_with_latex(answers, letters):
    options = ("A. dog", "B. It's a bell", "C. 50 %", "D. $5", r"E. $\frac{1}{2}$")
    for answer in answers:
        assert parse_letters(answer, options) == frozenset(letters), answer


def test_amounts_keep_their_dollars():
    options = ("A. $5 to $6", "B. 5 to 6")
    assert parse_letters("A. $5 to $6", options) == {"A"} and parse_letters("B. 5 to 6", options) == {"B"}
    assert not parse_letters("A. 5 to 6", options)


@pytest.mark.parametrize("answer", ["7。", "7次。", "**7**。", r"\boxed{7}。", "答案：7。", "seven。"])
def test_a_number_may_end_with_a_chinese_full_stop(answer):
    assert count_in(answer) == 7


@pytest.mark.parametrize(
    "answer",
    [
        *("2x3", "3x2", "0x3", "2 pairs", "2 couples", "2打", "2对", "2双", "2双鞋", "3成"),
        *(
            "3만",
            "3천개",
            "3 Dutzend",
            "3 Mio.",
            "3 mille",
            "3 millones",
            "3 тыс.",
            "3 مليون",
            "3 triệu",
            "3 M samples",
        ),
        *("7 hundert", "7 tysięcy", "7 ezer", "7 trăm", "7 honderd", "7 hundra", "7 tuhatta", "7 tisíc"),
        *(
            "7 percents",
            "7 percentage points",
            "7 per cento",
            "7 percent",
            "7 per cent",
            "7 Prozent",
            "7 pour cent",
            "7‰",
            "7 per mille",
            "7 процентов",
        ),
    ],
)
def test_words_that_change_a_number_are_no_units(answer):
    assert count_in(answer) is None


@pytest.mark.parametrize(
    "span",
    [
        *("minute 2 to minute 3", "minutes 2-3", "[2, 3] minutes", "2 to 3 (minutes)", "2-minute to 3-minute mark"),
        *("frame number 2 to frame number 3", "2nd frame to 3rd frame", "2' - 3'", "2 μs - 3 μs", "2 beats to 3 beats"),
        *("2 per cent - 3 per cent", "2 Minuten bis 3 Minuten", "2 Std. - 3 Std.", "2 minutos a 3 minutos"),
        *("2 мин - 3 мин", "2 heures à 3 heures", "2 phút đến 3 phút", "hour 2 to hour 3"),
        "1分5秒-1分10秒",
        "1'05\"-1'10\"",
        "1′5″-1′10″",
        "1小时到2小时",
        "1时5分-1时10分",
        "5帧-10帧",
        "5毫秒-9毫秒",
    ],
)
def test_times_in_minutes_hours_or_frames_are_no_seconds_in_any_language(span):
    kind = ProblemType.temporal
    assert accuracy_reward(f"<answer>{span}</answer>", kind, (), "1-10") == 0
    assert problem_with(span, kind, ()), "nor as a gold answer"
    assert accuracy_reward("<answer>5秒到10秒</answer>", kind, (), "5-10") == 1


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "回答：B",
            "答：B",
            "解答：B",
            "答え：B",
            "正解：B",
            "정답: B",
            "답: B",
            "Antwort: B",
            "Réponse : B",
            "Respuesta: B",
        ),
        *("Risposta: B", "Resposta: B", "Ответ: B", "Jawaban: B", "उत्तर: B", "الإجابة: B", "故选B", "故选：B。"),
    ],
)
def test_the_word_for_answer_may_stand_before_the_letter_in_other_languages(answer):
    assert parse_letters(answer, OPTIONS) == {"B"}


def test_each_letter_may_have_its_word_for_option():
    assert parse_letters("Option A and Option C", OPTIONS) == {"A", "C"}
    assert parse_letters("Options A, C", OPTIONS) == {"A", "C"}


@pytest.mark.parametrize(
    "spans",
    [
        *("[2,5] & [7,9]", "(2,5) + (7,9)", "[2,5] or [7,9]", "[2,5] and again in [7,9]", "[2,5] und [7,9]"),
        *("[2,5] seconds and [7,9] seconds", "{2,5}, {7,9}", "**[2,5]** and **[7,9]**", "`[2,5]`, `[7,9]`"),
        *('"2,5", "7,9"', "in [2,5], between the two claps, and [7,9]", "2,5 and 7,9", "2,5; 7,9", "2-5,7-9"),
    ],
)
def test_spans_with_commas_are_read_where_nothing_stands_for_a_decimal_comma(spans):
    assert accuracy_reward(f"<answer>{spans}</answer>", ProblemType.temporal, (), "2-5 and 7-9") == 1


def test_lists_of_spans_with_dashes_and_a_time_behind_a_clock_time_are_read():
    score = partial(accuracy_reward, problem_type=ProblemType.temporal, options=())
    assert score("<answer>2-5,7-9 and 10-12,14-15</answer>", solution="2-5, 7-9, 10-12, 14-15") == 1
    assert score("<answer>[0:05,100]</answer>", solution="5-100") == 1


@pytest.mark.parametrize(
    "span", ["'2-5'", "'2' - '5'", "2 to 5 of the movie", "from second 2 to second 5", "2 Sekunden bis 5 Sekunden"]
)
def test_times_in_seconds_are_read_within_words(span):
    assert accuracy_reward(f"<answer>{span}</answer>", ProblemType.temporal, (), "2-5") == 1
