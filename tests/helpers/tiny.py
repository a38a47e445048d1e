"""The embedded model: read from disk once in a process, then copied."""

import copy
from functools import cache

from echoink.models.loading import load_model, load_reference

_model, _reference = cache(load_model), cache(load_reference)


def tiny_model():
    return copy.deepcopy(_model("tiny"))


def tiny_reference():
    return copy.deepcopy(_reference("tiny"))
