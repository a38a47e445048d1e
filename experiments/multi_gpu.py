"""Runs what experiments/scale.md lists as not run: ten steps on several GPUs, with each kind of sharding and with vLLM.

    python experiments/multi_gpu.py --processes 8 --engine engine/bin/python

Each run is the README's command with a launcher before it, on the embedded model. The table compares it with a run on
one process. It also runs on a machine without a GPU, with gloo; this only tests the commands and the table.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path

from echoink.common.files import read_rows

STEPS = 10


def runs(engine: str | None) -> dict[str, list[str]]:
    """Names of the runs and the overrides of each; the first is on one process."""
    zero = importlib.util.find_spec("deepspeed") is not None
    found = {"single": ["trainer=single"]}
    for trainer in ("ddp", "fsdp2", *(("zero2", "zero3") if zero else ())):
        found[trainer] = [f"trainer={trainer}"]
    found["fsdp2, bfloat16"] = ["trainer=fsdp2", "trainer.bf16=true"]
    found["fsdp2, LoRA"] = ["trainer=fsdp2", "adapter=lora"]
    if engine:
        by_vllm = ["trainer=fsdp2", "generation=vllm", f"generation.vllm.python={engine}"]
        found["fsdp2, vLLM"] = by_vllm
        found["fsdp2, vLLM awake"] = [*by_vllm, "generation.vllm.sleep=false"]
        found["fsdp2, vLLM, bfloat16"] = [*by_vllm, "trainer.bf16=true"]
        found["fsdp2, vLLM, LoRA"] = [*by_vllm, "adapter=lora"]
    return found


def run(folder: Path, processes: int, words: list[str]) -> bool:
    """Run the command; returns whether it succeeded. The log is beside the run's folder."""
    common = [f"trainer.steps={STEPS}", f"trainer.prompts_per_step={2 * processes}", "trainer.micro_batch_prompts=1"]
    common += ["eval.base=false", "eval.watched=0", "eval.limit=16", "tracking=off", f"hydra.run.dir={folder}"]
    alone = words[0] == "trainer=single"
    launcher = [] if alone else ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "w") as log:
        command = [sys.executable, "-m", *launcher, "echoink.train", *words, *common]
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode == 0


def compared(folder: Path, one: Path, adapts: bool) -> str:
    """Cells of the table: how far a run is from that on one process if the same weights learn, and its times."""
    mine, theirs = (read_rows(path / "metrics.jsonl") for path in (folder, one))
    texts = [[row["text"] for row in read_rows(path / "completions/step-1.jsonl")] for path in (folder, one)]
    same = texts[0] == texts[1]
    gradient = "" if adapts or not same else f"{abs(mine[0]['train/grad_norm'] / theirs[0]['train/grad_norm'] - 1):.0e}"
    late = mine[STEPS // 2 :]
    seconds = [statistics.fmean(entry[f"time/{part}"] for entry in late) for part in ("rollout", "update", "step")]
    told = [entry["engine/logp_difference_mean"] for entry in mine if "engine/logp_difference_mean" in entry]
    apart = f"{statistics.fmean(told):.0e}" if told else ""
    times = " | ".join(f"{value:.2f}" for value in seconds)
    return f"{'the same' if same else 'others'} | {gradient} | {apart} | {times}"


def main() -> None:
    """Run all of them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="processes of each run but the first; one per GPU")
    parser.add_argument("--engine", help="a Python that has vLLM; without it runs with vLLM are left out")
    parser.add_argument("--folder", type=Path, default=Path("outputs/several_gpus"), help="for the runs and their logs")
    asked = parser.parse_args()
    folder = asked.folder / time.strftime("%Y-%m-%d_%H-%M-%S")
    print(
        "| | completions of step 1 | its gradient norm off by | engine off by, nats | rollout s | update s | step s |"
    )
    print("|" + "---|" * 7)
    for name, words in runs(asked.engine).items():
        place = folder / name.replace(", ", "-").replace(" ", "-")
        if run(place, asked.processes, [*words, "trainer.completions_every=1"]):
            cells = compared(place, folder / "single", "adapter=lora" in words)
        else:
            cells = f"failed, see {place.with_suffix('.log')} | | | | |"
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
