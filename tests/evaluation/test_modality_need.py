"""Labels of need, and what is told of each ablation."""

from dataclasses import replace

import numpy as np
import pytest

from echoink.common.statistics import mcnemar, paired
from echoink.config.schema import Variant
from echoink.evaluation import tables
from echoink.evaluation.metrics import chance, summarize
from echoink.evaluation.modality_need import FEWEST, Need, label, labels, rows
from echoink.evaluation.modality_need import summarize as of_ablations
from echoink.evaluation.prediction import GREEDY, SAMPLED, draw_names
from tests.evaluation.test_evaluate import made

FULL, DEAF, BLIND, TEXT = Variant.full, Variant.no_audio, Variant.no_image, Variant.text_only


@pytest.mark.parametrize(
    ("full", "deaf", "blind", "text", "need"),
    [
        (8, 2, 8, 2, Need.audio),
        (8, 8, 1, 2, Need.image),
        (8, 2, 2, 2, Need.both),
        (8, 8, 8, 2, Need.either),
        (8, 8, 7, 8, Need.neither),
        (4, 2, 2, 2, Need.undetermined),  # 4 of 8 may be a guess
        (6, 4, 6, 2, Need.undetermined),  # 4 of 8 is neither a fall nor more than a guess
    ],
)
def test_labels_of_eight_draws(full, deaf, blind, text, need):
    assert label({FULL: full, DEAF: deaf, BLIND: blind, TEXT: text}, 8, 0.25) is need


SWAPPED = {"audio": Variant.swapped_audio, "image": Variant.swapped_image}


def test_a_sense_is_needed_only_where_both_its_swap_and_its_removal_fall():
    def of(deaf, other_sound, blind, other_picture):
        swaps = {SWAPPED["audio"]: other_sound, SWAPPED["image"]: other_picture}
        return label({FULL: 8, DEAF: deaf, BLIND: blind, TEXT: 1, **swaps}, 8, 0.25)

    assert of(deaf=0, other_sound=8, blind=0, other_picture=0) is Need.image  # the removal is a prompt never met
    assert of(deaf=8, other_sound=2, blind=8, other_picture=2) is Need.either  # the swap contradicts what either says
    assert of(deaf=1, other_sound=2, blind=0, other_picture=1) is Need.both
    assert of(deaf=1, other_sound=5, blind=0, other_picture=1) is Need.image  # 5 of 8 is no fall from 8, and no guess


def test_a_sense_that_was_never_taken_away_is_undetermined_and_one_that_is_not_there_is_not_asked():
    assert label({FULL: 8, DEAF: 1}, 8, 0.25) is Need.undetermined
    assert label({FULL: 8}, 8, 0.25) is Need.undetermined
    assert label({FULL: 8, DEAF: 8, BLIND: 8}, 8, 0.25) is Need.undetermined  # text alone was not asked
    assert label({FULL: 8, DEAF: 1, TEXT: 1}, 8, 0.25, ["audio"]) is Need.audio
    assert label({FULL: 8, DEAF: 8, TEXT: 8}, 8, 0.25, ["audio"]) is Need.neither
    assert label({FULL: 8, TEXT: 8}, 8, 0.25, []) is Need.undetermined


def test_a_guesser_is_seldom_given_a_need():
    """At equal rates of a guess everything but `undetermined` is an error."""
    rng = np.random.default_rng(0)
    draws = rng.binomial(8, 0.25, size=(2000, 4))
    found = [label(dict(zip((FULL, DEAF, BLIND, TEXT), map(int, row), strict=True)), 8, 0.25) for row in draws]
    assert np.mean([need is not Need.undetermined for need in found]) < 0.03


def test_a_model_that_uses_neither_sense_is_seldom_said_to_need_one():
    rng = np.random.default_rng(0)
    draws = rng.binomial(8, 0.7, size=(2000, 4))
    found = [label(dict(zip((FULL, DEAF, BLIND, TEXT), map(int, row), strict=True)), 8, 0.25) for row in draws]
    assert np.mean([need in (Need.audio, Need.image, Need.both) for need in found]) < 0.05


def answers(variant, right, draw=SAMPLED, kinds=("ear", "eye")):
    return [
        replace(
            made(str(i), correct, draw=draw, kind=kinds[i % len(kinds)]),
            variant=variant.name,
            options=("A. x", "B. y", "C. z", "D. w"),
            gold="A",
            problem_type="multiple choice",
        )
        for i, correct in enumerate(right)
    ]


