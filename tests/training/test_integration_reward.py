"""The rules of integration on numbers, and in a step of training."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from echoink.common.errors import UserError
from echoink.config.compose import compose
from echoink.config.schema import Variant
from echoink.data import synthetic
from echoink.data.ablations import SENSES, has_both, without
from echoink.data.samples import DataType
from echoink.pipeline.run import run as execute
from echoink.rewards import integration
from echoink.rewards.accuracy import has_answer
from echoink.rewards.integration import counterfactual, gain, needs_both, omnivideo_r1, padded, video_r1
from echoink.rewards.terms import accuracy_of
from echoink.rewards.types import Match, ProblemType, Rule
from echoink.rollout.generate import generate
from echoink.rollout.sampling import Sampling, uniforms
from echoink.training import integration_reward
from echoink.training import trainer as of_trainer
from tests.helpers.configs import config_of
from tests.helpers.entry import SMALL
from tests.helpers.processes import run
from tests.helpers.trainers import G, weights

OPTIONS = ("A. cat", "B. bell")


def test_the_gain_is_the_smaller_of_two_means_over_a_completions_tokens():
    full = torch.tensor([[-1.0, -1.0, -9.0], [-2.0, -2.0, -2.0]])
    deaf = torch.tensor([[-3.0, -1.0, 0.0], [-2.0, -2.0, -2.0]])
    blind = torch.tensor([[-1.0, -1.5, 0.0], [-5.0, -2.0, -2.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    assert gain(full, torch.stack([deaf, blind]), mask).tolist() == [0.25, 0.0]


def test_the_counterfactual_reward_pays_right_completions_by_their_gain():
    gains = torch.tensor([0.0, -1.0, 0.2, 0.2, 50.0])
    right = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    assert counterfactual(right, gains, 0.2).tolist() == pytest.approx([0, 0, 1 - math.exp(-1), 0, 1])


def test_a_group_needs_both_where_it_beats_the_better_of_two_by_more_than_noise():
    right = torch.tensor([1.0] * 8 + [1.0] * 6 + [0.0] * 2 + [0.0] * 8)
    deaf = torch.tensor([1.0] * 3 + [0.0] * 5 + [1.0] * 3 + [0.9] * 5 + [0.0] * 8)
    blind = torch.tensor([1.0] * 4 + [0.0] * 4 + [0.0] * 8 + [0.0] * 8)
    # 8 against 4 of 8: p = 0.038; 6 against 3: p = 0.16; 0 against 0
    assert needs_both(right, torch.stack([deaf, blind]), 8).tolist() == [True, False, False]


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
def test_need_seldom_fires_where_the_senses_are_not_needed_and_a_bare_comparison_often_does(rate):
    rng = np.random.default_rng(0)
    draws = torch.tensor(rng.binomial(1, rate, size=(3, 4000 * 8)), dtype=torch.float)
    fires = needs_both(draws[0], draws[1:], 8).float().mean()
    bare = (draws.view(3, -1, 8).sum(2)[0] > draws.view(3, -1, 8).sum(2)[1:].amax(0)).float().mean()
    assert fires < 0.02 and bare > 0.15


def test_the_published_rules_by_hand():
    right = torch.tensor([1.0, 0, 1, 0])
    deaf = torch.tensor([1.0, 0, 0, 1])
    blind = torch.tensor([1.0, 0, 0, 0])
    both = torch.stack([deaf, blind])
    # it pays the second, which is wrong as its counterparts are, and the first, of which one sense suffices
    assert omnivideo_r1(right, both, 4).tolist() == [1, 1, 1, 0]
    assert video_r1(right, both, 4).tolist() == [1, 0, 1, 0]
    assert video_r1(right, torch.ones(2, 4), 4).tolist() == [0, 0, 0, 0]


def test_a_bonus_that_is_the_same_for_every_right_completion_does_nothing_after_eq_1():
    right = torch.tensor([1.0, 1, 0, 0, 0, 1, 0, 0])

    def advantages(rewards):
        return (rewards - rewards.mean()) / (rewards.std() + 1e-4)

    assert advantages(right + 0.3 * right).tolist() == pytest.approx(advantages(right).tolist(), abs=1e-3)


def test_a_twin_pays_right_answers_that_change_with_just_the_senses_that_are_needed():
    right = torch.tensor([1.0, 1, 1, 1, 1, 0, 1])
    twins = torch.tensor([[0.0, 0, 1, 0, 0, 0, 1], [0.0, 1, 0, 1, 0, 0, 1]])
    readable = torch.tensor([[True] * 4 + [False] + [True] * 2, [True] * 7])
    both = torch.ones(2, 7, dtype=torch.bool)
    # only the first is right and changes with both in a readable way
    assert integration.twin(right, twins, readable, both).tolist() == [1, 0, 0, 0, 0, 0, 0]
    # a question for the ear pays what changes with the sound and stays with the picture
    ear = both & torch.tensor([[True], [False]])
    assert integration.twin(right, twins, readable, ear).tolist() == [0, 1, 0, 1, 0, 0, 0]
    # two thirds of an answer are neither right nor changed
    assert integration.twin(right, twins * 0.6 + 0.2, readable, both).tolist() == [0] * 7


def test_the_rewards_twins_are_the_answers_to_changed_prompts_with_the_noise_of_the_rollout(make_trainer, samples):
    labelled = [replace(s, fields=s.fields | {"need": synthetic.NEEDS[s.fields["kind"]]}) for s in samples]
    trainer = make_trainer("trainer.steps=1", rule=Rule.twin, rule_weight=1.0, chosen=labelled)
    reward = trainer._integration
    chosen = [s for s in labelled if all(s.id in twins for twins in reward._twins)][:2]
    trainer._generate_and_score_completions([{"prompt": s.id} for s in chosen for _ in range(G)])
    noise = torch.stack(
        [uniforms(trainer.args.seed, 0, s.id, group_size=G, length=trainer.max_completion_length) for s in chosen]
    )
    how = trainer.temperature, trainer.top_p, trainer.top_k, trainer.max_completion_length
    sampling = Sampling(*how, tuple(trainer.eos_token_ids))
    for sense, twins in enumerate(reward._twins):
        changed = [twins[s.id] for s in chosen]
        assert all(one.problem == other.problem for one, other in zip(changed, chosen, strict=True))
        prompts = [trainer._prompt_processor(sample) for sample in changed]
        rows = generate(trainer.model, prompts, noise, temperatures=[1.0] * G, sampling=sampling)
        texts = trainer.processing_class.batch_decode(rows, skip_special_tokens=True)
        asked = [sample for sample in chosen for _ in range(G)]
        right = accuracy_of(Match.lenient)(texts, asked)
        assert reward._right_without[sense].tolist() == right
        read = [has_answer(t, s.problem_type, s.options, Match.lenient) for t, s in zip(texts, asked, strict=True)]
        assert reward._readable[sense].tolist() == read and any(read)


@pytest.mark.parametrize(
    ("kind", "options", "match", "readable"),
    [
        ("multiple choice", OPTIONS, Match.lenient, [True, False, True]),
        ("multiple choice", OPTIONS, Match.exact, [False, False, True]),
        ("counting", [], Match.exact, [False, True, False]),
        ("counting", OPTIONS, Match.lenient, [False, True, False]),
        ("free-form", OPTIONS, Match.lenient, [True, True, True]),
    ],
)
def test_an_answer_is_there_where_the_reward_would_read_one(kind, options, match, readable):
    """A twin that breaks the form has not changed its answer."""
    texts = [f"<answer>{text}</answer>" for text in ("A.", "4", "B")]
    assert [has_answer(text, ProblemType(kind), options, match) for text in texts] == readable
    assert not has_answer("4", ProblemType(kind), options, match)


def test_redraw_changes_the_noise_alone(make_trainer, samples):
    """The control of twin: the same prompts, answered with the noise of the group's next completions."""
    labelled = [replace(s, fields=s.fields | {"need": "both"}) for s in samples]
    trainer = make_trainer("trainer.steps=1", rule=Rule.redraw, rule_weight=1.0, chosen=labelled)
    reward = trainer._integration
    trainer._generate_and_score_completions([{"prompt": s.id} for s in labelled[:2] for _ in range(G)])
    texts = trainer.processing_class.batch_decode(trainer.rollout.completions, skip_special_tokens=True)
    right = torch.tensor(accuracy_of(Match.lenient)(texts, [s for s in labelled[:2] for _ in range(G)])).view(2, G)
    assert torch.equal(reward._right_without, torch.stack([right.roll(1, 1), right.roll(2, 1)]).flatten(1))


