"""Prompts that threads make while the model works: the same, once each, in order, their errors where they are taken."""

import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch

from echoink.common.errors import UserError
from echoink.config.schema import Variant
from echoink.data.ablations import without
from echoink.data.prefetch import Prefetcher
from echoink.data.samples import DataType
from echoink.data.splits import read_split
from echoink.models.family import PromptInputs
from tests.helpers import files


class Noted:
    """A processor that says which thread made what, and may be held."""

    def __init__(self, processor, workers):
        self.workers, self.made, self.held = workers, [], threading.Event()
        self._processor = processor
        self.held.set()

    def __call__(self, sample) -> PromptInputs:
        assert self.held.wait(30)
        self.made.append((sample.id, threading.current_thread().name))
        return self._processor(sample)


@pytest.fixture
def samples(samples, tmp_path):
    """With videos: others are made where they are taken."""
    shown = files.video(tmp_path / "clip.mp4")
    return [replace(s, video=shown, image=None, audio=None, data_type=DataType.video) for s in samples]


def same(one: PromptInputs, other: PromptInputs) -> bool:
    tensors = [(one.input_ids, other.input_ids), (one.position_ids, other.position_ids)]
    tensors += [(one.media[name], other.media[name]) for name in one.media]
    return one.media.keys() == other.media.keys() and all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prompts_are_those_that_are_made_one_by_one_each_made_once(processor, samples, workers):
    noted = Noted(processor, workers)
    ahead = Prefetcher(noted)
    ahead.ask(samples[:6])
    ahead.ask(samples[:6])
    taken = ahead.take(samples[7:2:-1])
    assert all(same(one, processor(sample)) for one, sample in zip(taken, samples[7:2:-1], strict=True))
    ahead.take(samples[:3])
    assert Counter(id for id, _ in noted.made) == Counter(sample.id for sample in samples[:8])
    by_threads = {id for id, thread in noted.made if thread.startswith("media")}
    assert by_threads == ({sample.id for sample in samples[:6]} if workers else set())
    ahead.close()


def test_it_does_not_wait_where_it_asks(processor, samples):
    noted = Noted(processor, 2)
    noted.held.clear()
    ahead = Prefetcher(noted)
    ahead.ask(samples[:4])
    assert not noted.made
    noted.held.set()
    assert len(ahead.take(samples[:4])) == 4
    ahead.close()


def test_a_sample_that_is_asked_otherwise_by_then_is_made_anew(processor, samples):
    ahead = Prefetcher(Noted(processor, 1))
    ahead.ask(samples[:1])
    (taken,) = ahead.take([without(samples[0], Variant.text_only)])
    assert not taken.media
    ahead.close()


def test_an_error_is_that_of_the_sample_when_it_is_taken(processor, samples, tmp_path):
    broken = replace(samples[1], video=tmp_path / "nowhere.mp4")
    ahead = Prefetcher(Noted(processor, 2))
    ahead.ask([samples[0], broken, samples[2]])
    assert len(ahead.take([samples[0], samples[2]])) == 2
    with pytest.raises(UserError, match=f"sample {broken.id}"):
        ahead.take([broken])
    ahead.close()


def test_what_was_asked_for_and_is_not_wanted_any_more_is_not_made(processor, samples):
    noted = Noted(processor, 1)
    noted.held.clear()
    ahead = Prefetcher(noted)
    ahead.ask(samples[:5])
    ahead.close()
    noted.held.set()
    for thread in threading.enumerate():
        if thread.name.startswith("media"):
            thread.join(30)
    assert len(noted.made) <= 1  # the one that had begun


def test_pictures_and_sounds_are_made_where_they_are_taken(processor, dataset):
    noted = Noted(processor, 2)
    ahead = Prefetcher(noted)
    others = read_split(dataset, "train")[:2]
    ahead.ask(others)
    assert not noted.made
    ahead.take(others)
    assert {thread for _, thread in noted.made} == {threading.current_thread().name}
    ahead.close()
