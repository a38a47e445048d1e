"""The rules of reflection, on completions that people labelled by their meaning.

    python -m tests.evaluation.test_reflection        the table of experiments/reflection.md

Version 2 of the rules was written on `reflection_dev.jsonl` and `reflection_dev2.jsonl`. `reflection_blind.jsonl` was
written by somebody who knew neither the rules nor the other texts, at least 45 of them to mislead a program that looks
for words; `reflection_held.jsonl` was held out since version 1. Neither was looked at when the rules were written.
"""

import json

import numpy as np
import pytest

from echoink.common.statistics import wilson
from echoink.evaluation.reflection import SIGNS, VERSION, effect, rates, reflect
from tests.helpers.paths import FIXTURES

DATA = FIXTURES
SETS = {"dev": ("dev", "dev2"), "held": ("held",), "blind": ("blind",)}


def labelled(name):
    return [json.loads(line) for line in (DATA / f"reflection_{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def agreement(names, sign):
    """Hits, found by the rules, and labelled by people."""
    rows = [row for name in names for row in labelled(name)]
    pairs = [(getattr(reflect(row["text"], row.get("options", ())), sign), row[sign]) for row in rows]
    return sum(a and b for a, b in pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs)


def test_there_are_480_completions_labelled_consistently():
    rows = [row for names in SETS.values() for name in names for row in labelled(name)]
    assert len(rows) == 480 and len({row["text"] for row in rows}) == 478  # the shortest are alike
    for row in rows:
        assert row["doubt"] or not (row["reaffirmed"] or row["revised"])
        assert not (row["reaffirmed"] and row["revised"])


@pytest.mark.parametrize(
    ("sign", "precision", "recall"),
    [
        ("doubt", 0.93, 0.67),
        ("reaffirmed", 0.90, 0.41),
        ("revised", 0.80, 0.64),
        ("audio", 0.94, 0.88),
        ("image", 0.90, 0.59),
    ],
)
def test_precision_and_recall_on_texts_of_somebody_who_did_not_know_the_rules(sign, precision, recall):
    """Exactly those of the page: who changes a rule raises VERSION and writes the page anew."""
    hits, found, there = agreement(SETS["blind"], sign)
    assert VERSION == 3 and (round(hits / found, 2), round(hits / there, 2)) == (precision, recall)


FIGURE_1 = (
    "A. Pursuing fugitives.",
    "B. Searching for someone on an empty square.",
    "C. Shooting with a gun.",
    "D. Searching for people in the crowd.",
)
FIGURE_2 = ("A. Machine gun", "B. Car engine accelerating", "C. Police car siren", "D. Ambulance siren")


@pytest.mark.parametrize(
    ("number", "options", "signs"),
    [
        (1, FIGURE_1, {"doubt", "reaffirmed", "audio", "image"}),
        (2, FIGURE_2, {"doubt", "revised", "audio", "image"}),
    ],
)
def test_the_papers_two_aha_moments(number, options, signs):
    """Its Figures 1 and 2, as printed there."""
    found = reflect((DATA / f"paper_figure_{number}.txt").read_text(encoding="utf-8"), options)
    assert {name for name in SIGNS if getattr(found, name)} == signs


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("That can't be wrong. A.", False),
        ("A. That can't be right.", True),
        ("There is no doubt that it is A.", False),
        ("No need to double-check. A.", False),
        ("Upon closer inspection it is A.", True),
        ('The boy says "wait, I was wrong". A.', False),
        ("The man hesitates and is not sure. A.", False),
        ("I am not sure. A.", True),
    ],
)
def test_doubt_is_the_writers_and_not_denied(text, holds):
    assert reflect(f"<think>{text}</think><answer>A</answer>").doubt == holds


@pytest.mark.parametrize(("answer", "stays"), [("a dog", True), ("A dog", True), ("A", False), ("B. a dog", False)])
def test_an_article_is_no_letter_of_a_free_answer(answer, stays):
    text = "<think>I hear a dog. Wait, let me look again. It is a dog.</think>"
    assert reflect(f"{text}<answer>{answer}</answer>").reaffirmed == stays


