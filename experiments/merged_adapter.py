"""How much of a LoRA update is left if it is merged into bfloat16 weights: the table of scale.md.

python experiments/merged_adapter.py
"""

import torch

WIDTH, RANK, SCALING, SIGMA = 2048, 16, 2, 0.02


def main() -> None:
    torch.manual_seed(0)
    weight = (SIGMA * torch.randn(WIDTH, WIDTH)).bfloat16().float()  # as a published model is stored
    a = (2 * torch.rand(RANK, WIDTH) - 1) / WIDTH**0.5  # as PEFT draws it
    signs = torch.randn(WIDTH, RANK).sign()  # n steps of Adam in one direction move each weight by n times the rate
    print("| entries of B | ‖ΔW‖ / ‖W‖ | share that arrives | weights that do not change |\n|---|---|---|---|")
    for size in (1e-5, 1e-4, 3e-4, 1e-3, 3e-3):
        update = SCALING * (size * signs) @ a
        received = (weight + update).bfloat16().float() - weight
        share = (received * update).sum() / update.square().sum()
        unchanged = (received == 0).float().mean()
        print(f"| {size:.0e} | {update.norm() / weight.norm():.1e} | {share:.0%} | {unchanged:.1%} |")


if __name__ == "__main__":
    main()
