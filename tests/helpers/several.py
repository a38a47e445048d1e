"""Runs of several processes: how they are started, how one of them dies, what they leave."""

import socket
from pathlib import Path

from tests.helpers import processes
from tests.helpers.entry import SMALL, lines

RUN = [
    *SMALL,
    "trainer=fsdp2",
    "trainer.micro_batch_prompts=1",
    "trainer.steps=6",
    "trainer.save_every=1",
    "trainer.learning_rate=1e-3",
    "trainer.completions_every=1",
    "grpo.beta=0.04",
    "eval.every=3",
    "eval.watched=1",
    "eval.batch_prompts=2",
    "eval.cache=null",
    "tracking.machine_every=0",
]
COMMAND = "import sys; sys.argv[0] = 'echoink'; from echoink.train import main; main()"
DIES_AFTER_STEP_2 = """
import os
from echoink.training.trainer import EchoInkTrainer
from tests.helpers.paths import ROOT
log = EchoInkTrainer.log
def dies(self, *words, **more):
    log(self, *words, **more)
    if self.state.global_step == 2:
        os._exit(3)
EchoInkTrainer.log = dies
"""


def start(
    place: Path, words: list[str], before: dict[int, str] | None = None, n: int = 2, code: str = COMMAND
) -> list[processes.Started]:
    """Start the processes of a run as torchrun does, each with code of its own before what all of them run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        processes.start(
            place, *words, code=(before or {}).get(rank, "") + code, RANK=str(rank), LOCAL_RANK=str(rank), **common
        )
        for rank in range(n)
    ]


def logged(folder: Path) -> list[dict]:
    """What a run logged, but for times."""
    timed = ("time/", "perf/", "timestamp")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in lines(folder / "metrics.jsonl")]
