"""Prints the numbers of the first table of experiments/scale.md: two processes compared with one, by kind of sharding.

    python experiments/sharded_run.py

These are relative differences of the first gradient and of the weights after two updates, and whether all completions
are the same, for the cases of tests/distributed/test_two_processes.py on the embedded model. It needs `pip install -e
".[zero]"`.
"""

import tempfile
from pathlib import Path

import torch

from echoink.data import synthetic
from tests.distributed.test_two_processes import KINDS, TOGETHER, WRAPPED, train


def apart(one: torch.Tensor, two: torch.Tensor) -> str:
    """The norm of the difference over the norm."""
    return f"{float((one - two).norm() / one.norm()):.0e}" if len(one) == len(two) else "–"


def main() -> None:
    found: dict = {}
    with tempfile.TemporaryDirectory() as place:
        synthetic.write(Path(place) / "set", seed=0, sizes={"train": 24, "dev": 6, "valid": 12})
        for trainers in TOGETHER:
            for slow in (False, True):
                folder = Path(place) / f"{trainers[0]}-{slow}"
                folder.mkdir()
                found |= train(Path(place) / "set", folder, trainers, slow)
    print("| case | trainer | gradient | weights | completions |")
    print("|---|---|---|---|---|")
    for kind in KINDS:
        one = found["single", kind]
        for trainer in WRAPPED:
            if two := found.get((trainer, kind)):
                gradient = "–" if trainer.startswith("zero") else apart(one["gradient"], two["gradient"])
                same = [row["text"] for row in one["rollouts"]] == [row["text"] for row in two["rollouts"]]
                weights = apart(one["weights"], two["weights"])
                print(f"| {kind} | {trainer} | {gradient} | {weights} | {'the same' if same else 'others'} |")


if __name__ == "__main__":
    main()
