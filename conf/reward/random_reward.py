"""A reward that knows nothing: a fair coin for every completion, from Python's generator, which a run seeds."""

import random


def reward(completion, sample):
    return float(random.random() < 0.5)
