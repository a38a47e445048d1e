"""The order of prompts in training: whole groups, a permutation per epoch, the last block filled up."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class GroupSampler(Sampler[int]):
    """Rows of a training epoch: each prompt G times in a row, blocks of prompts repeated as TRL's buffer expects.

    The order is a permutation seeded by (seed, epoch). The last block is filled by wrapping around to the permutation's
    start, so that 4,490 prompts at 8 a step are 562 steps and no prompt is dropped. With `stages`, a number for each
    prompt, prompts with a lower number come first.

    Example: 3 prompts, G = 2, blocks of 2, no repeats, order 2 0 1 → 2 2 0 0 | 1 1 2 2.
    """

    def __init__(
        self, prompts: int, group_size: int, block: int, repeats: int, seed: int, stages: Sequence[int] | None = None
    ):
        self.stages = stages
        self.prompts, self.group_size, self.block, self.repeats, self.seed = prompts, group_size, block, repeats, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the trainer calls it at the start of each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.prompts // self.block) * self.block * self.group_size * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(self.prompts, generator=generator).tolist()
        if self.stages:
            order.sort(key=lambda prompt: self.stages[prompt])
        for start in range(0, self.prompts, self.block):
            block = [order[index % self.prompts] for index in range(start, start + self.block)]
            for _ in range(self.repeats):
                for prompt in block:
                    yield from [prompt] * self.group_size
