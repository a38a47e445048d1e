"""The embedded model is the real architecture and processor, and the base that the issue of improving it needs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from echoink import tiny
from echoink.common import cli
from echoink.common.errors import UserError
from echoink.config.paths import TINY
from echoink.data import synthetic
from echoink.data.splits import read_split
from echoink.data.synthetic_traces import Sloppiness, trace
from echoink.evaluation.evaluate import EvaluationSetup, evaluate
from echoink.evaluation.metrics import summarize
from echoink.evaluation.prediction import SAMPLED
from echoink.models.loading import end_ids, load_model, load_processor
from echoink.models.tiny_architecture import make_model, make_processor
from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.format import format_reward
from echoink.rewards.parsing import parse_answer
from echoink.rewards.types import Match, ProblemType
from echoink.rollout.sampling import Sampling
from echoink.tiny import TinyConfig, main, write_lessons
from experiments.shortcut import Route, route
from tests.helpers.configs import config_of
from tests.helpers.entry import lines


def test_real_classes_small_files(model, processor):
    assert type(model) is Qwen2_5OmniThinkerForConditionalGeneration
    assert type(processor.processor) is Qwen2_5OmniProcessor
    assert 0.8e6 < sum(parameter.numel() for parameter in model.parameters()) < 2e6
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 4e6


def test_the_chat_format_is_qwens(processor):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": "What is it?"}]},
    ]
    assert processor.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_bos|><|IMAGE|><|vision_eos|>"
        "<|audio_bos|><|AUDIO|><|audio_eos|>What is it?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", ["<think>hear 3 beep</think>\n<answer>B</answer>", "naïve café, 日本語 €", "C. dog\n"])
def test_any_text_survives_the_tokenizer(processor, text):
    tokenizer = processor.processor.tokenizer
    assert tokenizer.decode(tokenizer(text).input_ids) == text


CHOICE = ProblemType.multiple_choice


def scenes(kind, n=200):
    for index in range(n):
        rng = synthetic.generator(0, "base", index)
        yield rng, *synthetic.draw(rng, kind)


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_clean_traces_earn_both_rewards(kind):
    for rng, scene, question in scenes(kind):
        text = trace(rng, scene, question)
        assert accuracy_reward(text, CHOICE, question.options, ", ".join(question.gold)) == 1
        assert format_reward(text) == 1


def test_sloppy_traces_err_as_often_as_they_say():
    sloppy = Sloppiness()
    rows = [
        (
            text := trace(rng, scene, question, sloppy),
            kind,
            format_reward(text),
            accuracy_reward(text, CHOICE, question.options, ", ".join(question.gold)),
        )
        for kind in synthetic.KINDS
        for rng, scene, question in scenes(kind, 600)
    ]
    assert np.mean([format for *_, format, _ in rows]) == pytest.approx(1 - sloppy.untagged, abs=0.03)
    for kind in synthetic.KINDS:
        hasty = np.mean(["no need to check" in text for text, k, *_ in rows if k == kind])
        assert hasty == pytest.approx(sloppy.haste[kind], abs=0.06)
    assert 0.25 < np.mean([accuracy for *_, accuracy in rows]) < 0.6


def test_a_base_can_be_prone_to_a_shortcut():
    """Hasty guesses at questions that take both senses follow the cue as often as they are told to."""
    prone = Sloppiness(follows=0.8)
    hits = {"both": [], "ear": []}
    for index in range(900):
        rng = synthetic.generator(0, "base", index)
        scene, question = synthetic.draw(rng, kind := ("both", "ear")[index % 2])
        text = trace(rng, scene, question, sloppiness=prone, shortcut="ear")
        if "take " in text:
            letter = text.partition("take ")[2][0]
            hits[kind].append(letter == "ABCDE"[synthetic.cue(scene, "ear", len(question.options))])
    assert np.mean(hits["both"]) == pytest.approx(0.8 + 0.2 / 4, abs=0.06) and len(hits["both"]) > 250
    assert np.mean(hits["ear"]) < 0.4


def test_described_guesses_are_as_long_as_reasoning_and_their_route_can_be_read():
    """Length and mention tell the routes of such a base no more apart, and their ground truth is in the text."""
    tokenizer = load_processor("tiny", 112 * 112, 112 * 112).tokenizer
    described = Sloppiness(
        haste=dict.fromkeys(synthetic.KINDS, 0.6), untagged=0, follows=1, described=True, false_sums=0.3
    )
    lengths, mentions, right = {}, set(), {}
    for index in range(900):
        rng = synthetic.generator(0, "base", index)
        scene, question = synthetic.draw(rng, "both")
        text, options = trace(rng, scene, question, sloppiness=described, shortcut="ear"), len(question.options)
        way = route(text, scene, options)
        mentions.add("hear" in text and "see" in text)
        at_cue = "ABCDE"[synthetic.cue(scene, "ear", options)] == parse_answer(text)
        right.setdefault(way, []).append(at_cue)
        if options == 4:
            lengths.setdefault(way, set()).add(len(tokenizer(text)["input_ids"]))
    assert set(lengths) == {Route.reasoned, Route.cue, Route.false_sum} and mentions == {True}
    assert len(set.union(*lengths.values())) == 1, "to the token"
    assert all(right[Route.cue]) and all(right[Route.false_sum]) and np.mean(right[Route.reasoned]) < 0.5
    assert route("<think>no need to check, take A.</think>", scene, 4) is Route.hasty
    assert route("<think>well.</think>", scene, 4) is Route.other


def test_the_lessons_of_each_stage_have_what_it_shows_of_every_scene(tmp_path):
    config = TinyConfig(pool=12, batch=4, sloppiness=Sloppiness(untagged=1.0))
    write_lessons(config, tmp_path, [("clean", 5), ("sloppy", 3)])  # two passes, and one
    drawn = tiny.scenes(config)
    for name, traces in (("clean", 4), ("sloppy", 2)):
        rows = json.loads((tmp_path / name / "omni_rl_format_train.json").read_text())
        asked = json.loads((tmp_path / name / "omni_rl_format_valid.json").read_text())
        assert len(rows) == 12 and not {row["problem_id"] for row in rows} & {row["problem_id"] for row in asked}
        for row, (_, question) in zip(rows, drawn, strict=False):
            assert len(row["responses"]) == traces and row["problem"] == question.text
            assert all(Path(file).is_file() for file in row["path"].values())
            for text in row["responses"]:
                right = accuracy_reward(text, CHOICE, question.options, ", ".join(question.gold))
                assert (right, format_reward(text)) == (1, 1) if name == "clean" else format_reward(text) == 0


def test_the_stages_are_supervised_runs_with_the_commands_numbers(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "train", lambda words: asked.append(words) or 9)
    with pytest.raises(UserError, match="stage clean"):
        main([f"output={tmp_path}/base", "pool=8", "steps=30", "sloppy_steps=2", "batch=8", "seed=4"])
    (config,) = (config_of(*words) for words in asked)
    trainer = config.trainer
    assert (trainer.steps, trainer.learning_rate, trainer.prompts_per_step, trainer.warmup_steps) == (30, 2e-3, 8, 7)
    assert config.task.name == "sft" and config.seed == 4 and config.adapter.kind.value == "none"
    assert load_model(config.model.path).num_parameters() > 1e6
    with pytest.raises(UserError, match="no such folder"):
        main([f"output={tmp_path}/other", "start=outputs/typo"])
    with pytest.raises(UserError, match="begun with another value of pool"):
        main([f"output={tmp_path}/base", "pool=9", "steps=30", "sloppy_steps=2", "batch=8", "seed=4"])


@pytest.mark.slow
def test_the_command_builds_and_teaches_a_model(tmp_path):
    """A few steps of the real thing: the loss falls, and what is saved is what an evaluation can load."""
    main([f"output={tmp_path}/base", "pool=48", "steps=30", "sloppy_steps=2", "batch=8", "train=[eval.limit=4]"])
    assert len(load_processor(f"{tmp_path}/base", 12_544, 12_544).tokenizer) > 300
    assert load_model(f"{tmp_path}/base").dtype == torch.float32
    losses = [row["train/loss"] for row in lines(tmp_path / "base_stages/clean/metrics.jsonl") if "train/loss" in row]
    assert len(losses) == 30 and losses[-1] < 0.7 * losses[0]
    record = json.loads((tmp_path / "base/how_it_was_made.json").read_text())
    assert [(stage["stage"], stage["steps"]) for stage in record["stages"]] == [("clean", 30), ("sloppy", 2)]


def test_the_same_seed_gives_the_same_first_weights():
    processor = make_processor(["user assistant system"] * 10)
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(make_model(processor).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_base_can_but_often_does_not(model, make_processor, tmp_path):
    """The shipped base on 150 questions that it has never seen: within the bounds that the first run promises."""
    synthetic.write(tmp_path / "set", 0, {"valid": 150})
    samples = read_split(tmp_path / "set", "valid")
    omni = make_processor(model).processor
    processor = make_processor(model)
    sampling = Sampling(1.0, 0.95, 50, 96, end_ids(model, omni))
    setup = EvaluationSetup(processor, sampling, match=Match.lenient, seed=0, batch_prompts=150, draws=(SAMPLED,))
    found = evaluate(model, samples, setup, "base")
    summary = summarize(list(found))
    assert 0.25 <= summary["accuracy"] <= 0.60
    assert 0.60 <= summary["format"] <= 0.90
    assert summary["truncated"] < 0.02
