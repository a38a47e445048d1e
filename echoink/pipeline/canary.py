"""Do updates reach the engine? `python -m echoink.doctor canary=true generation.vllm.python=…`.

A reward that pays for nothing but length makes any model write longer within a few steps, if the rollouts come from the
weights that learn. So a short run for each way in which weights pass (whole, LoRA, QLoRA, on a GPU also asleep and
awake) must end with longer completions than it began with.
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
"""How many times longer completions must be in the last quarter of the steps than in the first rollout."""
DEFAULTS = ["generation=vllm", "dataset.train=64", "tracking=off"]
"""What the user's words may change."""
SHORT = ["reward.lambda_acc=0", "reward.lambda_fmt=0", "reward.lambda_file=1", "grpo.beta=0", "grpo.group_size=8"]
SHORT += ["trainer.steps=8", "trainer.prompts_per_step=4", "trainer.micro_batch_prompts=1", "trainer.schedule=constant"]
SHORT += ["eval.base=false", "eval.limit=2", "eval.watched=0"]
ROOM = (96, 512)
"""Most tokens of a completion of the embedded model, and of a large one: several times what it begins with."""
RATES = {"whole": (1e-3, 1e-5), "lora": (1e-2, 5e-4), "qlora": (1e-2, 5e-4)}
"""Learning rates of the embedded model, where they were tried, and of a large one, where they were not."""


@dataclass(frozen=True)
class Canary:
    """What came of a mode."""

    mode: str
    first: float
    """Mean tokens of a completion in the first rollout."""
    last: float
    """In the last quarter of the rollouts."""
    failed: str = ""
    """Why the run ended before its time."""

    @property
    def good(self) -> bool:
        return not self.failed and self.last > RISE * self.first


def modes(gpu: bool) -> dict[str, list[str]]:
    """The ways in which weights pass, and the words that choose them."""
    kinds = {"whole": ["adapter=none"], "lora": ["adapter=lora"]}
    if importlib.util.find_spec("bitsandbytes"):
        kinds["qlora"] = ["adapter=qlora"]
    if not gpu:  # where an engine gives back no memory
        return kinds
    states = {"asleep": "generation.vllm.sleep=true", "awake": "generation.vllm.sleep=false"}
    return {f"{kind}, {state}": [*words, word] for kind, words in kinds.items() for state, word in states.items()}


def train(words: Sequence[str], folder: Path) -> str:
    """Run the command once; return its error and hint if it failed."""
    done = subprocess.run([sys.executable, "-m", "echoink.train", *words], cwd=folder, capture_output=True, text=True)
    return "" if not done.returncode else last_error(done.stderr)


def run_all(
    words: Sequence[str], tiny: bool, gpu: bool, folder: Path, run: Callable[[Sequence[str], Path], str] = train
) -> Iterator[Canary]:
    """Try every mode.

    Args:
        words: the user's overrides; what the canary itself sets, above all reward, rate and steps, comes after them.
        tiny: whether the model is the embedded one.
        gpu: whether there is one.
        folder: where the runs lie.
        run: starts one in `folder` and waits for it.
    """
    (folder / "longer.py").write_text(REWARD)
    for mode, chosen in modes(gpu).items():
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
