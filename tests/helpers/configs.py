"""Configurations for tests: composed once for the same words, since that takes a third of a second."""

import copy
from functools import cache

from echoink.config.compose import compose
from echoink.config.schema import Config


def config_of(*words: str) -> Config:
    """What those words on the command line compose, as a copy of one's own."""
    return copy.deepcopy(_composed(words))


@cache
def _composed(words: tuple[str, ...]) -> Config:
    return compose(words)[0].config
