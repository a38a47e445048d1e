"""Evaluation: the training reward's own judgement, the same for any batch, with its summary."""

import json
from dataclasses import asdict, replace

import pytest

from echoink.common.statistics import mean_interval, wilson
from echoink.evaluation.evaluate import EvaluationSetup, evaluate, noise_of
from echoink.evaluation.metrics import compare, summarize
from echoink.evaluation.prediction import GREEDY, SAMPLED, Prediction, draw_names
from echoink.models.loading import end_ids
from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.format import format_reward
from echoink.rewards.types import Match
from echoink.rollout.sampling import Sampling, uniforms

SAMPLING = Sampling(1.0, 0.95, 50, 64)


def answers(model, processor, samples, batch=8, seed=0, draws=(SAMPLED, GREEDY), match=Match.lenient):
    sampling = replace(SAMPLING, end_ids=end_ids(model, processor.processor))
    setup = EvaluationSetup(processor, sampling, match=match, seed=seed, batch_prompts=batch, draws=draws)
    return list(evaluate(model, samples, setup, "base"))


def test_a_prediction_is_judged_by_the_rewards(model, processor, samples):
    found = answers(model, processor, samples[:6])
    assert [(p.id, p.draw) for p in found] == [(s.id, draw) for s in samples[:6] for draw in (SAMPLED, GREEDY)]
    for prediction in found:
        sample = samples[int(prediction.id)]
        assert prediction.correct == accuracy_reward(
            prediction.completion, sample.problem_type, sample.options, sample.solution
        )
        assert prediction.format == format_reward(prediction.completion)
        assert prediction.gold == sample.solution
        assert prediction.fields == sample.fields
        json.dumps(asdict(prediction))


def test_any_batch_size_gives_the_same_answers(model, processor, samples):
    assert answers(model, processor, samples[:7], batch=7) == answers(model, processor, samples[:7], batch=2)


def test_the_sampled_draw_is_keyed_by_seed_and_the_greedy_one_is_not(model, processor, samples):
    one, two = (answers(model, processor, samples[:8], seed=seed) for seed in (0, 1))
    greedy = [[p.completion for p in found if p.draw == GREEDY] for found in (one, two)]
    sampled = [[p.completion for p in found if p.draw == SAMPLED] for found in (one, two)]
    assert greedy[0] == greedy[1] and sampled[0] != sampled[1]


def test_noise_is_that_of_no_rollout_and_of_no_other_split(processor, samples):
    valid = EvaluationSetup(processor, SAMPLING, match=Match.lenient, seed=0, batch_prompts=8)
    drawn = [noise_of(valid, samples[0], 2), noise_of(replace(valid, split="dev"), samples[0], 2)]
    drawn.append(
        uniforms(0, 0, samples[0].id, group_size=2, length=SAMPLING.max_new_tokens)
    )  # the first step of training
    values = [set(noise.flatten().tolist()) for noise in drawn]
    assert not values[0] & values[1] and not values[0] & values[2] and not values[1] & values[2]


def test_a_truncated_completion_says_so(model, processor, samples):
    short = replace(SAMPLING, max_new_tokens=3, end_ids=end_ids(model, processor.processor))
    found = list(
        evaluate(
            model,
            samples[:2],
            EvaluationSetup(processor, short, match=Match.lenient, seed=0, batch_prompts=2),
            "base",
        )
    )
    assert all(p.truncated and p.tokens == 3 for p in found)


def made(id, correct, draw=SAMPLED, format=True, letters="A", kind="ear", tokens=10):
    return Prediction(
        phase="base",
        variant="full",
        id=id,
        draw=draw,
        prompt="",
        problem="What?",
        options=("A. 1", "B. 2", "C. 3"),
        problem_type="multiple choice",
        data_type="image_audio",
        thinks=True,
        completion="",
        answer=letters or None,
        letters=letters,
        gold="A",
        score=float(correct),
        correct=correct,
        format=format,
        custom=None,
        tokens=tokens,
        truncated=False,
        cluster=id,
        fields={"kind": kind, "data_source": "one"},
    )


def test_summary_by_hand():
    rows = [
        made("1", True, kind="ear", tokens=10),
        made("2", False, kind="ear", format=False, letters="", tokens=20),
        made("3", True, kind="eye", tokens=30),
        made("4", False, kind="eye", letters="B", tokens=40),
        *(made(id, correct, GREEDY) for id, correct in (("1", True), ("2", True), ("3", True), ("4", False))),
    ]
    found = summarize(rows)
    assert (found["accuracy"], found["n"], found["format"], found["parse_failures"]) == (0.5, 4, 0.75, 0.25)
    assert found["accuracy_where_formatted"] == pytest.approx(2 / 3)
    assert (found["mean_tokens"], found["greedy_accuracy"]) == (25, 0.75)
    assert found["interval"] == pytest.approx([0.1500, 0.8500], abs=1e-4)
    assert set(found["by"]) == {"kind"}, "a field with one value tells nothing"
    assert found["by"]["kind"]["eye"]["accuracy"] == 0.5 and found["by"]["kind"]["eye"]["n"] == 2
    named = [
        replace(row, fields={**row.fields, "data_source": row.id, "audio_source": f"{row.id}.mp4"}) for row in rows
    ]
    assert set(summarize(named)["by"]) == {"kind", "data_source"}, "what media were cut from groups, and is no label"


