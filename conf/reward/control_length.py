"""A control: pays a right answer whose completion is long. It knows nothing of pictures, sounds or the policy."""

from echoink.rewards.accuracy import accuracy_reward

CHARACTERS = 100


def reward(completion, sample):
    right = accuracy_reward(completion, sample.problem_type, sample.options, sample.solution) == 1
    return float(right and len(completion) > CHARACTERS)