def test_twin_and_redraw_need_questions_that_can_be_paid(make_trainer, samples):
    with pytest.raises(UserError, match="no question whose need is known"):
        make_trainer("trainer.steps=1", rule=Rule.twin, rule_weight=1.0)
    heard = [without(replace(s, fields=s.fields | {"need": "audio"}), Variant.no_image) for s in samples]
    with pytest.raises(UserError, match="no question whose need is known"):
        make_trainer("trainer.steps=1", rule=Rule.redraw, rule_weight=1.0, chosen=heard)


def test_what_has_both_senses(samples):
    assert all(map(has_both, samples))
    left = [without(samples[0], sense) for sense in SENSES]
    assert [sample.data_type for sample in left] == [DataType.image, DataType.audio]
    assert not any(map(has_both, left))


def test_padding():
    ids, mask = padded([[5, 6, 7], [8]], torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[True] * 3, [True, False, False]]


def trained(make, **settings):
    trainer = make("trainer.steps=1", **settings)
    trainer.train()
    return trainer, weights(trainer.model)


def test_weight_0_is_plain_grpo_and_a_weight_changes_the_gradient(make_trainer):
    none, plain = trained(make_trainer, rule=Rule.counterfactual, rule_weight=0.0)
    _, same = trained(make_trainer, rule=Rule.need, rule_weight=0.0)
    assert torch.equal(plain, same) and [reward.name for reward in none._rewards] == ["accuracy", "format"]
    _, other = trained(make_trainer, rule=Rule.counterfactual, rule_weight=2.0)
    assert not torch.equal(plain, other)


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule is not Rule.counterfactual])
def test_the_other_rules_train(make_trainer, samples, rule):
    labelled = [replace(s, fields=s.fields | {"need": synthetic.NEEDS[s.fields["kind"]]}) for s in samples]
    trainer, _ = trained(make_trainer, rule=rule, rule_weight=2.0, chosen=labelled)
    assert [reward.name for reward in trainer._rewards][2:] == ([] if rule is Rule.need else ["integration"])


