"""The rules of reflection, on completions that people labelled by their meaning.

    python -m tests.test_reflection        the table of experiments/reflection.md

The rules were written on `reflection_dev.jsonl`; no text of `reflection_held.jsonl` was looked at, then or since. 130
completions each: 50 with doubt, of which 22 reaffirm and 20 revise; at least 25 without
it use its words, at least 12 with it avoid them.
"""

import json

import numpy as np
import pytest

from echoink.common.statistics import wilson
from echoink.evaluation.reflection import SIGNS, VERSION, effect, rates, reflect
from tests.helpers.paths import FIXTURES

DATA = FIXTURES


def labelled(name):
    return [json.loads(line) for line in (DATA / f"reflection_{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def agreement(name, sign):
    """Hits, found by the rules, and labelled by people."""
    pairs = [(getattr(reflect(row["text"]), sign), row[sign]) for row in labelled(name)]
    return sum(a and b for a, b in pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs)


def test_there_are_260_completions_labelled_consistently():
    rows = labelled("dev") + labelled("held")
    assert len({row["text"] for row in rows}) == 258  # the shortest are alike
    for row in rows:
        assert row["doubt"] or not (row["reaffirmed"] or row["revised"])
        assert not (row["reaffirmed"] and row["revised"])


@pytest.mark.parametrize(
    ("sign", "precision", "recall"),
    [
        ("doubt", 0.91, 0.62),
        ("reaffirmed", 0.92, 0.55),
        ("revised", 0.92, 0.60),
        ("audio", 0.95, 0.77),
        ("image", 0.99, 0.73),
    ],
)
def test_precision_and_recall_on_the_half_that_the_rules_were_not_written_on(sign, precision, recall):
    """Exactly those of the page: who changes a rule raises VERSION and writes the page anew."""
    hits, found, there = agreement("held", sign)
    assert VERSION == 1 and (round(hits / found, 2), round(hits / there, 2)) == (precision, recall)


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
            group.append((text, bool(rng.random() < words / 80)))
        groups.append(group)
    found = effect([*groups, [("same", True), ("same", False)]])
    assert found.prompts == 200 and found.completions == 800
    assert found.interval[0] > 0.15 and found.adjusted_interval[0] < 0 < found.adjusted_interval[1]
    assert effect([[("a", True), ("b", False)]]) is None


if __name__ == "__main__":
    print("| sign | precision, dev | recall, dev | precision, held out | recall, held out |\n|---|---|---|---|---|")
    for sign in SIGNS:
        cells = []
        for name in ("dev", "held"):
            hits, found, there = agreement(name, sign)
            for n in (found, there):
                low, high = wilson(hits, n).low, wilson(hits, n).high
                cells.append(f"{hits}/{n} = {hits / n:.2f} [{low:.2f}, {high:.2f}]")
        print(f"| {sign} | {' | '.join(cells)} |")
