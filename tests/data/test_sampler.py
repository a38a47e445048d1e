"""The order of prompts: all of them, in whole groups, seeded."""

import pytest

from echoink.common.errors import UserError
from echoink.data.sampler import GroupSampler
from echoink.planning.steps import training_steps
from tests.helpers.configs import config_of


def test_the_sampler_visits_every_prompt_and_fills_the_last_block_by_wrapping():
    sampler = GroupSampler(prompts=10, group_size=3, block=4, repeats=2, seed=0)
    rows = list(sampler)
    assert len(rows) == len(sampler) == 12 * 3 * 2
    blocks = [rows[start : start + 12] for start in range(0, len(rows), 12)]
    assert blocks[0::2] == blocks[1::2], "a block is repeated for TRL's buffer"
    prompts = [block[0::3] for block in blocks[0::2]]
    assert all(block[g::3] == block[0::3] for block in blocks for g in range(3)), "a group stands together"
    order = [prompt for block in prompts for prompt in block]
    assert sorted(order[:10]) == list(range(10)) and order[10:] == order[:2]


def test_the_sampler_is_seeded_by_seed_and_epoch():
    def order(seed, epoch):
        sampler = GroupSampler(50, 1, 5, repeats=1, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_the_papers_steps():
    config = config_of("experiment=echoink_r1_7b", "dataset.path=data")
    assert training_steps(config.trainer, config.grpo.updates_per_rollout, 4_490) == 562


def test_a_step_takes_no_prompt_twice():

    with pytest.raises(UserError, match="7 training samples are fewer than trainer.prompts_per_step=8"):
        training_steps(config_of().trainer, 1, 7)


def test_a_warm_up_ends_before_the_run():
    with pytest.raises(UserError, match=r"warmup_steps=500 of 5 steps: the learning rate would never"):
        training_steps(config_of("trainer.steps=5", "trainer.warmup_steps=500").trainer, 1, 80)
