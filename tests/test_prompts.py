"""Prompts ask for what the rewards check."""

import pytest

from echoink.compose import compose
from echoink.errors import UserError
from echoink.prompts import build_messages, check_template
from echoink.rewards import format_reward


def test_picture_then_sound_then_question(samples):
    template = compose([])[0].config.prompt.template
    (turn,) = build_messages(samples[0], template)
    assert [part["type"] for part in turn["content"]] == ["image", "audio", "text"]
    text = turn["content"][-1]["text"]
    assert text.startswith(samples[0].problem) and all(option in text for option in samples[0].options)
    assert turn["role"] == "user"


def test_a_system_turn_comes_first(samples):
    turns = build_messages(samples[0], "{question} {options}", "Be brief.")
    assert [turn["role"] for turn in turns] == ["system", "user"]
    assert turns[0]["content"][0]["text"] == "Be brief."


def test_the_tags_that_the_prompt_names_are_the_ones_rewarded(samples):
    text = build_messages(samples[0], "{think}x{end_think}{answer}B{end_answer} {question}{options}")[0]["content"][-1][
        "text"
    ]
    assert format_reward(text.split(" ")[0]) == 1


def test_bad_templates():
    for template, message in (
        ("{question}", "lacks {options}"),
        ("{question}{options}{x}", "bad field"),
        ("{", "bad field"),
    ):
        with pytest.raises(UserError, match=message):
            check_template(template)