def test_options_that_are_left_are_nothing_heard_or_seen():
    found = reflect(
        "<think>A and C are ruled out. Only B is left. It sounds plausible, I see.</think><answer>B</answer>"
    )
    assert not (found.audio or found.image or found.doubt)


def test_a_revision_is_read_from_the_options_words():
    options = ("A. A violin", "B. A flute", "C. A drum", "D. A harp")
    text = "<think>The bow suggests a violin. {} The breath in the tone makes it a flute.</think><answer>B</answer>"
    assert reflect(text.format("Hmm, there is no bow."), options).revised
    assert not reflect(text.format("Not so fast, some say."), ()).revised
    stays = (
        "<think>The breath makes it a flute. Wait, could it be a harp? No strings. A flute.</think><answer>B</answer>"
    )
    assert reflect(stays, options).reaffirmed and not reflect(stays, options).revised


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        (
            "<think>I hear a bell. So A. Wait, it is a gong. So B.</think><answer>B</answer>",
            {"doubt", "revised", "audio"},
        ),
        (
            "<think>The bird is red, so A. Hold on, let me look again. A.</think><answer>A</answer>",
            {"doubt", "reaffirmed", "image"},
        ),
        ("<think>People wait for the bus.</think><answer>A</answer>", set()),
        ('<think>The child says "wait, I was wrong".</think><answer>A</answer>', {"audio"}),
        ("<think>hear 3 beep, see 2 red ring. want red.</think><answer>A</answer>", {"audio", "image"}),
        ("", set()),
    ],
)
def test_signs_by_hand(text, signs):
    found = reflect(text)
    assert {name for name in SIGNS if getattr(found, name)} == signs
    assert bool(found.cue) == found.doubt


def test_any_text_is_taken():
    for text in ("<think>" * 1000, "wait " * 5000, "\u2028\x00", "<answer></answer>", "a" * 20_000):
        assert reflect(text).words >= 0


def test_rates_count_and_average():
    found = rates(["<think>one two three</think>", "Hmm. Wait, no. I hear it."])
    assert found["doubt"] == 0.5 and found["audio"] == 0.5 and found["words"] == 4.5


def test_doubt_is_compared_within_prompts_and_at_equal_length():
    """The longer a completion the more often it is right, and doubt is long: alone it looks helpful, adjusted not."""
    rng = np.random.default_rng(0)
    groups = []
    for _ in range(200):
        group = []
        for doubts in (True, True, False, False):
            words = int(rng.integers(20, 40)) + 20 * doubts
            text = "word " * (words - 2 * doubts) + ("x. Wait, no" if doubts else "")
            group.append((reflect(text), bool(rng.random() < words / 80)))
        groups.append(group)
    found = effect([*groups, [(reflect("same"), True), (reflect("same"), False)]])
    assert found.prompts == 200 and found.completions == 800
    assert found.interval[0] > 0.15 and found.adjusted_interval[0] < 0 < found.adjusted_interval[1]
    assert effect([[(reflect("a"), True), (reflect("b"), False)]]) is None


def test_an_effect_of_few_clusters_has_no_interval_and_one_of_two_completions_no_share_of_length():
    groups = [[(reflect("Wait, no. Six words in all."), True), (reflect("one two three"), False)]] * 12
    ids = [str(number) for number in range(12)]
    found = effect(groups[:1], ids[:1])
    assert found.difference == pytest.approx(1) and (found.interval, found.adjusted, found.adjusted_interval) == (
        None,
        None,
        None,
    )
    assert (
        effect(groups, ids).interval == pytest.approx((1, 1))
        and effect(groups, [id[-1:] for id in "123456789999"]).interval is None
    )
    crossed = [(id, f"picture {int(id) // 6}") for id in ids]
    assert effect(groups, crossed).interval is None, "the two pictures count, not the twelve sounds"


if __name__ == "__main__":
    heads = [f"{what}, {name}" for name in SETS for what in ("precision", "recall")]
    print(f"| sign | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    for sign in SIGNS:
        cells = []
        for names in SETS.values():
            hits, found, there = agreement(names, sign)
            for n in (found, there):
                low, high = wilson(hits, n).low, wilson(hits, n).high
                cells.append(f"{hits}/{n} = {hits / n:.2f} [{low:.2f}, {high:.2f}]")
        print(f"| {sign} | {' | '.join(cells)} |")
