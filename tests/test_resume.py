"""A run that is killed and taken up ends as one that nothing interrupted: byte for byte, but for times."""

import hashlib
import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from echoink import checkpoint, resume, tracking
from echoink.compose import compose
from echoink.errors import UserError
from tests import processes

SMALL = [
    "experiment=quickstart",
    "dataset.train=20",
    "dataset.dev=4",
    "dataset.valid=8",
    "eval.batch_prompts=3",
    "eval.every=4",
    "eval.cache=null",
    "eval.watched=1",
    "generation.max_new_tokens=32",
    "trainer.steps=8",
    "trainer.prompts_per_step=8",  # 20 prompts: an epoch is 3 steps
    "trainer.micro_batch_prompts=4",
    "trainer.save_every=1",
    "trainer.completions_every=1",
    "trainer.learning_rate=1e-3",
    "tracking=off",
]
SEVERAL = [*SMALL, "grpo.updates_per_rollout=3", "grpo.beta=0.04"]
"""Several updates of a rollout: a checkpoint may be in the middle of it."""


def left(folder: Path) -> dict[str, str]:
    """Digests of all that a run leaves and that must not depend on interruptions."""

    def digest(thing: object) -> str:
        return hashlib.sha256(repr(thing).encode()).hexdigest()[:12]

    def rows(name: str) -> list[dict]:
        return [
            {k: v for k, v in row.items() if not k.startswith(("time/", "perf/")) and k != "timestamp"}
            for row in tracking.read_rows(folder / name)
        ]

    found = {name: digest(rows(name)) for name in ("metrics.jsonl", "dev.jsonl", "eval.jsonl")}
    files = ["predictions.jsonl", "watched.jsonl", "flips.jsonl", "checkpoints/best.json"]
    files += [f"completions/step-{step}.jsonl" for step in range(1, 10)]
    for name in files:
        found[name] = digest((folder / name).read_bytes()) if (folder / name).is_file() else "absent"
    last = checkpoint.steps(folder)[-1]
    weights = "model.safetensors" if (last / "model.safetensors").is_file() else "adapter_model.safetensors"
    found["weights"] = digest([(k, v.numpy().tobytes()) for k, v in sorted(load_file(last / weights).items())])
    state = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    found["optimizer"] = digest([(k, n, v.numpy().tobytes()) for k, s in state.items() for n, v in s.items()])
    found["summary"] = digest([json.loads((folder / "summary.json").read_text())[k] for k in ("final", "paired")])
    return found | {"step": last.name}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resume")


def whole(place: Path, name: str, settings: list[str]) -> tuple[dict[str, str], float]:
    """A run that nothing interrupts: what it leaves, and how long it takes."""
    began = time.monotonic()
    done = processes.run(place, *settings, f"hydra.run.dir=outputs/{name}")
    assert done.returncode == 0, done.stderr
    return left(place / "outputs" / name), time.monotonic() - began


@pytest.fixture(scope="module")
def plain(place) -> tuple[dict[str, str], float]:
    whole(place, "first", [*SMALL, "trainer.steps=1"])  # writes the data, starts the fork server
    return whole(place, "plain", SMALL)


@pytest.fixture(scope="module")
def several(place, plain) -> tuple[dict[str, str], float]:
    return whole(place, "several", SEVERAL)


def killed_until_done(place: Path, name: str, settings: list[str], seconds: list[float]) -> list[str]:
    """Kill a run so many seconds after each of its starts, then let it end; where it was each time."""
    where, command = [], [*settings, "resume=auto", f"hydra.run.dir=outputs/{name}"]
    for wait in seconds:
        started = processes.start(place, *command)
        time.sleep(wait)
        started.kill()
        started.wait()
        newest, damaged = checkpoint.newest(place / "outputs" / name)
        assert not damaged
        where.append(newest.name if newest else "none")
    done = processes.run(place, *command)
    assert done.returncode == 0, done.stderr
    return where


@pytest.mark.parametrize("kind", ["plain", "several"])
def test_killed_at_some_instants_it_ends_the_same(place, request, kind):
    expected, takes = request.getfixturevalue(kind)
    settings = SMALL if kind == "plain" else SEVERAL
    where = killed_until_done(place, f"killed-{kind}", settings, [0.55 * takes, 0.5 * takes])
    assert left(place / "outputs" / f"killed-{kind}") == expected, where


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["plain", "several"])
def test_killed_at_any_instant_it_ends_the_same(place, request, kind, seed):
    expected, takes = request.getfixturevalue(kind)
    settings = SMALL if kind == "plain" else SEVERAL
    draw = random.Random(f"{kind} {seed}")
    seconds = [draw.uniform(0.1, 1) * takes for _ in range(2)]
    where = killed_until_done(place, f"any-{kind}-{seed}", settings, seconds)
    found = left(place / "outputs" / f"any-{kind}-{seed}")
    print(f"killed after {[f'{s:.2f} s' for s in seconds]} of {takes:.1f} at {where}: weights {found['weights']}")
    assert found == expected