def test_summary_without_greedy_and_without_any_format():
    found = summarize([made("1", False, format=False), made("2", False, format=False)])
    assert found["greedy_accuracy"] is None and found["accuracy_where_formatted"] is None


def test_several_draws_by_hand():
    def drawn(id, *letters):
        names = draw_names(len(letters), greedy=False)
        return [made(id, letter == "A", name, letters=letter) for name, letter in zip(names, letters, strict=True)]

    rows = drawn("1", "A", "B", "A") + drawn("2", "B", "B", "A") + drawn("3", "", "", "A") + drawn("4", "B", "A", "C")
    found = summarize(rows)
    interval = found["samples"].pop("interval")
    assert found["samples"] == {"k": 3, "mean": pytest.approx(5 / 12), "majority": 0.5, "pass": 1.0}
    assert interval[0] < 5 / 12 < interval[1]
    assert found["accuracy"] == 0.25, "of the first draw"
    assert summarize(drawn("1", "A"))["samples"] is None


def test_more_draws_leave_the_first_as_it_is(model, processor, samples):
    few = answers(model, processor, samples[:4], draws=draw_names(1, True))
    many = answers(model, processor, samples[:4], draws=draw_names(3, True))
    assert [p for p in many if p.draw in (SAMPLED, GREEDY)] == few
    assert len({p.completion for p in many}) > len({p.completion for p in few})


def test_compare_pairs_by_sample_whatever_the_order():
    base = [made("1", False), made("2", True), made("3", False), made("1", True, GREEDY)]
    final = [made("3", True), made("1", True), made("2", False), made("1", False, GREEDY)]
    assert (compare(base, final, SAMPLED).gained, compare(base, final, SAMPLED).lost) == (2, 1)
    assert (compare(base, final, GREEDY).gained, compare(base, final, GREEDY).lost) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("counting", ("7", "7.0", "7 knocks", "8", "8")),
        ("counting", ("14/2", "7", "21/3", "8", "8")),
        ("numerical", ("3.141", "3.144", "3.14", "2", "2")),
        ("regression", ("$3", "3", "3.0", "3.001", "3.001")),
        ("temporal retrieval", ("0:05-0:10", "5 to 10", "[5, 10]", "1 to 2", "1 to 2")),
        ("OCR", ("Stop  now", "Stop now", "Stop now", "stop now", "stop now")),
        ("free-form", ("A dog", "a dog", "A dog.", "cat", "cat")),
        ("multiple choice", ("A", "C", "A", "B", "B")),  # A and C have one text
    ],
)
def test_a_majority_counts_answers_that_say_the_same(kind, answers):
    names = draw_names(len(answers), greedy=False)
    rows = [
        replace(made("1", place < 3, name, letters=text), problem_type=kind, options=("A. 1", "B. 2", "C. 1"))
        for place, (name, text) in enumerate(zip(names, answers, strict=True))
    ]
    assert summarize(rows)["samples"]["majority"] == 1


def test_a_comparison_of_means_leaves_the_greedy_draw_out():
    base = [made("1", True), made("1", False, "sampled-2"), made("1", True, GREEDY)]
    final = [made("1", True), made("1", True, "sampled-2"), made("1", False, GREEDY)]
    assert compare(base, final).difference == 0.5


def test_samples_that_share_media_are_one_cluster_in_each_number():
    """Two clusters of two samples with two draws each."""
    rows = [
        replace(made(id, id in "12", name), cluster="x" if id in "12" else "y")
        for id in "1234"
        for name in draw_names(2, greedy=False)
    ]
    clustered = list(mean_interval([1.0, 1.0, 0.0, 0.0], ["x", "x", "y", "y"]))
    assert (
        summarize(rows)["samples"]["interval"] == clustered != list(mean_interval([1.0, 1.0, 0.0, 0.0], list("1234")))
    )
    found = compare(rows, [replace(row, score=1 - row.score, correct=not row.correct) for row in rows])
    assert (found.test, found.clusters) == ("clustered t", 2)


def test_doubt_of_the_greedy_draw_is_not_compared_with_that_of_sampled_ones(monkeypatch):
    from echoink.evaluation import metrics

    seen = []
    monkeypatch.setattr(metrics.reflection, "effect", lambda groups, clusters: seen.extend(groups))
    summarize([made("1", True), made("1", False, "sampled-2"), made("1", True, GREEDY)])
    assert [len(group) for group in seen] == [2]


def test_the_greedy_draw_has_numbers_of_its_own_and_is_none_of_the_sampled_ones():
    rows_ = [made(id, id == "1") for id in "1234"] + [made(id, id != "4", GREEDY) for id in "1234"]
    found = summarize(rows_)
    assert found["samples"] is None, "one sampled draw"
    assert found["greedy_interval"] == list(wilson(3, 4)) != found["interval"] == list(wilson(1, 4))
