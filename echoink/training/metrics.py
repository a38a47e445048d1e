"""The stable names of the training metrics."""

METRICS = {
    "rewards/accuracy/mean": "reward/accuracy",
    "rewards/format/mean": "reward/format",
    "rewards/custom/mean": "reward/custom",
    "rewards/integration/mean": "reward/integration",
    "reward": "reward/total",
    "completions/mean_length": "completion/mean_length",
    "completions/clipped_ratio": "completion/clipped_ratio",
    "kl": "grpo/kl",
    "entropy": "grpo/entropy",
    "frac_reward_zero_std": "grpo/zero_std_ratio",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/lr",
    "skipped": "train/skipped",
    "sampling/sampling_logp_difference/mean": "engine/logp_difference_mean",
    "sampling/sampling_logp_difference/max": "engine/logp_difference_max",
    "sampling/importance_sampling_ratio/min": "engine/ratio_min",
    "sampling/importance_sampling_ratio/mean": "engine/ratio_mean",
    "sampling/importance_sampling_ratio/max": "engine/ratio_max",
}
"""TRL's metric names and ours, which are stable."""

AS_THEY_ARE = ("time/", "perf/", "integration/", "reflection/")
"""Metrics of our own, logged under their names."""


def metrics_of(logs: dict[str, float]) -> dict[str, float]:
    """The stable metrics in what TRL logged: those of `METRICS` under our names, ours as they are."""
    renamed = {METRICS[name]: value for name, value in logs.items() if name in METRICS and value is not None}
    return renamed | {name: value for name, value in logs.items() if name.startswith(AS_THEY_ARE)}
