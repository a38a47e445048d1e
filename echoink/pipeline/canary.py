"""Checks that updates reach the engine: `python -m echoink.doctor canary=true generation.vllm.python=…`.

A reward for length alone makes any model write longer within a few steps, if the rollouts come from the weights that
learn. So there is a short run for each way of passing weights (whole, LoRA, QLoRA if bitsandbytes is installed; on a
GPU each with the engine asleep and awake), and it must end with longer completions than it began with.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from echoink.common.errors import last_error
from echoink.common.files import read_rows

REWARD = """def reward(completion, sample):
    return len(completion) / 200
"""
RISE = 1.25
"""In the last quarter of the steps, completions must be more than this many times as long as in the first rollout."""
DEFAULTS = ["generation=vllm", "dataset.train=64", "tracking=off"]
"""Settings that the user's overrides may change."""
SHORT = ["reward.lambda_acc=0", "reward.lambda_fmt=0", "reward.lambda_file=1", "grpo.beta=0", "grpo.group_size=8"]
SHORT += ["trainer.steps=8", "trainer.prompts_per_step=4", "trainer.micro_batch_prompts=1", "trainer.schedule=constant"]
SHORT += ["eval.base=false", "eval.limit=2", "eval.watched=0", "trainer=single", "trainer.processes=1"]
NOT_TAKEN = ("adapter", "trainer.epochs=", "trainer=")
"""Beginnings of the user's overrides that the canary chooses itself."""
ROOM = (96, 512)
"""Cap on completion tokens, for the embedded model and for a large one: several times their first length."""
RATES = {"whole": (1e-3, 1e-5), "lora": (1e-2, 5e-4), "qlora": (1e-2, 5e-4)}
"""Learning rates for the embedded model, which were tried, and for a large one, which were not."""


@dataclass(frozen=True)
class Canary:
    """The result of one mode."""

    mode: str
    first: float
    """Mean tokens of a completion in the first rollout."""
    last: float
    """The same in the last quarter of the rollouts."""
    failed: str = ""
    """Why the run failed; empty if it did not."""

    @property
    def good(self) -> bool:
        return not self.failed and self.last > RISE * self.first


def modes(gpu: bool) -> dict[str, list[str]]:
    """The ways of passing weights, and the overrides that choose them."""
    kinds = {"whole": ["adapter=none"], "lora": ["adapter=lora"]}
    if importlib.util.find_spec("bitsandbytes"):
        kinds["qlora"] = ["adapter=qlora"]
    if not gpu:  # without a GPU an engine gives back no memory; in bfloat16 it gets an adapter apart
        return kinds | {"lora, bfloat16": [*kinds["lora"], "trainer.bf16=true"]}
    states = {"asleep": "generation.vllm.sleep=true", "awake": "generation.vllm.sleep=false"}
    return {f"{kind}, {state}": [*words, word] for kind, words in kinds.items() for state, word in states.items()}


def train(words: Sequence[str], folder: Path) -> str:
    """Run `echoink.train` once; return its error and hint if it failed, else an empty text."""
    done = subprocess.run([sys.executable, "-m", "echoink.train", *words], cwd=folder, capture_output=True, text=True)
    return "" if not done.returncode else last_error(done.stderr)


def run_all(
    words: Sequence[str],
    tiny: bool,
    gpu: bool,
    folder: Path,
    run: Callable[[Sequence[str], Path], str] = train,
    halves: bool = False,
) -> Iterator[Canary]:
    """Try every mode.

    Args:
        words: the user's overrides; the canary's own, above all reward, learning rate and steps, come after them.
        tiny: whether the model is the embedded one.
        gpu: whether there is a GPU.
        folder: the folder for the runs.
        run: runs the command in `folder` and waits for its end.
        halves: whether the model's weights are bfloat16, in which only an adapter learns.
    """
    (folder / "longer.py").write_text(REWARD, "utf-8")
    words = [word for word in words if not word.startswith(NOT_TAKEN)]
    for mode, chosen in modes(gpu).items():
        if halves and mode.startswith("whole"):
            continue
        rate = RATES[mode.partition(",")[0]][0 if tiny else 1]
        out = folder / mode.replace(", ", "-")
        own = [*SHORT, f"generation.max_new_tokens={ROOM[0 if tiny else 1]}", f"trainer.learning_rate={rate}", *chosen]
        own += ["reward.file=longer.py", f"hydra.run.dir={out}"]
        failed = run([*DEFAULTS, *words, *own], folder)
        rows = read_rows(out / "metrics.jsonl")
        lengths = [row["completion/mean_length"] for row in rows if "completion/mean_length" in row]
        if not lengths:
            yield Canary(mode, 0, 0, failed or "it trained nothing")
            continue
        last = lengths[-(-len(lengths) * 3 // 4) :] or lengths[-1:]
        yield Canary(mode, lengths[0], sum(last) / len(last), failed)
