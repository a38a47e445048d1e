"""The stable names of the training metrics."""

METRICS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/lr",
    "skipped": "train/skipped",
}
"""A metric's name in a trainer's log, and its name in `metrics.jsonl` and MLflow."""

GROUPS = ("reward/", "completion/", "grpo/", "engine/", "time/", "perf/", "integration/", "reflection/")
"""Prefixes of the names that our own code gives."""


def metrics_of(logs: dict[str, float]) -> dict[str, float]:
    """The metrics of a trainer's log under their stable names, without TRL's and transformers' other metrics."""
    logs = {name: value for name, value in logs.items() if value is not None}  # TRL averages NaN to None
    renamed = {METRICS[name]: value for name, value in logs.items() if name in METRICS}
    return renamed | {name: value for name, value in logs.items() if name.startswith(GROUPS)}
