"""Shared fixtures: a small synthetic set on disk, the embedded model, its processor. No test reaches the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and the model is tiny
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path

import hypothesis
import pytest
import torch

from echoink.common.startup import imports
from echoink.data import media_check, synthetic
from echoink.data.samples import Sample
from echoink.data.splits import read_split
from echoink.media.loaders import VideoCaps
from tests.helpers.configs import config_of

hypothesis.settings.register_profile("ours", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("ours")

# In this process files are read without processes of their own, each of which would be a fresh interpreter. Forked runs
# start them, and so do the tests of `worker_pool` and of a file that crashes its decoder.
media_check.isolated = lambda work, items, processes: map(work, items)

SLOW_FILES = (
    "test_launch",
    "test_resume",
    "test_train",
    "test_two_processes",
    "test_sharded_runs",
    "test_vllm_engine",
    "test_supervised",
    "test_commands",
    "test_difficulty",
    "test_tiny",
    "test_sync",
)

"""They begin first, so that no process is left alone with one of them at the end."""


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    with imports():  # of all test files
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOW_FILES.index(item.path.stem) if item.path.stem in SLOW_FILES else len(SLOW_FILES))


PROMPT = config_of().prompt
"""What the embedded base has learnt to answer."""

VIDEO = VideoCaps(fps=2, max_frames=4, max_pixels=112 * 112, grid=28)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    synthetic.write(root, seed=0, sizes={"train": 24, "dev": 6, "valid": 12})
    return root


@pytest.fixture(scope="session")
def samples(dataset) -> list[Sample]:
    return read_split(dataset, "train")


@pytest.fixture
def model():
    from tests.helpers.tiny import tiny_model

    torch.manual_seed(0)
    return tiny_model()


@pytest.fixture(scope="session")
def make_processor():
    """The prompt processor of a model."""
    from echoink.data.processor import Caps, PromptProcessor
    from echoink.models.loading import load_processor

    omni = load_processor("tiny", 112 * 112, 112 * 112)
    return lambda model: PromptProcessor(omni, model, PROMPT, Caps(10.0, VIDEO, 4096))


@pytest.fixture
def processor(make_processor, model):
    return make_processor(model)


@pytest.fixture(scope="session")
def prompts(make_processor, samples):
    """Model inputs of eight samples whose prompts differ in length."""
    from tests.helpers.tiny import tiny_model

    made = [make_processor(tiny_model())(sample) for sample in samples[:8]]
    assert len({len(prompt.input_ids) for prompt in made}) > 1
    return made