def test_the_summary_of_an_ablation():
    full = answers(FULL, [True] * 16 + [False] * 4)
    deaf = answers(DEAF, [True, False] * 10)  # the eye's questions, which are the odd ones, are lost
    found = of_ablations({FULL: full, DEAF: deaf})["no_audio"]
    assert found["n"] == 20 and found["accuracy"] == 0.5 and found["chance"] == 0.25
    assert found["shortcut"]["rate"] == pytest.approx((0.5 - 0.25) / 0.75)
    drop = found["drop"]
    assert drop["difference"] == pytest.approx(0.3) and (drop["lost"], drop["gained"]) == (8, 2)
    assert drop["p_value"] == pytest.approx(mcnemar(8, 2)) == pytest.approx(0.0578, abs=1e-4)
    assert found["by"]["kind"]["eye"] == {
        "n": 10,
        "full": 0.8,
        "accuracy": 0.0,
        "p_value": pytest.approx(mcnemar(8, 0)),
    }
    assert found["by"]["kind"]["ear"]["accuracy"] == 1.0
    assert of_ablations({FULL: full, DEAF: deaf})["needs"] is None, "one draw labels nothing"
    swapped = answers(SWAPPED["audio"], [True, False] * 10)
    assert of_ablations({FULL: full, SWAPPED["audio"]: swapped})["swapped_audio"]["shortcut"] is None
    graded = {
        v: [replace(p, problem_type="free-form", options=()) for p in one] for v, one in ((FULL, full), (DEAF, deaf))
    }
    assert of_ablations(graded)["no_audio"]["by"]["kind"]["eye"]["p_value"] == pytest.approx(mcnemar(8, 0))


def test_a_field_with_many_values_is_one_row_on_the_screen(capsys):
    classes = [f"class {number}" for number in range(30)]
    full, deaf = (answers(variant, [True, False] * 30, kinds=classes) for variant in (FULL, DEAF))
    tables.ablation_table({"base": of_ablations({FULL: full, DEAF: deaf})})
    shown = capsys.readouterr().out
    assert "kind: 30 values" in shown and "class 7" not in shown


def test_rows_without_a_field_have_no_line_of_it_on_the_screen(capsys):
    full, deaf = (answers(variant, [True, False] * 30, kinds=("ear", "")) for variant in (FULL, DEAF))
    tables.ablation_table({"base": of_ablations({FULL: full, DEAF: deaf})})
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines() if "kind" in line] == [["kind", "ear"]]


def test_labels_take_the_sampled_draws_of_every_variant():
    names = [SAMPLED, *(f"{SAMPLED}-{n}" for n in range(2, 9))]
    full = [p for name in names for p in answers(FULL, [True], name)]
    deaf = [p for name in names for p in answers(DEAF, [False], name)]
    blind = [p for name in names for p in answers(BLIND, [True], name)]
    assert labels({FULL: full, DEAF: deaf, BLIND: blind}) == {"0": Need.audio}
    assert rows({FULL: full, DEAF: deaf}) == [{"id": "0", "need": "undetermined", "full": (8, 8), "no_audio": (0, 8)}]
    heard = [[replace(p, data_type="audio") for p in one] for one in (full, deaf)]
    assert labels(dict(zip((FULL, DEAF), heard, strict=True))) == {"0": Need.audio}
    graded = [[replace(p, problem_type="free-form") for p in one] for one in (full, deaf)]
    assert labels(dict(zip((FULL, DEAF), graded, strict=True))) == {}
    scores = [[replace(p, score=0.75, correct=False) for p in one] for one in graded]
    assert rows({FULL: scores[0]}) == [{"id": "0", "need": None, "full": (6.0, 8)}], "the mean is the pass rate"
    few = [p for name in names[: FEWEST - 1] for p in answers(FULL, [True], name)]
    assert labels({FULL: few}) == {}


