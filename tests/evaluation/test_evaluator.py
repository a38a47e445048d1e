"""An evaluation of a run: resumed where it stopped, under each protocol, and the numbers it leaves."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from echoink.common.errors import UserError
from echoink.config.schema import Protocol, Variant
from echoink.data.ablations import make, without
from echoink.data.prefetch import Prefetcher
from echoink.evaluation.evaluate import EvaluationSetup, evaluate, of_phase
from echoink.evaluation.evaluator import Evaluator
from echoink.evaluation.metrics import compare, flips
from echoink.evaluation.prediction import BASE, FINAL, GREEDY, SAMPLED, number_of, of_row, rejudged
from echoink.models.loading import end_ids
from echoink.pipeline.execute import conclude
from echoink.rewards.terms import ExtraReward
from echoink.rewards.types import Match
from echoink.rollout.generate import generate
from echoink.rollout.sampling import Sampling, uniforms
from echoink.run_folder.folder import RunFolder
from echoink.tracking.client import Record
from echoink.tracking.logger import Tracker
from tests.evaluation.test_evaluate import made
from tests.helpers.configs import config_of

CONFIG = config_of()


@pytest.fixture
def make_evaluator(model, processor, tmp_path):
    def make(folder=None, **settings):
        sampling = Sampling(1.0, 0.95, 50, 48, end_ids(model, processor.processor))
        return Evaluator(
            replace(CONFIG.eval, **{"cache": None, **settings}),
            EvaluationSetup(processor, sampling, Match.lenient, seed=0, batch_prompts=4),
            clusters={},
            dev_clusters={},
            data="data",
            files=RunFolder(folder or tmp_path / "run", "eval", "x", 0),
            tracker=Tracker(None, Record("x", "x", {}, {}), tmp_path),
        )

    return make


def lines(evaluator):
    return evaluator.files.read("predictions.jsonl")


def test_answers_that_cannot_be_read_are_warned_of(make_evaluator, model, samples, capsys):
    evaluator = make_evaluator(greedy=False)
    evaluator.phase(model, samples[:4], FINAL, 0)
    assert "hardly any answer" not in capsys.readouterr().out
    setup = replace(evaluator.setup, sampling=Sampling(1.0, 0.95, 50, 2))
    cut = replace(evaluator, setup=setup, files=RunFolder(evaluator.files.path / "cut", "e", "x", 0))
    cut.phase(model, samples[:4], FINAL, 0)
    assert "hardly any answer can be read" in " ".join(capsys.readouterr().out.split())


def test_an_evaluation_that_was_killed_goes_on_and_each_answer_stands_once(make_evaluator, model, samples, tmp_path):
    whole = make_evaluator(tmp_path / "whole")
    wanted = whole.phase(model, samples[:10], FINAL, 0)
    for kept in (1, 8, 19):
        cut = make_evaluator(tmp_path / f"cut-{kept}")
        cut.files.append("predictions.jsonl", lines(whole)[:kept])
        assert cut.phase(model, samples[:10], FINAL, 0) == wanted
        key = lambda row: (row["id"], row["draw"])  # noqa: E731
        assert sorted(lines(cut), key=key) == sorted(lines(whole), key=key) and len(lines(cut)) == 20
        assert cut.files.summary[FINAL] == whole.files.summary[FINAL]


def test_answered_samples_are_not_answered_again(make_evaluator, model, samples, monkeypatch):
    evaluator = make_evaluator()
    evaluator.phase(model, samples[:5], FINAL, 0)

    def never(*_, **__):
        raise AssertionError("generated again")

    monkeypatch.setattr("echoink.evaluation.evaluate.generate", never)
    assert len(evaluator.phase(model, samples[:5], FINAL, 0)) == 10


def test_more_draws_keep_the_answers_that_are_there_and_are_those_of_a_fresh_evaluation(
    make_evaluator, model, samples, tmp_path, monkeypatch
):
    wanted = make_evaluator(tmp_path / "fresh", samples=3).phase(model, samples[:10], FINAL, 0)
    asked = []

    def counting(model, prompts, noise, **words):
        asked.append(noise.shape[:2])
        return generate(model, prompts, noise, **words)

    monkeypatch.setattr("echoink.evaluation.evaluate.generate", counting)
    once = make_evaluator(greedy=False, samples=2)
    once.phase(model, samples[:10], FINAL, 0)
    before, asked[:] = lines(once), []
    killed = make_evaluator(samples=3)
    killed.files.write_rows("predictions.jsonl", before)
    assert killed.phase(model, samples[:10], FINAL, 0) == wanted
    assert asked == [(4, 2), (4, 2), (2, 2)], "the third and the greedy draw alone"
    assert lines(killed)[: len(before)] == before
    # Killed between two rounds of the new draws: these alone are asked again.
    killed.files.write_rows("predictions.jsonl", lines(killed)[: len(before) + 9])
    asked[:] = []
    assert killed.phase(model, samples[:10], FINAL, 0) == wanted
    assert asked == [(4, 2), (2, 2)] and len(lines(killed)) == 40


def test_what_each_protocol_asks_draws_and_reads(make_evaluator):
    setup, direct = replace(make_evaluator().setup, match=Match.exact), CONFIG.eval.direct
    prompt = setup.processor.prompt

    def of(protocol, phase):
        return of_phase(setup, replace(CONFIG.eval, protocol=protocol), phase)

    base, final = of(Protocol.matched, "base"), of(Protocol.matched, "final")
    assert base == final == setup and base.draws == (SAMPLED, GREEDY)
    for protocol, drawn in ((Protocol.release, SAMPLED), (Protocol.may19, GREEDY)):
        base, final = of(protocol, "base"), of(protocol, "final")
        assert (base.draws, final.draws) == ((drawn,), (SAMPLED,))
        asked = [one.processor.prompt for one in (base, final)]
        assert [one.template for one in asked] == [direct.template, prompt.template]
        assert {one.options for one in asked} == {"{options}"}, "no heading before the options"
        assert base.match is final.match is Match.first_letter


def test_the_public_protocols_run(make_evaluator, model, samples):
    evaluator = make_evaluator(protocol=Protocol.may19)
    base, final = (evaluator.phase(model, samples[:4], phase, 0) for phase in ("base", "final"))
    assert {p.draw for p in base} == {GREEDY} and {p.draw for p in final} == {SAMPLED}
    assert not base[0].thinks and final[0].thinks and base[0].prompt != final[0].prompt
    conclude(evaluator.files, base, final)
    assert evaluator.files.summary["paired"]["test"] == "McNemar"
    assert evaluator.files.summary["base"]["draw"] == GREEDY


def test_a_gain_says_how_many_draws_it_is_the_mean_of_where_the_base_has_one(make_evaluator, model, samples, capsys):
    evaluator = make_evaluator(protocol=Protocol.may19, samples=3)
    base, final = (evaluator.phase(model, samples[:4], phase, 0) for phase in ("base", "final"))
    conclude(evaluator.files, base, final)
    assert evaluator.files.summary["base"]["samples"] is None and evaluator.files.summary["paired"]["draws"] == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "points (mean of 3 draws)" in shown and "mean of 3 draws – " in shown, "the base has no such row"


def test_the_development_split_is_asked_with_the_training_prompt(make_evaluator, model, samples):
    evaluator = make_evaluator(protocol=Protocol.release, dev_samples=3)
    metrics = evaluator.development(model, samples[:4], 7)
    rows = lines(evaluator)
    assert {row["phase"] for row in rows} == {"step-7"} and len(rows) == 12 and all(row["thinks"] for row in rows)
    assert metrics["dev/accuracy"] == pytest.approx(sum(row["score"] for row in rows) / 12)
    best = {row["id"] for row in rows if row["correct"]}
    assert metrics["dev/pass_at_k"] == pytest.approx(len(best) / 4)


def test_flips_and_comparisons_by_hand(tmp_path):
    base = [made("1", True), made("2", False), made("3", False)]
    final = [made("1", False), made("2", True), made("3", False)]
    found = flips(base, final)
    assert [(row["id"], row["direction"]) for row in found] == [("1", "lost"), ("2", "gained")]
    files = RunFolder(tmp_path / "run", "eval", "x", 0)
    from echoink.evaluation.metrics import summarize

    files.summary |= {"base": summarize(base), "final": summarize(final)}
    conclude(files, base, final)
    conclude(files, base, final)  # taken up again
    assert [row["id"] for row in files.read("flips.jsonl")] == ["1", "2"]
    several = [replace(made("1", correct), draw=draw) for draw, correct in ((SAMPLED, True), ("sampled-2", False))]
    assert compare(several, [made("1", True), replace(made("1", True), draw="sampled-2")]).difference == 0.5


def test_graded_scores_get_an_interval_of_their_spread():
    from echoink.evaluation.metrics import summarize

    graded = [replace(made(str(n), False), score=n / 10, problem_type="regression") for n in range(11)]
    found = summarize(graded)
    assert found["accuracy"] == pytest.approx(0.5) and 0.25 < found["interval"][0] < 0.5 < found["interval"][1] < 0.75


def test_a_stored_answer_is_judged_again_as_the_model_would_be(make_evaluator, model, samples):
    evaluator = make_evaluator()
    predictions = evaluator.phase(model, samples[:6], FINAL, 0)
    stored = [of_row(row) for row in lines(evaluator)]
    assert stored == predictions == [rejudged(p, Match.lenient, []) for p in stored]
    text = replace(stored[0], completion="<think>x</think><answer>(b)</answer>", gold="B")
    assert rejudged(text, Match.lenient, []).correct and not rejudged(text, Match.exact, []).correct
    options = ExtraReward("custom", lambda completion, sample: float(len(sample.options)), 1)
    assert rejudged(text, Match.lenient, [options]).custom == len(text.options)
    json.dumps(asdict(text))


def test_the_same_base_is_answered_once_whoever_asks(make_evaluator, model, samples, tmp_path, monkeypatch):
    kept = {"cache": str(tmp_path / "cache")}
    first = make_evaluator(tmp_path / "first", **kept)
    wanted = first.phase(model, samples[:4], BASE, 0)
    (file,) = (tmp_path / "cache").iterdir()
    second = make_evaluator(tmp_path / "second", **kept)
    by_length = [ExtraReward("custom", lambda text, sample: float(len(text)), 1)]
    clusters = {sample.id: "one" for sample in samples}
    second = replace(second, setup=replace(second.setup, extra_rewards=by_length), clusters=clusters)
    with monkeypatch.context() as patch:
        patch.setattr("echoink.evaluation.evaluate.generate", lambda *_: pytest.fail("answered again"))
        taken = second.phase(model, samples[:4], BASE, 0)
    assert [replace(p, custom=None, cluster=p.id) for p in taken] == wanted
    assert [p.custom for p in taken] == [float(len(p.completion)) for p in taken], "judged as this run judges"
    assert {p.cluster for p in taken} == {"one"} and lines(second) == [json.loads(json.dumps(asdict(p))) for p in taken]
    make_evaluator(tmp_path / "third", **kept).phase(model, samples[:4], FINAL, 0)
    assert list((tmp_path / "cache").iterdir()) == [file], "only the base's answers are kept"


@pytest.mark.parametrize("change", ["weights", "settings", "attention", "seed", "data", "sampling", "prompt"])
def test_another_base_is_answered_anew(make_evaluator, model, samples, tmp_path, change):
    kept = {"cache": str(tmp_path / "cache")}
    make_evaluator(tmp_path / "first", greedy=False, **kept).phase(model, samples[:2], BASE, 0)
    other = make_evaluator(tmp_path / "second", greedy=False, **kept)
    if change == "weights":
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1e-3
    elif change == "settings":
        model.config.text_config.rms_norm_eps *= 2
    elif change == "attention":
        model.config._attn_implementation = "eager"
    elif change == "prompt":
        direct = replace(other.setup.processor, prompt=other.config.direct)
        other = replace(other, setup=replace(other.setup, processor=direct))
    elif change == "data":
        other = replace(other, data="other")
    else:
        value = {"seed": 1, "sampling": replace(other.setup.sampling, temperature=0.5)}[change]
        other = replace(other, setup=replace(other.setup, **{change: value}))
    other.phase(model, samples[:2], BASE, 0)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_noise_of_the_development_split_is_its_own(make_evaluator, model, samples):
    """So a development accuracy says nothing of the draws of the validation split, even of the same samples."""
    evaluator = make_evaluator(greedy=False)
    answers = [answer.completion for answer in evaluator.phase(model, samples[:4], FINAL, 0)]
    evaluator.development(model, samples[:4], 0)
    assert [row["completion"] for row in lines(evaluator) if row["phase"] == "step-0"] != answers


def test_an_engine_draws_anew_for_every_draw_of_a_swap(make_evaluator, model, samples):
    seeds = []

    class Engine:
        def generate(self, prompts, given, group, greedy=False, rests=True):
            seeds.append((*given,))
            return [[5, 6] for _ in given for _ in range(group)], None

    sampled = replace(make_evaluator().setup, draws=(SAMPLED,))
    for first in (0, 1, 0):
        [*evaluate(model, samples[:3], sampled, FINAL, first_draw=first, engine=Engine())]
    assert len({*seeds[0], *seeds[1]}) == 6 and seeds[0] == seeds[2]


def test_watched_samples_are_answered_with_the_same_noise(make_evaluator, model, samples):
    evaluator = make_evaluator(watched=2)
    for step in (0, 10):
        evaluator.watch(model, samples, step)
    rows = evaluator.files.read("watched.jsonl")
    assert [(row["step"], row["id"]) for row in rows] == [(s, sample.id) for s in (0, 10) for sample in samples[:2]]
    assert [row["completion"] for row in rows[:2]] == [row["completion"] for row in rows[2:]]
    assert rows[0]["media"]["image"] == str(samples[0].image)


def test_ablations_are_answered_told_and_resumed(make_evaluator, model, samples, tmp_path):
    chosen = [Variant.full, Variant.no_audio, Variant.swapped_image]
    whole = make_evaluator(tmp_path / "whole", ablations=chosen, samples=4, greedy=False)
    whole.phase(model, samples[:4], FINAL, 3)
    found = whole.files.summary[FINAL]["ablations"]
    assert [name for name in found if name != "needs"] == ["no_audio", "swapped_image"]
    assert found["no_audio"]["n"] == 4 and sum(found["needs"].values()) == 4
    rows = lines(whole)
    assert {row["variant"] for row in rows} == {"full", "no_audio", "swapped_image"}
    (logged,) = whole.files.read("eval.jsonl")
    assert logged["eval/no_audio/accuracy"] == found["no_audio"]["accuracy"]
    assert logged["eval/no_audio/drop"] == found["no_audio"]["drop"]["difference"]
    needs = whole.files.read("needs-final.jsonl")
    assert len(needs) == 4 and needs[0]["full"][1] == needs[0]["no_audio"][1] == 4
    for kept in (3, 21):  # in the middle of full, in the middle of a variant
        cut = make_evaluator(tmp_path / f"cut{kept}", ablations=chosen, samples=4, greedy=False)
        cut.files.append("predictions.jsonl", rows[:kept])
        cut.phase(model, samples[:4], FINAL, 3)
        key = lambda row: (row["variant"], row["id"], row["draw"])  # noqa: E731
        assert sorted(lines(cut), key=key) == sorted(rows, key=key)
        assert cut.files.summary[FINAL] == whole.files.summary[FINAL]


def test_a_variant_has_the_noise_and_options_of_the_full_prompt(make_evaluator, model, samples):
    text = [without(sample, Variant.text_only) for sample in samples[:4]]
    evaluator = make_evaluator(ablations=[Variant.text_only], greedy=False)
    evaluator.phase(model, samples[:4], FINAL, 0)
    alone = make_evaluator(evaluator.files.path.with_name("alone"), greedy=False)
    alone.phase(model, text, FINAL, 0)
    ours = [row["completion"] for row in lines(evaluator) if row["variant"] == "text_only"]
    assert ours == [row["completion"] for row in lines(alone)]


def test_every_draw_of_a_swap_has_a_donor_and_the_noise_of_its_own(make_evaluator, model, samples):
    samples = samples[:9]
    evaluator = make_evaluator(ablations=[Variant.swapped_audio], samples=3, greedy=False)
    evaluator.phase(model, samples, FINAL, 0)
    rows = [row for row in lines(evaluator) if row["variant"] == "swapped_audio"]
    heard = {}
    for row in rows:
        heard.setdefault(row["id"], []).append(row["media"]["audio"])
    assert all(len(places) == 3 for places in heard.values()) and any(len({*places}) > 1 for places in heard.values())
    for number, draw in enumerate(("sampled", "sampled-2", "sampled-3")):
        alone = make(samples, Variant.swapped_audio, evaluator.setup.seed + number_of(draw))
        noise = [uniforms(0, 0, f"eval valid {sample.id}", group_size=3, length=48)[number] for sample in alone]
        found = evaluate_alone(model, evaluator, alone, noise)
        assert found == [row["completion"] for row in rows if row["draw"] == draw]


def test_the_donors_of_a_draw_do_not_depend_on_how_many_draws_there_are(make_evaluator, model, samples, tmp_path):
    """So that more draws can be added to an evaluation (`eval.samples`, allowed on resuming)."""
    heard = []
    for draws in (1, 3):
        evaluator = make_evaluator(tmp_path / str(draws), ablations=[Variant.swapped_audio], samples=draws)
        evaluator.phase(model, samples[:9], FINAL, 0)
        rows = [row for row in lines(evaluator) if row["variant"] == "swapped_audio"]
        heard.append({(row["id"], row["draw"]): row["media"]["audio"] for row in rows})
    few, many = heard
    assert {draw for _, draw in few} == {"sampled", "greedy"} and few.items() <= many.items()


def evaluate_alone(model, evaluator, samples, noise):
    setup, omni = evaluator.setup, evaluator.setup.processor.processor
    prompts = [setup.processor(sample) for sample in samples]
    made = generate(model, prompts, torch.stack(noise)[:, None], temperatures=[1.0], sampling=setup.sampling)
    return omni.batch_decode(made, skip_special_tokens=True)


def test_a_bases_ablations_are_kept_for_other_runs(make_evaluator, model, samples, tmp_path, monkeypatch):
    one = make_evaluator(tmp_path / "one", ablations=[Variant.no_image], cache=str(tmp_path / "cache"))
    one.phase(model, samples[:4], BASE, 0)
    assert len(list((tmp_path / "cache").glob("base-*.jsonl"))) == 2

    def never(*_, **__):
        raise AssertionError("generated again")

    monkeypatch.setattr("echoink.evaluation.evaluate.generate", never)
    two = make_evaluator(tmp_path / "two", ablations=[Variant.no_image], cache=str(tmp_path / "cache"))
    two.phase(model, samples[:4], BASE, 0)
    assert two.files.summary[BASE]["ablations"] == one.files.summary[BASE]["ablations"]


@pytest.mark.parametrize("change", ["weights", "data"])
def test_answers_of_another_model_or_to_other_questions_are_not_gone_on_with(make_evaluator, model, samples, change):
    evaluator = make_evaluator(greedy=False)
    evaluator.phase(model, samples[:2], FINAL, 0)
    if change == "weights":
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1e-3
    else:
        evaluator = replace(evaluator, data="other")
    before = lines(evaluator)
    with pytest.raises(UserError, match=rf"has answers \(final\) of other {change} than there are now"):
        evaluator.phase(model, samples[:2], FINAL, 0)
    assert lines(evaluator) == before


def test_answers_on_disk_are_judged_as_this_run_judges(make_evaluator, model, samples, capsys):
    evaluator = make_evaluator(greedy=False)
    before = evaluator.phase(model, samples[:3], FINAL, 0)
    own = [ExtraReward("custom", lambda text, sample: len(text) + 1000 * (sample.audio is not None), 1)]
    other = replace(evaluator, setup=replace(evaluator.setup, extra_rewards=own))
    after = other.phase(model, samples[:3], FINAL, 0)
    assert [p.completion for p in after] == [p.completion for p in before]
    assert [p.custom for p in after] == [len(p.completion) + 1000 for p in after] == [r["custom"] for r in lines(other)]
    assert "3 answers on disk are judged differently now" in capsys.readouterr().out
    assert other.files.summary[FINAL]["custom"] == sum(p.custom for p in after) / 3
    assert len(other.files.read("eval.jsonl")) == 1


def test_an_evaluation_that_is_repeated_in_another_way_has_its_new_numbers_and_the_final_ones_come_last(
    make_evaluator, model, samples
):
    once = make_evaluator(greedy=False, samples=1)
    for phase in (BASE, FINAL):
        once.phase(model, samples[:3], phase, 0)
    before = once.files.read("eval.jsonl")
    for phase in (BASE, FINAL):
        once.phase(model, samples[:3], phase, 0)
    assert once.files.read("eval.jsonl") == before
    # More draws, which changes no answer that is there: the base's row is written anew, and so is the final one.
    more = make_evaluator(greedy=False, samples=2)
    for phase in (BASE, FINAL):
        more.phase(model, samples[:3], phase, 0)
    after = more.files.read("eval.jsonl")
    assert [row["phase"] for row in after] == [BASE, FINAL]
    assert all("eval/pass_at_k" in row for row in after) and not any("eval/pass_at_k" in row for row in before)
    assert after[0]["timestamp"] <= after[1]["timestamp"]
    # Only the base's numbers are others than before: its row is still the first one.
    more.files.write_rows("eval.jsonl", [after[0] | {"eval/accuracy": -1.0}, after[1]])
    for phase in (BASE, FINAL):
        more.phase(model, samples[:3], phase, 0)
    again = more.files.read("eval.jsonl")
    assert [row["phase"] for row in again] == [BASE, FINAL] and again[0]["eval/accuracy"] >= 0


def test_a_reward_is_called_once_for_each_answer_of_a_fresh_evaluation(make_evaluator, model, samples, capsys):
    """Also in swaps, whose draws are asked one after the other."""
    calls = []
    own = [ExtraReward("custom", lambda text, sample: float(len(calls.append(text) or calls)), 1)]
    evaluator = make_evaluator(greedy=False, samples=3, ablations=[Variant.full, Variant.swapped_audio])
    evaluator = replace(evaluator, setup=replace(evaluator.setup, extra_rewards=own))
    evaluator.phase(model, samples[:4], FINAL, 0)
    assert len(lines(evaluator)) == len(calls) > 4 * 3
    assert "judged differently" not in capsys.readouterr().out


def test_videos_of_the_next_round_are_asked_for_while_this_one_is_answered(make_evaluator, model, samples, monkeypatch):
    asked, closed = [], []
    monkeypatch.setattr(Prefetcher, "ask", lambda self, following: asked.append([s.id for s in following]))
    monkeypatch.setattr(Prefetcher, "close", lambda self: closed.append(self))
    make_evaluator(greedy=False).phase(model, samples[:10], FINAL, 0)
    ids = [s.id for s in samples[:10]]
    assert asked == [ids[4:8], ids[8:10], []] and len(closed) == 1, "rounds of four, one pool of threads"


def test_a_cache_that_cannot_be_written_costs_no_answers(make_evaluator, model, samples, tmp_path, capsys):
    (tmp_path / "file").touch()
    evaluator = make_evaluator(cache=str(tmp_path / "file/cache"), greedy=False)
    assert len(evaluator.phase(model, samples[:2], BASE, 0)) == 2
    assert "the base's answers are not kept for other runs" in " ".join(capsys.readouterr().out.split())
