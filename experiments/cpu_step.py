"""What a forward and backward pass on a CPU takes: the way attention is cut, its type, and the allocator.

    python experiments/cpu_step.py outputs/models/small rounds=5

Groups of a prompt and 8 completions through the packed loss under bfloat16 autocast, four ways in turns in one process:
attention as it was (a slice for each group, in bfloat16) and as it is (split once, in float32), each with glibc's own
settings and with those of `common/allocator.py`. Prints the median seconds of each, and how many pages the system
handed out.
"""

import resource
import statistics
import sys
import time
from ctypes import CDLL

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.utils import add_fused_lm_head

from echoink.common import allocator
from echoink.models import shared_prefix
from echoink.models.family import PromptInputs
from echoink.models.loading import load_model
from echoink.models.logprobs import score

PROMPTS, GROUP, PROMPT, COMPLETION = 8, 8, 140, 30


def sliced(query, key, value, layout, scale):
    """Attention as it was."""
    settings, outputs, completions = {"enable_gqa": True, "scale": scale}, [], []
    start, own = 0, layout.prefixes
    for prefix, lengths in layout.groups:
        first = [x[:, :, start : start + prefix] for x in (query, key, value)]
        outputs.append(scaled_dot_product_attention(*first, is_causal=True, **settings))
        own_rows = [
            pad_sequence(x[0, :, own : own + sum(lengths)].transpose(0, 1).split(lengths), batch_first=True)
            for x in (query, key, value)
        ]
        rows = [each.transpose(1, 2) for each in own_rows]
        keys, values = (
            torch.cat([before.expand(len(lengths), -1, -1, -1), after], 2)
            for before, after in zip(first[1:], rows[1:], strict=True)
        )
        causal = torch.ones(max(lengths), prefix + max(lengths), dtype=torch.bool).tril(prefix)
        found = scaled_dot_product_attention(rows[0], keys, values, attn_mask=causal, **settings)
        completions += [row[:, :length] for row, length in zip(found, lengths, strict=True)]
        start, own = start + prefix, own + sum(lengths)
    return torch.cat([*outputs, torch.cat(completions, 1)[None]], 2)


def glibc_default() -> None:
    """glibc's own settings again."""
    mallopt = CDLL(None).mallopt
    for what, value in ((-4, 65_536), (-1, 128 * 1024), (-2, 0), (-3, 128 * 1024)):
        mallopt(what, value)


def main(words: list[str]) -> None:
    path, rounds = words[0], int(dict(word.split("=") for word in words[1:]).get("rounds", 5))
    model = load_model(path).train()
    add_fused_lm_head(model)
    draw = torch.Generator().manual_seed(0)
    prompts = [
        PromptInputs(torch.randint(100, 400, (PROMPT,), generator=draw), torch.arange(PROMPT).expand(3, -1), {})
        for _ in range(PROMPTS)
    ]
    ids = torch.randint(100, 400, (PROMPTS * GROUP, COMPLETION), generator=draw)
    index = [n for n in range(PROMPTS) for _ in range(GROUP)]
    ways = {
        "sliced, bfloat16": (sliced, glibc_default),
        "split, float32": (shared_prefix.by_parts, glibc_default),
        "sliced, bfloat16, memory kept": (sliced, allocator.keep_freed),
        "split, float32, memory kept": (shared_prefix.by_parts, allocator.keep_freed),
    }
    taken = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms up
        for name, (attention, memory) in ways.items():
            shared_prefix.by_parts = attention
            memory()
            faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                logps, _ = score(model, prompts, [{}] * PROMPTS, index, ids, torch.ones_like(ids, dtype=torch.bool))
            logps.sum().backward()
            model.zero_grad()
            if turn:
                pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
                taken[name].append((time.perf_counter() - began, pages))
    print("| way | seconds, median | least to most | pages handed out |\n|---|---|---|---|")
    for name, found in taken.items():
        seconds, pages = zip(*found, strict=True)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"| {name} | {statistics.median(seconds):.2f} | {spread} | {statistics.median(pages):,.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