def test_one_lucky_count_does_not_show_that_no_sense_is_needed():
    """Nobody knows how often a guess of a count is right."""
    names = [SAMPLED, *(f"{SAMPLED}-{n}" for n in range(2, 9))]

    def need(full, deaf, blind, text, **fields):
        asked = {}
        for variant, right in ((FULL, full), (DEAF, deaf), (BLIND, blind), (TEXT, text)):
            rows = [p for n, name in enumerate(names) for p in answers(variant, [n < right], name)]
            asked[variant] = [replace(p, problem_type="counting", options=(), gold="4", fields=fields) for p in rows]
        assert fields or chance(asked[FULL][0]) == 0
        return labels(asked)["0"]

    assert need(3, 1, 1, 1) is Need.undetermined
    assert need(8, 0, 8, 0) is Need.audio
    assert need(8, 8, 8, 8) is Need.neither, "the text gives it away"
    assert need(3, 3, 3, 3) is Need.neither and need(3, 3, 3, 3, chance="0.25") is Need.undetermined


def test_a_guess_and_the_positions_of_answers():
    (one,) = answers(FULL, [True])
    assert chance(one) == 0.25 and chance(replace(one, gold="A, C")) == pytest.approx(1 / 6)
    twice = replace(one, options=("A. dog", "B. cat", "C. dog"))
    assert chance(replace(twice, gold="A")) == chance(replace(twice, gold="A, B")) == pytest.approx(2 / 3)
    assert chance(replace(one, options=(), problem_type="free-form")) == 0
    assert chance(replace(one, options=(), problem_type="counting", fields={"chance": "0.2"})) == 0.2
    given = [replace(one, id=str(i), gold=g, letters=x) for i, (g, x) in enumerate(zip("AABC", "AAAA", strict=True))]
    found = summarize(given)["positions"]
    assert found["right"] == {"A": 0.5, "B": 0.25, "C": 0.25} and found["given"] == {"A": 1.0}
    assert found["distance"] == 0.5 and found["one_letter"] == 0.5
    twice = [replace(p, options=("A. x", "B. y", "C. x"), gold=p.gold.replace("B", "C")) for p in given]
    found = summarize(twice)["positions"]
    assert found["right"] == {"A": 1.0} and found["distance"] == 0 and found["one_letter"] == 1, "A and C are the same"
    counted = [replace(one, id=f"n{i}", options=(), problem_type="counting", gold="3", letters="") for i in range(4)]
    assert summarize([*given, *counted])["positions"]["one_letter"] == 0.25, "of all questions, as the accuracy is"


def test_where_every_guess_is_right_there_is_no_shortcut():
    both_right = [replace(p, options=("A. x", "B. x"), gold="A") for p in answers(FULL, [True])]
    deaf = [replace(p, options=("A. x", "B. x"), gold="A") for p in answers(DEAF, [True])]
    found = of_ablations({FULL: both_right, DEAF: deaf})["no_audio"]
    assert found["chance"] == 1 and found["shortcut"] is None


def test_a_rows_own_chance_comes_before_that_of_its_letters():
    (one,) = answers(FULL, [True])
    assert chance(replace(one, fields={"chance": "0.5"})) == 0.5


def test_the_greedy_draw_labels_nothing():
    """Three of three sampled draws are too few, and a fourth, greedy one does not make them enough."""
    draws = [*draw_names(3, greedy=False), GREEDY]
    full = [p for name in draws for p in answers(FULL, [True], name)]
    assert labels({FULL: full}) == {}
    assert rows({FULL: full})[0]["full"] == (3, 3)


def test_a_drop_by_kind_counts_samples_that_share_media_once():
    full, deaf = answers(FULL, [True] * 8), answers(DEAF, [False, True] + [False] * 6)
    full, deaf = ([replace(p, cluster=str(int(p.id) // 4)) for p in one] for one in (full, deaf))
    found = of_ablations({FULL: full, DEAF: deaf})["no_audio"]["by"]["kind"]["eye"]
    assert found["n"] == 4
    shared, apart = (paired([1.0, 0, 0, 0], [1.0] * 4, list(of)).p_value for of in ("0011", "abcd"))
    assert found["p_value"] == pytest.approx(shared) != pytest.approx(apart)


def test_the_interval_of_a_shortcut_is_the_accuracys_above_chance():
    found = of_ablations({FULL: answers(FULL, [True] * 8), DEAF: answers(DEAF, [True, False] * 4)})["no_audio"]
    low, high = found["interval"]
    assert found["shortcut"]["interval"] == pytest.approx([(low - 0.25) / 0.75, (high - 0.25) / 0.75])
