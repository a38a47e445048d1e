"""What holds for every text, configuration, row and order of prompts (hypothesis looks for one where it does not)."""

import copy
import json
from collections import Counter
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from echoink.common.errors import UserError
from echoink.common.keys import fields_of
from echoink.config.schema import Config, flatten, to_yaml
from echoink.config.validate import typed
from echoink.data.sampler import GroupSampler
from echoink.data.samples import Sample, parse_rows
from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.format import format_reward
from echoink.rewards.parsing import parse_answer, parse_letters
from echoink.rewards.types import Match, ProblemType
from tests.helpers.configs import config_of
from tests.helpers.fuzz import fuzz

OPTIONS = ("A. a dog", "B. a bell", "C. rain", "D. B")
TAGS = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "A",
    "b)",
    "C.",
    "rain",
    "\n",
    " ",
    "and",
    ",",
    "x" * 2000,
    "ｂ",
    "\u2028",
)

texts = st.one_of(st.text(), st.lists(st.sampled_from(TAGS)).map("".join))


@given(text=texts, match=st.sampled_from(Match), gold=st.sampled_from("ABCD"))
@example(text="<think></think><answer>" * 50, match=Match.lenient, gold="A")
def test_any_text_is_judged_within_0_and_1_and_twice_alike(text, match, gold):
    for kind in ProblemType:
        options = OPTIONS if kind is ProblemType.multiple_choice else ()
        solution = gold if kind is ProblemType.multiple_choice else "2"
        score = accuracy_reward(text, kind, options, solution=solution, match=match)
        assert 0 <= score <= 1 and score == accuracy_reward(text, kind, options, solution=solution, match=match)
    form = format_reward(text)
    assert form in (0, 1)
    if form == 1:
        assert parse_answer(text) is not None, "what is well formed has an answer"
    letters = parse_letters(text, OPTIONS)
    assert letters <= set("ABCD")


@given(reason=st.text(alphabet=st.characters(exclude_characters="<>")), gold=st.sampled_from("ABCD"))
def test_a_right_and_well_formed_answer_earns_both_rewards_whatever_was_thought(reason, gold):
    text = f"<think>{reason}</think>\n<answer>{gold}</answer>"
    assert format_reward(text) == float(bool(reason.strip())), "an empty thought is none"
    for letter in "ABCD":
        rewards = [
            accuracy_reward(text, ProblemType.multiple_choice, OPTIONS, solution=letter, match=match) for match in Match
        ]
        assert rewards[:2] == [float(letter == gold)] * 2


PLAIN = config_of()
RAW = OmegaConf.create(to_yaml(PLAIN))
KEYS = {key: value for key, _, value in fields_of(PLAIN)}


@settings(max_examples=60, deadline=None)
@given(
    key=st.sampled_from(sorted(KEYS)),
    value=st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=9)),
)
def test_any_value_of_any_key_is_taken_as_it_is_or_refused_by_name(key, value):
    raw = copy.deepcopy(RAW)
    try:
        OmegaConf.update(raw, key, value, force_add=True)
        config = typed(raw, Config)
    except UserError as error:
        problem = str(error)
        assert key.split(".")[-1] in problem
        return
    found = flatten(config)
    assert {k: v for k, v in found.items() if k != key} == {k: v for k, v in flatten(PLAIN).items() if k != key}
    again = typed(OmegaConf.create(to_yaml(config)), Config)
    assert flatten(again) == found, "what is written to config.yaml is read as the same"


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=5,
)
FIELDS = ["problem_id", "problem", "data_type", "problem_type", "options", "solution", "path", "image", "mine"]
good = st.fixed_dictionaries(
    {
        "problem": st.just("What is heard?"),
        "options": st.just(list(OPTIONS)),
        "solution": st.just("<answer>B</answer>"),
        "path": st.just({"image": "a.jpg", "audio": "a.wav"}),
    }
)


@given(
    rows=st.lists(
        st.one_of(
            values,
            st.builds(lambda row, more: row | more, good, st.dictionaries(st.sampled_from(FIELDS), values, max_size=2)),
        )
    )
)
def test_any_row_is_a_sample_or_dropped_with_a_reason(rows):
    samples, dropped = parse_rows(rows, Path("/data/set"), "here")
    assert len(samples) + len(dropped) == len(rows)
    assert all(each.reason.startswith("here, row ") for each in dropped)
    assert len({sample.id for sample in samples}) == len(samples)
    for sample in samples:
        assert isinstance(sample, Sample) and sample.problem and sample.solution
        json.dumps([sample.problem, sample.options, sample.solution, sample.id, sample.fields]).encode()
        str([sample.problem, sample.options, sample.solution, sample.id, sample.fields]).encode()
        assert all(path.is_relative_to("/data/set") for path in sample.media.values() if isinstance(path, Path))


@given(
    prompts=st.integers(1, 60),
    group=st.integers(2, 5),
    block=st.integers(1, 12),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
)
def test_an_epoch_has_every_prompt_in_whole_groups_and_its_steps_do_not_depend_on_how_they_are_divided(
    prompts, group, block, repeats, seed, epoch
):
    block = min(block, prompts)
    sampler = GroupSampler(prompts, group, block, repeats=repeats, seed=seed)
    sampler.set_epoch(epoch)
    rows = list(sampler)
    assert len(rows) == len(sampler) and len(rows) % (block * group * repeats) == 0
    groups = [rows[start : start + group] for start in range(0, len(rows), group)]
    assert all(len(set(each)) == 1 for each in groups)
    size = block * group * repeats
    steps = [rows[start : start + block * group] for start in range(0, len(rows), size)]
    drawn = Counter(row for step in steps for row in step[::group])
    assert set(drawn) == set(range(prompts))
    assert sum(drawn.values()) - prompts == (-prompts) % block and max(drawn.values()) <= 2, "only the fill-up repeats"
    if repeats == 1:  # other processes or micro-batches take other parts of the same steps: none is lost or repeated
        again = GroupSampler(prompts, group, block, repeats=1, seed=seed)
        again.set_epoch(epoch)
        for done in range(len(steps) + 1):
            left = list(again)[done * block * group :]
            for processes in (1, 2, 3):
                if block % processes == 0:
                    part = block * group // processes
                    shares = [left[start : start + part] for start in range(0, len(left), part)]
                    assert [row for share in shares for row in share] == left and rows[
                        : done * block * group
                    ] + left == rows


def test_damaged_files_give_our_own_error_or_none():
    """The short form; `python -m tests.helpers.fuzz 1800` is the long one."""
    counts, bad = fuzz(5, seed=2)
    assert not bad, next(iter(bad.values()))
    outcomes = {outcome for _, outcome in counts}
    assert outcomes == {"read", "refused"} and sum(counts.values()) > 500
