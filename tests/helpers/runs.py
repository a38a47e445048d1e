"""Runs on disk, made without training: what reports, tables and MLflow read."""

import json
from pathlib import Path

from echoink.config.schema import to_yaml
from echoink.tracking.client import Record
from tests.helpers.configs import config_of

PICTURE, SOUND = "valid/images/sample_0.jpg", "valid/audios/sample_0.wav"


def make_run(
    folder: Path,
    overrides: list[str] = (),
    accuracy: float = 0.8,
    status: str = "finished",
    dataset: Path | None = None,
    parent: str | None = None,
) -> Path:
    """A run of two steps with its evaluations, samples that changed, a trace; media are of `dataset`."""
    config = config_of(*overrides)
    media = {"image": str(dataset / PICTURE), "audio": str(dataset / SOUND)} if dataset else {}
    asked = {"id": "valid_0", "problem": "What <b>is</b> it?", "options": ["A. x", "B. y"], "gold": "B", "media": media}
    (folder / "figures").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / ".hydra/overrides.yaml").write_text("".join(f"- {one}\n" for one in overrides))
    (folder / "config.yaml").write_text(to_yaml(config))
    environment = {"command": ["train.py", *overrides], "commit": "c0ffee1", "uncommitted_changes": False}
    environment |= {"platform": "Linux", "processors": 2, "python": "3.11", "versions": {"torch": "2.14.1"}}
    (folder / "environment.json").write_text(json.dumps(environment))

    def phase(value):
        numbers = {"accuracy": value, "n": 100, "interval": [value - 0.05, value + 0.05], "format": 0.9}
        return numbers | {"greedy_accuracy": value, "mean_tokens": 40.0}

    paired = {"test": "McNemar", "difference": 0.4, "interval": [0.3, 0.5], "gained": 45, "lost": 5}
    summary = {"status": status, "task": "train", "name": config.name, "seed": config.seed, "steps": 2, "seconds": 60.0}
    summary |= {"base": phase(0.4), "final": phase(accuracy), "paired": {**paired, "p_value": 1e-9}}
    summary |= {"mlflow": {"run_id": None}, "checkpoint": "checkpoints/step-2", "started": 1000, "ended": 61_000}
    summary |= {"error": None}
    if status != "finished":
        summary["final"] = None
    (folder / "summary.json").write_text(json.dumps(summary))
    rewards = {"reward/accuracy": accuracy, "reward/format": 1.0, "completion/mean_length": 50.0}
    rows(folder / "metrics.jsonl", [{"step": s, "timestamp": 1000 + s, **rewards} for s in (1, 2)])
    rows(
        folder / "eval.jsonl",
        [
            {"step": 0, "phase": "base", "timestamp": 1000, "eval/accuracy": 0.4},
            {"step": 2, "phase": "final", "timestamp": 1009, "eval/accuracy": accuracy},
        ],
    )
    evil = "<script>alert(1)</script>\n~~~~\n# not a heading"
    flips = [{**asked, "direction": d, "base": f"{d} base", "final": evil} for d in ("gained", "lost")]
    rows(folder / "flips.jsonl", flips)
    answers = [{**asked, "step": s, "correct": s > 10, "completion": f"answer at {s}"} for s in (0, 10, 20, 30)]
    rows(folder / "watched.jsonl", answers)
    numbers = {"tokens": 3, "accuracy": 1.0, "format": 0.0, "total": 1.0, "advantage": 0.5}
    rows(folder / "traces.jsonl", [{**asked, "step": 1, "g": g, "text": f"text {g}", **numbers} for g in (0, 1)])
    Record("made", ", ".join(overrides) or "run", {"seed": config.seed}, {}, parent=parent, started=1000).kept(folder)
    return folder


def rows(file: Path, content: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in content))
