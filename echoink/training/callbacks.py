"""What happens beside a training step: metrics on disk and in MLflow, the progress bar, checkpoints, evaluations."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from echoink.common import signals
from echoink.common.console import bar, console, say
from echoink.common.errors import UserError, first_line
from echoink.config.schema import Config
from echoink.distributed import collectives, watchdog
from echoink.evaluation.evaluator import Evaluator
from echoink.run_folder import checkpoint
from echoink.run_folder.folder import RunFolder
from echoink.tracking import client
from echoink.tracking.logger import Tracker
from echoink.training.metrics import metrics_of
from echoink.training.setup import Job
from echoink.training.trainer import EchoInkTrainer


class Recorder(TrainerCallback):
    """Writes every logged step to `metrics.jsonl`, then to MLflow, and shows it on the progress bar.

    Args:
        config: the run's configuration.
        files: the run's folder.
        tracker: the run in MLflow.
        steps: total number of steps.

    Raises:
        UserError: in `on_log`, after more than `trainer.max_skipped_steps` skipped steps in a row.
    """

    def __init__(self, config: Config, files: RunFolder, tracker: Tracker, steps: int):
        self._files, self._tracker, self._steps = files, tracker, steps
        self._completions = config.trainer.prompts_per_step * config.grpo.group_size
        self._updates, self._alarm = config.grpo.updates_per_rollout, config.generation.vllm.alarm
        self._max_skipped, self._skipped, self._alarmed = config.trainer.max_skipped_steps, 0, False
        self._newest: dict[str, float] = {}
        self._bar = bar("train")
        self._task = self._bar.add_task("train", total=steps, text="")
        for row in files.read("metrics.jsonl"):  # of a resumed run
            self._count(row)

    def on_train_begin(self, args, state, control, **_) -> None:
        if state.is_world_process_zero:
            self._bar.update(self._task, completed=state.global_step)
            self._bar.start()

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if not state.is_world_process_zero:
            return
        step, metrics = state.global_step, metrics_of(logs)
        metrics["completions_seen"] = -(-step // self._updates) * self._completions
        row = self._files.numbers("metrics.jsonl", {"step": step, "epoch": state.epoch, **metrics})
        self._tracker.row(row)
        self._count(row)
        newest = self._newest
        text = (
            f"accuracy {newest['reward/accuracy']:.2f} · format {newest['reward/format']:.2f} · "
            f"length {newest['completion/mean_length']:.0f} · {metrics['time/step']:.1f} s/step"
        )
        self._bar.update(self._task, completed=step, text=text)
        if not console.is_terminal and (step % 10 == 0 or step == self._steps):
            console.print(f"train     {step}/{self._steps} · {text}")
        apart = row.get("engine/logp_difference_mean", 0.0)
        if apart > self._alarm and not self._alarmed:
            self._alarmed = True
            say(
                "warning",
                f"step {step}: the engine's log-probabilities are {apart:.2g} nats a token from the trainer's "
                f"(generation.vllm.alarm={self._alarm:g}): it samples from a different policy than the one in training",
            )
        if "train/skipped" in row:
            say("warning", f"step {step} is skipped: its loss or gradient is not finite")
        if self._skipped > self._max_skipped:
            raise UserError(
                f"{self._skipped} steps in a row had a loss or gradient that is not finite",
                "lower trainer.learning_rate, or look at the rewards; all checkpoints are of finite weights",
            )

    def _count(self, row: dict[str, float]) -> None:
        self._newest |= row  # a step that reuses a rollout has no rewards of its own
        self._skipped = self._skipped + 1 if "train/skipped" in row else 0

    def development(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation on the development split to `dev.jsonl`, then to MLflow."""
        self._tracker.row(self._files.numbers("dev.jsonl", {"step": step, **metrics}))

    def close(self) -> None:
        """Remove the progress bar when training has ended or failed."""
        self._bar.stop()


