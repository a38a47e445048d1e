"""The stable names of the training metrics."""

METRICS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/lr",
    "skipped": "train/skipped",
}
"""What transformers calls a metric, and what `metrics.jsonl` and MLflow call it."""

GROUPS = ("reward/", "completion/", "grpo/", "engine/", "time/", "perf/", "integration/", "reflection/")
"""Beginnings of the names that our own code gives."""


def metrics_of(logs: dict[str, float]) -> dict[str, float]:
    """The stable metrics in what a trainer logged; the rest, TRL's and transformers' own, is left out."""
    renamed = {METRICS[name]: value for name, value in logs.items() if name in METRICS and value is not None}
    return renamed | {name: value for name, value in logs.items() if name.startswith(GROUPS)}
