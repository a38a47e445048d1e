"""Times a rollout on a CPU with waiting threads that spin, alone and beside other programs.

    python experiments/waiting_threads.py rounds=3 others=0,1,2

It runs rollouts of the embedded model (8 prompts, G = 8), with GNU OpenMP's default GOMP_SPINCOUNT and with that of
`common/startup.py`, while `others` other processes compute all the time. The settings take turns, each in its own
process: five rollouts after one that is not counted. Prints the median seconds of a rollout.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from echoink.common.startup import SPIN

WAYS = {"300,000 turns": "300000", f"{int(SPIN):,} turns": SPIN}
PROMPTS, GROUP, ROLLOUTS = 8, 8, 6


def measure(folder: str) -> list[float]:
    """Seconds of each rollout except the first."""
    # PyTorch reads the environment when it is imported, so only the measuring process imports it.
    import torch

    from echoink.config.compose import compose
    from echoink.data.splits import first_samples
    from echoink.rollout.generate import decoder_for, generate
    from echoink.rollout.sampling import uniforms
    from echoink.training.setup import load_for_inference

    sizes = [f"dataset.train={PROMPTS}", "dataset.dev=1", "dataset.valid=1"]
    config = compose([f"dataset.path={folder}", *sizes])[0].config
    loaded = load_for_inference(config, "tiny")
    samples, _ = first_samples(config.dataset, "train", PROMPTS)
    prompts, sampling = [loaded.processor(sample) for sample in samples], loaded.sampling
    decoder, seconds = decoder_for(loaded.model), []
    for number in range(ROLLOUTS):
        noise = [uniforms(0, number, sample.id, group_size=GROUP, length=sampling.max_new_tokens) for sample in samples]
        began = time.perf_counter()
        generate(
            loaded.model,
            prompts,
            torch.stack(noise),
            temperatures=[sampling.temperature] * GROUP,
            sampling=sampling,
            decoder=decoder,
        )
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def main(words: list[str]) -> None:
    settings = dict(word.split("=", 1) for word in words)
    if "folder" in settings:
        print(json.dumps(measure(settings["folder"])))
        return
    others = map(int, settings.get("others", "0,1,2").split(","))
    taken = {(way, number): [] for number in others for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(int(settings.get("rounds", 3))):
            for (way, number), seconds in taken.items():
                busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
                command = [sys.executable, __file__, f"folder={folder}/set"]
                environment = {**os.environ, "GOMP_SPINCOUNT": WAYS[way]}
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
                for process in busy:
                    process.kill()
                seconds.extend(json.loads(said.splitlines()[-1]))
    print("| other processes | waiting threads spin | seconds per rollout, median | least to most |\n|---|---|---|---|")
    for (way, number), seconds in taken.items():
        print(f"| {number} | {way} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