class Keeper(TrainerCallback):
    """Does what is due after a step: saves a checkpoint (periodically, at the end, and at the best development accuracy
    so far), evaluates the development split, has the watched samples answered.

    It does not repeat what is already on disk, so a run can resume in the middle of this work.

    Args:
        job: model, data and configuration of the run.
        files: the run's folder.
        evaluator: evaluates the development split and the watched samples.
        recorder: records the metrics of the development split.
        provenance: what the manifest of a checkpoint says besides its step.

    Attributes:
        newest: the newest checkpoint; None if there is none yet.
        best: `step` and `accuracy` of the best checkpoint on the development split, the later one on a tie; None if
            there is none yet.
    """

    def __init__(
        self, job: Job, files: RunFolder, evaluator: Evaluator, recorder: Recorder, provenance: Mapping[str, Any]
    ):
        self._job, self._files, self._evaluator = job, files, evaluator
        self._recorder, self._provenance, self._keep = recorder, provenance, job.config.trainer.keep_checkpoints
        self.trainer: EchoInkTrainer | None = None
        self.best: dict[str, float] | None = None
        kept = collectives.on_main_process(lambda: checkpoint.steps(files.path))
        self.newest: Path | None = kept[-1] if kept else None
        saved = [checkpoint.step_of(path) for path in kept]
        for row in collectives.on_main_process(lambda: files.read("dev.jsonl")):
            if row["step"] in saved and self._is_best(row["dev/accuracy"]):
                self.best = {"step": row["step"], "accuracy": row["dev/accuracy"]}
        if self.best and self.newest and files.writes:
            checkpoint.note_best(files.path, self.best)

    def _is_best(self, accuracy: float) -> bool:
        # On a tie the later one wins: it has trained longer, and training resumes from it.
        return self.best is None or accuracy >= self.best["accuracy"]

    def on_save(self, args, state, control, **_) -> None:
        step, last, splits = state.global_step, state.global_step == state.max_steps, self._job.splits
        trainer, evaluation = self._job.config.trainer, self._job.config.eval

        def due(every: int) -> bool:
            return bool(every) and (last or step % every == 0)

        def done(name: str) -> bool:
            return any(row["step"] == step for row in self._files.read(name))

        # The first process decides for all: the others may not see what an earlier process has left in the files.
        watches, evaluates = collectives.on_main_process(
            lambda: (
                evaluation.watched and due(trainer.completions_every) and not done("watched.jsonl"),
                bool(step) and due(evaluation.every) and not done("dev.jsonl"),
            )
        )
        # Saving and evaluating must not change training's next draws, or a resumed run would differ.
        with self.trainer.apart():
            if step and (last or due(trainer.save_every)):
                self._save(step, last)
            if watches:
                watchdog.at(f"step {step}, the watched samples")
                with self.trainer.unsharded() as model:
                    self._evaluator.watch(model, splits.valid, step)
            if evaluates:
                with self.trainer.unsharded() as model:
                    metrics = self._evaluator.development(model, splits.dev, step)
                self._recorder.development(step, metrics)
                if self._is_best(metrics["dev/accuracy"]):
                    self._save(step, last)
                    # If it could not be saved, the best of the existing checkpoints stays the best.
                    if self.newest and checkpoint.step_of(self.newest) == step:
                        self.best = {"step": step, "accuracy": metrics["dev/accuracy"]}
                        if state.is_world_process_zero:
                            checkpoint.note_best(self._files.path, self.best)
                            checkpoint.rotate(self._files.path, self._keep)

    on_train_begin = on_save  # a run may resume in the middle of this work

    def leave(self) -> None:
        """Save a checkpoint when training stops early, and say which step is kept."""
        step = self.trainer.state.global_step
        if step:
            with suppress(UserError):  # the message below says what is kept
                self._save(step, step == self.trainer.state.max_steps)
        kept = checkpoint.step_of(self.newest) if self.newest else 0
        lost = "" if kept == step else f" ({step - kept} steps are lost)"
        again = "sweep.resume" if client.PARENT in os.environ else "resume=auto"  # the sweep resumes its jobs
        if kept:
            say("stopped", f"step {kept} is kept; {again} goes on from it{lost}")
        else:
            say("stopped", f"no checkpoint is kept yet; {again} starts again{lost}")

    def _save(self, step: int, last: bool) -> None:
        if self.newest and checkpoint.step_of(self.newest) == step:
            return
        watchdog.at(f"step {step}, its checkpoint")
        weights = self.trainer.checkpoint_weights()

        def check() -> None:
            if broken := [name for name, w in weights.items() if w.is_floating_point() and not w.isfinite().all()]:
                raise UserError(
                    f"at step {step} weights are not finite ({len(broken)}, such as {broken[0]}); they are not saved",
                    f"the last good ones are {self.newest}; lower trainer.learning_rate" if self.newest else "",
                )

        def write(folder: Path) -> None:
            self.trainer.save_weights(folder, weights)
            self.trainer.save_state_beside(folder)
            watchdog.at(f"step {step}, its checkpoint: the digests")

        # All processes refuse before anything is written, so the last good checkpoint stays the newest.
        collectives.each(check)
        provenance = {"last": last, **self._provenance}
        try:
            with signals.held():
                self.newest = checkpoint.save(
                    self._files.path,
                    step,
                    write,
                    keep=self._keep,
                    provenance=provenance,
                    on_main_process=collectives.on_main_process,
                    each=collectives.each,
                    share=collectives.share,
                )
        except collectives.Lost:
            raise
        except Exception as error:  # each library that writes raises its own kind of error for a full disk
            free = shutil.disk_usage(self._files.path).free / 2**30
            reason = first_line(error)
            problem = f"step {step} could not be saved ({reason}); {free:.1f} GiB are free"
            if last:
                raise UserError(problem, f"the newest checkpoint is {self.newest}") from error
            say("warning", f"{problem}; the newest checkpoint is {self.newest}")
