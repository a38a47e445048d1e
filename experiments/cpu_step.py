"""Times a forward and backward pass on a CPU: how attention is split, its type, and the allocator.

    python experiments/cpu_step.py outputs/models/small rounds=3

It computes 8 groups of a prompt and 8 completions through the packed loss under bfloat16 autocast. Four variants take
turns, each in its own process: former attention (a slice for each group, in bfloat16) and today's (split once, in
float32), each with glibc's defaults and with `common/allocator.py`. Prints the median seconds per step, and how many
pages the system provided in the last one.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.utils import add_fused_lm_head

from echoink.common import allocator
from echoink.models import shared_prefix
from echoink.models.family import PromptInputs
from echoink.models.loading import load_model
from echoink.models.logprobs import packed_logprobs

PROMPTS, GROUP, PROMPT, COMPLETION = 8, 8, 140, 30


def sliced(query, key, value, layout, scale):
    """The former attention."""
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


WAYS = {
    "sliced, bfloat16": (sliced, False),
    "split, float32": (shared_prefix.by_parts, False),
    "sliced, bfloat16, memory kept": (sliced, True),
    "split, float32, memory kept": (shared_prefix.by_parts, True),
}


def measure(path: str, way: str) -> tuple[list[float], int]:
    """Seconds of three steps after a first one, and the pages that the system provided in the last one."""
    shared_prefix.by_parts, keeps = WAYS[way]
    if keeps:
        allocator.keep_freed()
    model = load_model(path).train()
    add_fused_lm_head(model)
    draw = torch.Generator().manual_seed(0)
    prompts = [
        PromptInputs(torch.randint(100, 400, (PROMPT,), generator=draw), torch.arange(PROMPT).expand(3, -1), {})
        for _ in range(PROMPTS)
    ]
    ids = torch.randint(100, 400, (PROMPTS * GROUP, COMPLETION), generator=draw)
    index, wanted = [n for n in range(PROMPTS) for _ in range(GROUP)], torch.ones_like(ids, dtype=torch.bool)
    seconds, pages = [], 0
    for _ in range(4):
        faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logps, _ = packed_logprobs(
                model, prompts, [{}] * PROMPTS, prompt_index=index, completion_ids=ids, scored=wanted
            )
        logps.sum().backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - began)
        pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return seconds[1:], pages


def main(words: list[str]) -> None:
    settings = dict(word.split("=", 1) for word in words[1:])
    if "way" in settings:
        print(json.dumps(measure(words[0], settings["way"])))
        return
    taken = {way: ([], []) for way in WAYS}
    for _ in range(int(settings.get("rounds", 3))):
        for way, (seconds, pages) in taken.items():
            command = [sys.executable, __file__, words[0], f"way={way}"]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            steps, last = json.loads(said.splitlines()[-1])
            seconds.extend(steps)
            pages.append(last)
    print("| variant | seconds per step, median | least to most | pages provided by the system |\n|---|---|---|---|")
    for way, (seconds, pages) in taken.items():
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"| {way} | {statistics.median(seconds):.2f} | {spread} | {statistics.median(pages):,.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
