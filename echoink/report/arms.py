"""Runs compared: the arms of an ablation, and differences paired by seed.

An arm is all runs that differ only in the seed, or in how the work was divided. Only the runs' folders are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from echoink.common.statistics import Seeds, holm, over_seeds
from echoink.run_folder.reader import Run, defaults, overrides

CONTENTS = {
    "rewards/": ("reward.file",),
    "data/": ("task", "dataset.", "eval.split", "eval.limit", "eval.dev_samples"),
}
"""The keys of `Run.contents`, each with prefixes of the configuration keys that point to those files."""

DIVISION = ("eval.batch_prompts", "trainer.gradient_checkpointing", "trainer.processes", "trainer.micro_batch_prompts")
"""Keys that say how the work is divided: only the last digits depend on them, except for `grpo.loss=bnpo`."""

SHORT = {
    "grpo.group_size": "G",
    "grpo.beta": "β",
    "grpo.scale": "scale",
    "grpo.loss": "loss",
    "grpo.advantage": "advantage",
    "trainer.learning_rate": "learning rate",
    "reward.file": "reward",
    "reward.integration": "rule",
    "rewards/": "reward file",
    "data/": "data",
    "grpo.modality_dropout": "modality dropout",
    "dataset.shortcut_share": "shortcut",
    "dataset.curriculum": "curriculum",
    "changed": "changed between steps:",
}
"""Names of keys in labels, the paper's where it has one. A weight `reward.lambda_x` is λ_x, see `short`."""


def short(key: str) -> str:
    """The name of a key in labels."""
    return SHORT.get(key) or key.replace("reward.lambda_", "λ_")


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys in which runs differ, except the seed; a key of `CONTENTS` where one path had different contents.

    A key of `DIVISION` is among them only if runs of one seed differ in nothing else, as in a sweep over it.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "seed")
    differ = [key for key in keys if len({repr(run.config.get(key)) for run in runs}) > 1]
    found = [key for key in differ if key not in DIVISION]
    alike: dict[str, list[Run]] = {}
    for run in runs:
        # BNPO averages over the tokens of a micro-batch: its runs may always differ.
        same = "" if run.config.get("grpo.loss") == "bnpo" else repr([run.seed, *map(run.config.get, found)])
        alike.setdefault(same, []).append(run)
    division = [key for key in differ if key in DIVISION]
    found += [k for k in division if any(len({repr(r.config.get(k)) for r in of}) > 1 for of in alike.values())]
    for content, beginnings in CONTENTS.items():
        digests: dict[str, set[str]] = {}
        for run in runs:
            if digest := run.contents[content]:
                named = repr([(key, run.config[key]) for key in sorted(run.config) if key.startswith(beginnings)])
                digests.setdefault(named, set()).add(digest)
        found += [content] if any(len(several) > 1 for several in digests.values()) else []
    return found + (["changed"] if len({repr(run.changed) for run in runs}) > 1 else [])


def _value(run: Run, key: str) -> Any:
    if key == "changed":
        return ", ".join(run.changed) or None
    return run.contents[key] if key in CONTENTS else run.config.get(key)


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the seed only, see `differing`."""

    values: tuple[tuple[str, Any], ...]
    """The keys in which the arms differ, with this arm's values."""
    runs: tuple[Run, ...]
    repeated: tuple[Run, ...] = ()
    """Runs left out, because a later run has the same settings and the same seed."""

    @property
    def label(self) -> str:
        """ "λ_fmt 0.5 · scale none"."""
        parts = [f"{short(key)} {_short(value)}" for key, value in self.values if not key.startswith("prompt.")]
        prompts = [value for key, value in self.values if key.startswith("prompt.")]
        parts += [f"prompt {self._prompt or _short(prompts[0])}"] if prompts else []
        return " · ".join(parts) or "all runs"

    @property
    def _prompt(self) -> str | None:
        """The name of the prompt's file on the command line; the prompt's text is too long for a label."""
        words = overrides(self.runs[0].folder)
        return next((word.partition("=")[2] for word in words if word.startswith("prompt=")), None)

    def of_seed(self, name: str) -> dict[int, float]:
        """A number of the final evaluation, such as `accuracy`, by seed."""
        return {run.seed: run.result[name] for run in self.runs if run.finished and run.result[name] is not None}


def _short(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and value.endswith(".py"):
        return Path(value).stem
    line = " ".join(str(value).split())
    return line if len(line) <= 40 else line[:39] + "…"


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Group runs into arms, in order of appearance; of each seed only the last finished run counts."""
    keys = differing(runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr([_value(run, key) for key in keys]), []).append(run)
    found = []
    for group in groups.values():
        kept = {run.seed: run for run in group}
        for run in sorted(group, key=lambda run: (run.finished, run.summary.get("started") or 0)):
            kept[run.seed] = run
        values = tuple((key, _value(group[0], key)) for key in keys)
        left_out = tuple(run for run in group if run.finished and run is not kept[run.seed])
        found.append(Arm(values, tuple(kept.values()), left_out))
    return found


def reference(found: Sequence[Arm]) -> Arm:
    """The arm that the others are compared with: the one with the most default values, the first on a tie."""
    return max(found, key=lambda arm: sum(defaults().get(key) == value for key, value in arm.values))


@dataclass(frozen=True)
class Difference:
    """An arm against the reference."""

    arm: Arm
    seeds: Seeds | None
    """Differences paired by seed; None where the two arms share fewer than two seeds or answered other questions."""
    adjusted_p: float | None
    """The p value, adjusted by Holm over all arms."""
    same_questions: bool = True


def same_questions(found: Sequence[Arm]) -> bool:
    """Whether the runs of arms were evaluated on the same samples, as far as their folders say."""
    done = [run for arm in found for run in arm.runs if run.finished and run.result]
    digests = {run.questions for run in done} - {None}
    return len({run.result["n"] for run in done}) <= 1 and len(digests) <= 1


def differences(found: Sequence[Arm], against: Arm) -> list[Difference]:
    """For every arm but the reference, the difference in the final accuracy, paired by seed.

    Two runs with one seed see the same prompts in the same order and the same noise, so paired differences vary less
    than runs do. p is from the paired t test, adjusted by Holm over the arms.
    """
    ours, made = against.of_seed("accuracy"), []
    for arm in found:
        if arm is not against:
            theirs, same = arm.of_seed("accuracy"), same_questions([arm, against])
            both = [theirs[seed] - ours[seed] for seed in ours if seed in theirs and same]
            made.append(Difference(arm, over_seeds(both) if len(both) > 1 else None, None, same))
    p_values = {n: d.seeds.p_value for n, d in enumerate(made) if d.seeds and d.seeds.p_value is not None}
    adjusted = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    return [replace(d, adjusted_p=adjusted.get(n)) for n, d in enumerate(made)]
