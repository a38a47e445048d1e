"""Two processes under DDP (gloo, CPU) against one: the same loss, gradients, metrics, completions and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

COMMON = [
    "grpo.group_size=4",
    "generation.max_new_tokens=48",
    "trainer.prompts_per_step=4",
    "trainer.micro_batch_prompts=1",
    "trainer.learning_rate=1e-3",
    "trainer.steps=2",
]
CASES = {
    "kl": ["grpo.beta=0.05"],
    "silent groups": ["grpo.beta=0"],
    "lora": ["grpo.beta=0.05", "adapter=lora"],
    "plain rows": ["grpo.beta=0.05", "grpo.shared_prefix=false"],
}


@pytest.fixture(scope="module")
def found(dataset, tmp_path_factory):
    cases = json.dumps([[*COMMON, *settings] for settings in CASES.values()])
    results = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"on_{processes}")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        worker = str(Path(__file__).parent / "distributed_worker.py")
        # one thread each: sums in another order are not what is compared here
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        start = launcher if processes > 1 else [sys.executable]
        run = subprocess.run(
            [*start, worker, str(dataset), str(folder), cases],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        results[processes] = dict(zip(CASES, torch.load(folder / "found.pt"), strict=True))
    return results


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does(found, case):
    one, two = found[1][case], found[2][case]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["wrapped"] == "DistributedDataParallel"
    assert [row["text"] for row in one["rollouts"]] == [row["text"] for row in two["rollouts"]]
    assert [row["id"] for row in one["rollouts"]] == [row["id"] for row in two["rollouts"]]
    assert (one["gradient"] - two["gradient"]).norm() <= 1e-5 * one["gradient"].norm() > 0
    for first, second in zip(one["metrics"], two["metrics"], strict=True):
        assert set(first) == set(second)
        for name in first:
            if not name.startswith(("time/", "perf/")):
                assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-6), name
    assert (one["weights"] - two["weights"]).norm() <= 1e-5 * one["weights"].norm()


def test_in_the_case_of_silent_groups_one_rank_has_a_signal_while_the_other_has_none(found):
    """Else it would show nothing. Of a step's four prompts each rank has two, one per micro-batch."""
    rows = found[2]["silent groups"]["rollouts"]
    rewards = [{row["accuracy"] + row["format"] for row in rows[start : start + 4]} for start in range(0, len(rows), 4)]
    loud = [len(group) > 1 for group in rewards]
    pairs = [(loud[step + k], loud[step + 2 + k]) for step in (0, 4) for k in (0, 1)]
    assert any(first != second for first, second in pairs)
