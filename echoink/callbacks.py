"""What happens beside a training step: metrics to disk and MLflow, rollout samples, the progress bar, checkpoints."""

from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback

from echoink import checkpoint
from echoink.console import bar, console
from echoink.tracking import RunFolder, Tracker
from echoink.trainer import EchoInkTrainer, metrics_of


class Recorder(TrainerCallback):
    """Writes every logged step to `metrics.jsonl`, then to MLflow, and shows it on the progress bar.

    Args:
        files: the run's folder.
        tracker: the run in MLflow.
        steps: steps in all.
        completions: B·G of a rollout, for the second axis `completions_seen`.
        updates_per_rollout: steps that share a rollout.
    """

    def __init__(self, files: RunFolder, tracker: Tracker, steps: int, completions: int, updates_per_rollout: int):
        self._files, self._tracker = files, tracker
        self._steps, self._completions, self._updates = steps, completions, updates_per_rollout
        self._newest: dict[str, float] = {}
        self._bar = bar("train")
        self._task = self._bar.add_task("train", total=steps, text="")

    def on_train_begin(self, args, state, control, **_) -> None:
        if state.is_world_process_zero:
            self._bar.start()

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if not state.is_world_process_zero:
            return
        step, metrics = state.global_step, metrics_of(logs)
        metrics["completions_seen"] = -(-step // self._updates) * self._completions
        self._files.append("metrics.jsonl", [{"step": step, "epoch": state.epoch, **metrics}])
        self._tracker.metrics(metrics, step)
        self._newest |= metrics  # a step that reuses a rollout has no rewards of its own
        text = (
            f"accuracy {self._newest['reward/accuracy']:.2f} · format {self._newest['reward/format']:.2f} · "
            f"length {self._newest['completion/mean_length']:.0f} · {metrics['time/step']:.1f} s/step"
        )
        self._bar.update(self._task, completed=step, text=text)
        if not console.is_terminal and (step % 10 == 0 or step == self._steps):
            console.print(f"train     {step}/{self._steps} · {text}")

    def close(self) -> None:
        """Take the bar off the screen, when training has ended or failed."""
        self._bar.stop()


class Keeper(TrainerCallback):
    """Saves a checkpoint every so many steps and at the end.

    Args:
        run: the run's folder.
        every: steps between checkpoints, 0 for only the last.
        keep: newest checkpoints kept.
    """

    def __init__(self, run: Path, every: int, keep: int):
        self._run, self._every, self._keep = run, every, keep
        self.trainer: EchoInkTrainer | None = None
        self.newest: Path | None = None

    def on_step_end(self, args, state, control, **_) -> None:
        last = state.global_step == state.max_steps
        if not last and not (self._every and state.global_step % self._every == 0):
            return
        trainer = self.trainer
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all processes take part
        if not state.is_world_process_zero:
            return

        def write(folder: Path) -> None:
            model = trainer.accelerator.unwrap_model(trainer.model)
            model.generation_config.eos_token_id = trainer.eos_token_ids  # transformers keeps only the tokenizer's
            model.save_pretrained(folder, state_dict=weights)
            trainer.processing_class.save_pretrained(folder)

        self.newest = checkpoint.save(self._run, state.global_step, write, self._keep)


def completions_writer(files: RunFolder, every: int) -> Callable[[list[dict]], None]:
    """Keeps the first rollout and the next one after every `every` steps, in `completions/step-N.jsonl`."""
    due = 1

    def write(rows: list[dict]) -> None:
        nonlocal due
        step = rows[0]["step"]
        if every and step >= due:
            due = (step // every + 1) * every
            files.append(f"completions/step-{step}.jsonl", rows)

    return write
