"""The table of experiments/integration.md, from the folders of its runs.

    python experiments/shortcut.py outputs/shortcut

For each arm: accuracy on validation, with each sense taken away, and how much of the gap between plain GRPO on the set
with the shortcut and on the set without it closes: the mean over seeds of (arm - plain), paired by seed, with Student's
t interval, over the mean of (clean - plain). Beside it, how many validation answers stand at the letter that the cue
points at, which there means nothing.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from echoink.common.files import read_rows
from echoink.common.statistics import Seeds, over_seeds
from echoink.data import synthetic
from echoink.run_folder import reader
from echoink.run_folder.folder import PREDICTIONS
from echoink.run_folder.reader import Run

VARIANTS = ("no_audio", "no_image", "text_only", "swapped_audio", "swapped_image")


def arm(run: Run) -> str:
    """What a run's arm is called here."""
    config, where = run.config, "" if run.config["dataset.shortcut_share"] else ", no shortcut in training"
    if config["reward.lambda_int"]:
        return f"{config['reward.integration']}, λ_int {config['reward.lambda_int']:g}{where}"
    if config["reward.file"]:
        return f"{Path(config['reward.file']).stem}{where}"
    if config["grpo.modality_dropout"]:
        return f"modality dropout {config['grpo.modality_dropout']:g}{where}"
    if config.get("dataset.curriculum"):
        return "curriculum by need"
    return "plain GRPO" if config["dataset.shortcut_share"] else "no shortcut in training"


def main(folders: Sequence[str]) -> None:
    arms: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in reader.find(map(Path, folders)):
        if run.finished and run.summary.get("final"):
            arms[arm(run)][run.seed] = run
    accuracy = {name: {s: run.result["accuracy"] for s, run in runs.items()} for name, runs in arms.items()}
    plain, clean = accuracy["plain GRPO"], accuracy["no shortcut in training"]
    both = [seed for seed in plain if seed in clean]
    gap = sum(clean[s] - plain[s] for s in both) / len(both)
    heads = ("arm", "n", "accuracy", "gap closed", "at the cue", *VARIANTS, "tokens", "s/step, of it integration")
    print(f"| {' | '.join(heads)} |")
    print("|" + "---|" * len(heads))
    for name, runs in arms.items():
        found = over_seeds(list(accuracy[name].values()))
        closed = ""
        if name not in ("plain GRPO", "no shortcut in training"):
            closed = told(over_seeds([accuracy[name][s] - plain[s] for s in runs if s in plain]), gap)
        without = []
        for variant in VARIANTS:
            values = [run.result["ablations"][variant]["accuracy"] for run in runs.values()]
            without.append(f"{100 * sum(values) / len(values):.1f}")
        tokens = [run.result["mean_tokens"] for run in runs.values()]
        steps = [row for run in runs.values() for row in run.metrics]
        extra = sum(row.get("time/integration", 0) for row in steps) / len(steps)
        step = sum(row["time/step"] for row in steps) / len(steps)
        followed = over_seeds([cued(run, "final") for run in runs.values()])
        cells = [
            name,
            str(len(runs)),
            told(found),
            closed,
            f"{100 * followed.mean:.1f}",
            *without,
            f"{sum(tokens) / len(tokens):.0f}",
        ]
        print(f"| {' | '.join(cells)} | {step:.2f}, {extra:.2f} |")
    base = next(iter(arms["plain GRPO"].values())).summary["base"]
    without = [f"{100 * base['ablations'][variant]['accuracy']:.1f}" for variant in VARIANTS]
    followed = f"{100 * cued(next(iter(arms['plain GRPO'].values())), 'base'):.1f}"
    cells = ["the base", "", f"{100 * base['accuracy']:.1f}", "", followed, *without, f"{base['mean_tokens']:.0f}", ""]
    print(f"| {' | '.join(cells)} |")
    print(f"\na guess: {100 * base['chance']:.1f} %")
    for name, runs in arms.items():
        for metric in ("integration/fires", "integration/gain", "reward/integration"):
            rows = [[r[metric] for r in run.metrics if metric in r] for run in runs.values()]
            if all(rows):
                tenth = [max(1, len(values) // 10) for values in rows]
                first = sum(sum(v[:t]) / t for v, t in zip(rows, tenth, strict=True)) / len(rows)
                last = sum(sum(v[-t:]) / t for v, t in zip(rows, tenth, strict=True)) / len(rows)
                print(f"{name}: {metric} {first:.3f} → {last:.3f} (first and last tenth of training)")


def cued(run: Run, phase: str) -> float:
    """Share of a phase's answers to validation questions that are the letter of the cue."""
    answers = [
        row
        for row in read_rows(run.folder / PREDICTIONS)
        if (row["phase"], row["variant"], row["draw"]) == (phase, "full", "sampled")
    ]
    hits = []
    for row in answers:
        scene, _ = synthetic.draw(synthetic.generator(run.config["dataset.seed"], "valid", int(row["id"])), "both")
        hits.append(row["letters"] == row["options"][synthetic.cue(scene, "ear", len(row["options"]))][0])
    return sum(hits) / len(hits)


def told(found: Seeds, of: float = 1.0) -> str:
    """Mean in percent with its interval, as a share of something."""
    if found.interval is None:
        return f"{100 * found.mean / of:.1f}"
    low, high = (100 * end / of for end in found.interval)
    return f"{100 * found.mean / of:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
