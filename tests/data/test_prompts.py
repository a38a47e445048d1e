"""Prompts ask for what the rewards check."""

import pytest

from echoink.common.errors import UserError
from echoink.config.compose import compose
from echoink.config.schema import Prompt
from echoink.data.prompts import build_messages
from echoink.data.samples import DataType, Sample
from echoink.rewards.format import format_reward
from echoink.rewards.types import ProblemType
from tests.helpers.configs import config_of


def test_picture_then_sound_then_question(samples):
    (turn,) = build_messages(samples[0], config_of().prompt)
    assert [part["type"] for part in turn["content"]] == ["image", "audio", "text"]
    text = turn["content"][-1]["text"]
    assert text.startswith(samples[0].problem) and all(option in text for option in samples[0].options)
    assert turn["role"] == "user"


def test_a_system_turn_comes_first(samples):
    turns = build_messages(samples[0], Prompt("Be brief.", "{question} {options} {answer}{end_answer}", "{options}"))
    assert [turn["role"] for turn in turns] == ["system", "user"]
    assert turns[0]["content"][0]["text"] == "Be brief."


def test_the_tags_that_the_prompt_names_are_the_ones_rewarded(samples):
    prompt = Prompt("", "{think}x{end_think}{answer}B{end_answer} {question}{options}", "{options}")
    text = build_messages(samples[0], prompt)[0]["content"][-1]["text"]
    assert format_reward(text.split(" ")[0]) == 1


def test_bad_templates():
    for template, message in (
        ("{question}{answer}{end_answer}", "lacks {options}"),
        ("{question}{options}", "lacks {answer} and {end_answer}"),
        ("{question}{options}{x}", "bad field"),
        ("{", "bad field"),
    ):
        with pytest.raises(UserError, match=message):
            Prompt("", template, "{options}").check()
    with pytest.raises(UserError, match="prompt.options lacks"):
        Prompt("", "{question}{options}{answer}{end_answer}", "Options:").check()


@pytest.mark.parametrize("key", ["prompt.template", "prompt.options", "eval.direct.template", "eval.direct.options"])
def test_a_bad_field_names_the_key_that_has_it(key):
    with pytest.raises(UserError, match=rf"^{key} has a bad field"):
        compose([f"{key}='{{x}}'"])


def test_a_prompt_fits_its_sample():
    """No options, no heading; what there is to perceive, and what is wanted, are named."""
    prompt = config_of().prompt

    def text(**fields):
        return build_messages(Sample("1", "How many?", **fields), prompt)[0]["content"][-1]["text"]

    plain = text(options=(), solution="3", problem_type=ProblemType.counting, data_type=DataType.text)
    assert plain.startswith("How many?\nReason between") and "put the number between" in plain
    video = text(options=("A. 1", "B. 2"), solution="A", data_type=DataType.video_audio)
    assert "Options:\nA. 1\nB. 2\nWatch the video and listen to its sound. Reason" in video


@pytest.mark.parametrize("data_type", DataType)
def test_media_stand_before_the_question(data_type):
    prompt = config_of().prompt
    (turn,) = build_messages(Sample("1", "What?", ("A. 1", "B. 2"), "A", data_type=data_type), prompt)
    kinds = [part["type"] for part in turn["content"]]
    shown = ("video",) if data_type is DataType.video_audio else data_type.media
    assert kinds == [*shown, "text"]


def test_the_direct_prompt_does_not_think():
    config = config_of("prompt=direct")
    assert not config.prompt.thinks and config_of().prompt.thinks
    assert vars(config.eval.direct) == vars(config.prompt)
