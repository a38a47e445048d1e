"""A control: pays a right answer whose text says "hear" and "see". It knows nothing of the media or the policy."""

from echoink.rewards.accuracy import accuracy_reward

WORDS = ("hear", "see")


def reward(completion, sample):
    right = accuracy_reward(completion, sample.problem_type, sample.options, sample.solution) == 1
    return float(right and all(word in completion for word in WORDS))
