"""What happens beside a training step: metrics to disk and MLflow, rollout samples, the progress bar, checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import TrainerCallback

from echoink import checkpoint, traces
from echoink.console import bar, console, say
from echoink.samples import Sample
from echoink.tracker import Tracker
from echoink.tracking import RunFolder
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
        self._tracker.row(self._files.numbers("metrics.jsonl", {"step": step, "epoch": state.epoch, **metrics}))
        self._newest |= metrics  # a step that reuses a rollout has no rewards of its own
        text = (
            f"accuracy {self._newest['reward/accuracy']:.2f} · format {self._newest['reward/format']:.2f} · "
            f"length {self._newest['completion/mean_length']:.0f} · {metrics['time/step']:.1f} s/step"
        )
        self._bar.update(self._task, completed=step, text=text)
        if not console.is_terminal and (step % 10 == 0 or step == self._steps):
            console.print(f"train     {step}/{self._steps} · {text}")

    def development(self, step: int, metrics: dict[str, float]) -> None:
        """Take an evaluation on the development split."""
        self._tracker.row(self._files.numbers("dev.jsonl", {"step": step, **metrics}))

    def close(self) -> None:
        """Take the bar off the screen, when training has ended or failed."""
        self._bar.stop()


class Keeper(TrainerCallback):
    """Saves a checkpoint every so many steps, at the end, and where the development split is answered best so far.

    Args:
        run: the run's folder.
        every: steps between checkpoints, 0 for only the last.
        keep: newest checkpoints kept; the best is kept besides.
        evaluate_every: steps between evaluations on the development split, 0 for none.
        evaluate: of a model at a step: its metrics, `dev/accuracy` among them.
        watch_every: steps between answers to the watched samples, 0 for none.
        watch: answers them.
        recorder: takes those metrics.

    Attributes:
        newest: the last checkpoint.
        best: step and accuracy of the best on the development split; the later one of equals.
    """

    def __init__(
        self,
        run: Path,
        every: int,
        keep: int,
        evaluate_every: int,
        evaluate: Callable[[torch.nn.Module, int], dict[str, float]],
        watch_every: int,
        watch: Callable[[torch.nn.Module, int], None],
        recorder: Recorder,
    ):
        self._watch_every, self._watch = watch_every, watch
        self._run, self._every, self._keep = run, every, keep
        self._evaluate_every, self._evaluate, self._recorder = evaluate_every, evaluate, recorder
        self.trainer: EchoInkTrainer | None = None
        self.newest: Path | None = None
        self.best: dict[str, float] | None = None

    def on_train_begin(self, args, state, control, **_) -> None:
        if self._watch_every:
            self._watch(self._thinker(), state.global_step)

    def _thinker(self) -> torch.nn.Module:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def on_step_end(self, args, state, control, **_) -> None:
        step, last = state.global_step, state.global_step == state.max_steps
        better = False
        if self._watch_every and (last or step % self._watch_every == 0):
            with self.trainer.apart():
                self._watch(self._thinker(), step)
        if self._evaluate_every and (last or step % self._evaluate_every == 0):
            with self.trainer.apart():
                metrics = self._evaluate(self._thinker(), step)
            self._recorder.development(step, metrics)
            better = self.best is None or metrics["dev/accuracy"] >= self.best["accuracy"]
            if better:
                self.best = {"step": step, "accuracy": metrics["dev/accuracy"]}
        if not (last or better or (self._every and step % self._every == 0)):
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

        self.newest = checkpoint.save(self._run, step, write, self._keep, self.best)


class Watch:
    """Warns, once each, of what a run that cannot learn looks like in its rollouts.

    Args:
        cap: of tokens in a completion.

    Attributes:
        said: the warnings so far.
    """

    PATIENCE = 20
    """Rollouts in a row before a warning that a single one does not justify."""

    def __init__(self, cap: int):
        self._cap = cap
        self._seen = {"format": 0, "cap": 0, "silent": 0}
        self.said: list[str] = []

    def __call__(self, rows: list[dict]) -> None:
        """Look at the rows of one rollout, see `EchoInkTrainer`."""
        n = len(rows)
        if all(not row["text"].strip() for row in rows):
            self._say("every completion is empty: the prompt or the end tokens do not fit this model")
        signs = {
            "format": sum(row["format"] for row in rows) < 0.02 * n,
            "cap": sum(row["tokens"] >= self._cap for row in rows) > 0.9 * n,
            "silent": all(abs(row["advantage"]) < 1e-3 for row in rows),
        }
        for name, there in signs.items():
            self._seen[name] = self._seen[name] + 1 if there else 0
        first = rows[0]["step"] == 1
        if signs["silent"] and first:
            self._say("no group of the first rollout has rewards that differ: there is nothing to learn from in it")
        if self._seen["silent"] == self.PATIENCE:
            self._say(f"no group had rewards that differ in {self.PATIENCE} rollouts: raise the temperature or G")
        if self._seen["format"] == self.PATIENCE:
            self._say(
                f"the format reward stayed near 0 for {self.PATIENCE} rollouts: does the prompt ask for the tags?"
            )
        if (signs["cap"] and first) or self._seen["cap"] == self.PATIENCE:
            self._say(f"nearly all completions are cut at generation.max_new_tokens={self._cap}: raise it")

    def _say(self, text: str) -> None:
        if text not in self.said:
            self.said.append(text)
            say("warning", text)


def told(samples: Sequence[Sample], weights: Mapping[str, float]) -> Callable[[list[dict]], list[dict]]:
    """Adds to the rows of a rollout their question, gold answer, places of media and total reward.

    Args:
        samples: of training.
        weights: of the rewards by name.
    """
    of_id = {sample.id: sample for sample in samples}

    def tell(rows: list[dict]) -> list[dict]:
        return [
            {
                **row,
                "total": sum(weight * row[name] for name, weight in weights.items()),
                "problem": of_id[row["id"]].problem,
                "options": of_id[row["id"]].options,
                "gold": of_id[row["id"]].solution,
                "media": of_id[row["id"]].places,
            }
            for row in rows
        ]

    return tell


def every(steps: int, write: Callable[[list[dict]], None]) -> Callable[[list[dict]], None]:
    """Passes on the first rollout and the next one after every `steps` steps; none where it is 0."""
    due = 1

    def pass_on(rows: list[dict]) -> None:
        nonlocal due
        step = rows[0]["step"]
        if steps and step >= due:
            due = (step // steps + 1) * steps
            write(rows)

    return pass_on


def keep_completions(files: RunFolder) -> Callable[[list[dict]], None]:
    """Writes a rollout to `completions/step-N.jsonl`."""
    return lambda rows: files.append(f"completions/step-{rows[0]['step']}.jsonl", rows)


def keep_traces(files: RunFolder, tracker: Tracker, groups: int) -> Callable[[list[dict]], None]:
    """Writes the first groups of a rollout to `traces.jsonl` and sends them as traces."""

    def keep(rows: list[dict]) -> None:
        ids = list(dict.fromkeys(row["id"] for row in rows))[:groups]
        for id in ids:
            group = [row for row in rows if row["id"] == id]
            files.append(traces.FILE, group)
            tracker.group(group)

    return keep