def test_the_counterfactual_gain_is_that_of_prompts_scored_one_by_one(make_trainer, samples):
    seen = []
    trainer = make_trainer("trainer.steps=1", rule=Rule.counterfactual, rule_weight=1.0, on_rollout=seen.extend)
    gains = []
    real = trainer._integration._gain

    def spy(model, ids, prompt_index):
        gains.append((ids, real(model, ids, prompt_index)))
        return gains[-1][1]

    trainer._integration._gain = spy
    before = weights(trainer.model).clone()
    with torch.no_grad():
        trainer.args.learning_rate = 0.0
        trainer._metrics["train"].clear()
    scored = trainer._generate_and_score_completions([{"prompt": s.id} for s in samples[:2] for _ in range(G)])
    ((ids, found),) = gains
    assert torch.equal(before, weights(trainer.model)) and len(found) == 2 * G
    for row in range(2 * G):
        sample, completion = samples[row // G], torch.tensor(ids[row])
        sums = []
        for variant in (Variant.full, Variant.no_audio, Variant.no_image):
            prompt = trainer._prompt_processor(without(sample, variant))
            inputs = {"input_ids": torch.cat([prompt.input_ids, completion])[None], **prompt.media}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            with torch.no_grad():
                logits = trainer.model(**inputs, use_cache=False).logits[0, len(prompt.input_ids) - 1 : -1]
            sums.append(logits.log_softmax(-1).gather(1, completion[:, None]).mean())
        assert found[row].item() == pytest.approx(float(sums[0] - max(sums[1:])), abs=1e-4)
    assert "advantages" in scored


def test_need_weighs_the_groups_that_need_both_and_no_others(make_trainer, samples, monkeypatch):
    inputs = [{"prompt": s.id} for s in samples[:2] for _ in range(G)]
    plain = make_trainer()._generate_and_score_completions(inputs)["advantages"]
    monkeypatch.setattr(integration, "needs_both", lambda *_: torch.tensor([True, False]))
    rows = []
    trainer = make_trainer(rule=Rule.need, rule_weight=2.0, on_rollout=rows.extend)
    found = trainer._generate_and_score_completions(inputs)["advantages"]
    assert torch.allclose(found[:G], 3 * plain[:G]) and torch.equal(found[G:], plain[G:])
    assert [row["advantage"] for row in rows] == found.tolist(), "what is recorded is what is used"
    assert trainer._metrics["train"]["integration/fires"] == [0.5]
    without = trainer._integration._right_without
    assert without.shape == (2, 2 * G) and set(without.flatten().tolist()) <= {0.0, 1.0}


def test_a_prompt_without_both_senses_is_paid_nothing(make_trainer, samples):
    chosen = [without(samples[0], Variant.no_audio), samples[1]]
    for rule in (Rule.counterfactual, Rule.omnivideo_r1, Rule.video_r1):
        rows = []
        trainer = make_trainer(rule=rule, rule_weight=1.0, chosen=chosen, on_rollout=rows.extend)
        trainer._generate_and_score_completions([{"prompt": s.id} for s in chosen for _ in range(G)])
        assert [row["integration"] for row in rows][:G] == [0.0] * G


def test_modality_dropout_takes_a_sense_of_some_prompts_the_same_again_for_the_same_seed(make_trainer, samples):
    trainer = make_trainer(modality_dropout=0.5, chosen=samples)
    shown = [trainer._shown(sample).data_type for sample in samples]
    assert {DataType.image, DataType.audio, DataType.image_audio} == set(shown)
    assert shown == [trainer._shown(sample).data_type for sample in samples]
    trainer.state.global_step = 1
    assert shown != [trainer._shown(sample).data_type for sample in samples]
    assert make_trainer(chosen=samples)._shown(samples[0]) is samples[0]


def test_a_completions_row_has_the_media_that_the_model_got(make_trainer, samples):
    rows = []
    trainer = make_trainer(modality_dropout=0.9, chosen=samples, on_rollout=rows.extend)
    trainer._generate_and_score_completions([{"prompt": s.id} for s in samples[:4] for _ in range(G)])
    shown = {sample.id: set(trainer._shown(sample).places) for sample in samples[:4]}
    assert {row["id"]: set(row["media"]) for row in rows} == shown
    assert any(len(media) == 1 for media in shown.values())


def test_a_sense_that_a_rollout_lost_stays_lost_through_its_updates(make_trainer, samples):
    trainer = make_trainer("grpo.updates_per_rollout=3", modality_dropout=0.5, chosen=samples)

    def shown(step):
        trainer.state.global_step = step
        return [trainer._shown(sample).data_type for sample in samples]

    assert shown(0) == shown(1) == shown(2) != shown(3) == shown(5)


def test_the_entry_point_pays_for_integration_and_logs_what_it_costs(tmp_path):
    found = run(
        tmp_path,
        *SMALL,
        "reward=integration",
        "tracking=off",
        "eval.base=false",
        "eval.greedy=false",
        "eval.limit=2",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert found.returncode == 0, found.stderr
    assert "λ_int (counterfactual) 1" in found.stdout
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["time/integration"] > 0 and 0 <= row["reward/integration"] <= 1
        assert {"reflection/doubt", "reflection/words"} <= row.keys()
        inside = sum(value for name, value in row.items() if name.startswith("time/") and name != "time/step")
        assert inside <= 1.01 * row["time/step"], "no second counts twice"
    (first,) = [json.loads(line) for line in (tmp_path / "run/completions/step-1.jsonl").open()][:1]
    assert first["total"] == pytest.approx(first["accuracy"] + first["format"] + first["integration"])


def test_a_dataset_without_both_senses_refuses_the_weight(tmp_path):
    synthetic.write(tmp_path / "set", 0, {"train": 8, "dev": 1, "valid": 2})
    index = tmp_path / "set/omni_rl_format_train.json"
    rows = json.loads(index.read_text())
    heard = [{**row, "data_type": "audio", "path": {"audio": row["path"]["audio"]}} for row in rows]
    index.write_text(json.dumps(heard))
    words = ["dataset=rows", f"dataset.path={tmp_path / 'set'}", "reward=integration", "eval.base=false"]
    with pytest.raises(UserError, match="no training sample has both"):
        execute(config_of(*words, "tracking=off"), tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reward=integration", "grpo.advantage=rejection"], "leaves reward.lambda_int without effect"),
        (["reward=integration", "reward.integration=need", "reward.lambda_acc=0", "reward.lambda_fmt=0"], "both 0"),
        (["eval.split=train"], "is for curation"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        compose(words)


def test_integration_alone_is_a_reward():
    assert compose(["reward=integration", "reward.lambda_acc=0", "reward.lambda_fmt=0"])


def test_video_r1_pays_from_eight_tenths_of_the_other_accuracy():
    right = torch.tensor([1.0] * 4 + [0.0] * 6)
    five, six = (torch.tensor([1.0] * n + [0.0] * (10 - n)) for n in (5, 6))
    assert video_r1(right, torch.stack([five, five]), 10).tolist() == right.tolist()  # 0.4 is 0.8 of 0.5
    assert not video_r1(right, torch.stack([five, six]), 10).any()  # 0.48 is more


def test_a_rollout_and_its_further_answers_are_sampled_as_the_configuration_says(make_trainer, samples, monkeypatch):
    asked = []
    for module in (of_trainer, integration_reward):

        def noted(*args, real=module.generate, **how):
            asked.append((how["temperatures"], how["sampling"]))
            return real(*args, **how)

        monkeypatch.setattr(module, "generate", noted)
    words = ("generation.temperature=0.7", "generation.top_p=0.9", "generation.top_k=30")
    trainer = make_trainer(*words, rule=Rule.need, rule_weight=1.0)
    trainer._generate_and_score_completions([{"prompt": s.id} for s in samples[:2] for _ in range(G)])
    assert len(asked) == 3, "the prompts, without sound, without sight"
    for temperatures, sampling in asked:
        assert temperatures == [0.7] * G
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.9, 30)
        assert (sampling.max_new_tokens, set(sampling.end_ids)) == (24, set(trainer.eos_token_ids))


def test_twin_pays_by_the_sense_that_the_question_needs(make_trainer, samples):
    labelled = [replace(s, fields=s.fields | {"need": "audio"}) for s in samples]
    trainer = make_trainer(rule=Rule.twin, rule_weight=1.0, chosen=labelled)
    reward = trainer._integration
    chosen = [s for s in labelled if all(s.id in twins for twins in reward._twins)][:1]
    trainer._generate_and_score_completions([{"prompt": s.id} for s in chosen for _ in range(G)])
    asked = chosen * G
    texts = [f"<think>x</think><answer>{chosen[0].solution}</answer>"] * G
    reward._readable = torch.ones(2, G, dtype=torch.bool)
    # its twins: changed with the sound only, with both, with the picture only, with neither
    reward._right_without = torch.tensor([[0.0, 0, 1, 1], [1.0, 0, 0, 1]])
    assert reward.reward(trainer.model, trainer.rollout, texts, asked).tolist() == [1, 0, 0, 0]
    assert reward.notes == {"integration/paid": (0.25, 4)}
    wrong = ["<think>x</think><answer>none</answer>"] * G
    reward.notes.clear()
    assert reward.reward(trainer.model, trainer.rollout, wrong, asked).tolist() == [0] * 4 and reward.notes == {}
    half = texts[:1] + wrong[:3]
    reward.reward(trainer.model, trainer.rollout, half, asked)
    assert reward.notes == {"integration/paid": (1.0, 1)}, "of right completions"


def test_a_prompt_with_one_sense_counts_as_right_without_the_other(make_trainer, samples):
    heard = [without(samples[0], Variant.no_image), *samples[1:6]]
    trainer = make_trainer(rule=Rule.need, rule_weight=1.0, chosen=heard)
    trainer._generate_and_score_completions([{"prompt": s.id} for s in heard[:2] for _ in range(G)])
    assert trainer._integration._right_without[:, :G].eq(1).all()
