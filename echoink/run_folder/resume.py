"""Resuming a run: which run, from which checkpoint, and how its files are cut back to that step.

`resume=auto` takes the run in this `hydra.run.dir`, else the newest unfinished one of the same name and configuration
beside it, else starts a new one; `resume=<folder>` takes that one. Training resumes from the newest whole checkpoint.
Later rows are cut from the run's files and made again, with the same numbers if kernels are deterministic.
"""

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from echoink.common.console import say
from echoink.common.errors import UserError
from echoink.common.files import as_json, cut_lines, read_rows, write_atomic
from echoink.config.schema import Config, Schedule, to_yaml
from echoink.run_folder import checkpoint, inputs_on_disk, reader, reward_files
from echoink.run_folder import folder as run_folder
from echoink.run_folder.environment import process_is_gone
from echoink.run_folder.folder import RunFolder, in_use

AUTO, NEVER = "auto", "never"


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    config: Config
    """Its configuration, as it was given."""
    step: int = 0
    checkpoint: Path | None = None
    """None where it begins at its first step."""
    again: bool = False
    """Whether the folder holds what an earlier process has left."""
    finished: bool = False
    """Whether there is nothing left to do."""
    changed: tuple[str, ...] = ()
    """Keys that training goes on with after steps with other values of them."""
    last: bool = False
    """Whether `step` is training's last, with the same settings: the evaluation after it stays."""
    base: bool = True
    """Whether the base's answers stay."""
    damaged: Mapping[Path, str] = field(default_factory=dict)
    """Checkpoints that are passed over, and why."""
    unasked: tuple[str, ...] = ()
    """Keys by which the answers of an evaluation are no longer its own."""

    def describe(self) -> str:
        """Where the run begins, for the screen."""
        if self.finished:
            return "this run has finished"
        if self.checkpoint:
            return f"from step {self.step}, {self.checkpoint}"
        return "no checkpoint yet, from the first step" if self.again else "nothing to resume, a fresh start"


def place(config: Config, folder: Path) -> Path:
    """The folder of the run that `config.resume` says, for a run that would otherwise go to `folder`.

    Raises:
        UserError: there is no such run, or the task is not training.
    """
    if config.resume == NEVER or config.dry_run:
        return folder
    if not config.trains:
        raise UserError(
            f"resume={config.resume} is of training, not of task={config.task.name}",
            "an evaluation goes on by itself: give it its own folder again, hydra.run.dir=…",
        )
    if config.resume != AUTO:
        given = Path(config.resume)
        if not (given / "config.yaml").is_file():
            raise UserError(f"resume={given} is no folder of a run", "it has a config.yaml; or resume=auto")
        return given
    if (folder / "config.yaml").is_file():
        return folder
    candidates = (path for path, differs in _unfinished(config, folder) if not differs)
    return next(candidates, folder)


def left_beside(config: Config, folder: Path) -> str | None:
    """The unfinished run beside a fresh one that differs from it in the fewest keys, and how to resume it."""
    others = [(path, differs) for path, differs in _unfinished(config, folder) if differs]
    if not others:
        return None
    path, differs = min(others, key=lambda other: len(other[1]))  # of equals the newest, which comes first
    listed = ", ".join(f"{key} is {old} there, {new} here" for key, (old, new) in list(differs.items())[:4])
    more = f" and {len(differs) - 4} more keys" if len(differs) > 4 else ""
    return f"unfinished beside it: {path} ({listed}{more}); resume={path} with its values resumes it"


def _unfinished(config: Config, folder: Path) -> Iterator[tuple[Path, dict[str, tuple[Any, Any]]]]:
    """Unfinished, resumable runs of the same name beside a folder, newest first, with the keys that differ."""
    wanted = reader.method(to_yaml(config))
    beside = [(said["started"], path) for path, said in _beside(folder) if not has_ended(said)]
    for _, path in sorted(beside, reverse=True):
        run = reader.read(path)
        if run is None or run.summary["task"] != config.task.name or run.summary["name"] != config.name:
            continue
        if checkpoint.can_go_on(path) and not in_use(path):
            yield path, _differences(run.config, wanted, config.resume_allow) | _other_rewards(config, path)


def _beside(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Other runs in the same parent folder, with their summaries; unreadable ones are skipped."""
    for file in folder.parent.glob("*/summary.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = run_folder.read_summary(file.parent)
            if file.parent != folder and {"status", "task", "name", "started"} <= said.keys():
                yield file.parent, said


def has_ended(summary: dict[str, Any]) -> bool:
    """Whether a run has finished completely: `ended` is the last thing that a process writes."""
    return summary.get("status") == "finished" and bool(summary.get("ended"))


def refuse(config: Config, folder: Path) -> list[str] | None:
    """Refuse a folder that holds another run. Nothing in the folder changes except its lock.

    Returns:
        The keys that differ from the existing run's and are allowed to; None if there is nothing to resume.

    Raises:
        UserError: the folder holds another run, one that must not be resumed, or one that is running.
    """
    if config.dry_run:
        if run_folder.read_summary(folder).get("task", "plan") != "plan":
            raise UserError(f"{folder} holds a run", "choose another hydra.run.dir for the plan")
        return None
    if not folder.is_dir():
        return None
    # A lock first: two processes on one folder would each cut what the other writes.
    run_folder.take(folder)  # until the process ends: no other may cut or write in between
    left = [*folder.glob("completions/step-*"), *folder.glob("*.jsonl"), *folder.glob("checkpoints")]
    # An evaluation goes on by itself, also one that was killed before its first answer.
    answered = (folder / run_folder.PREDICTIONS).is_file()
    goes_on = answered or run_folder.read_summary(folder).get("task") == config.task.name
    if config.resume == NEVER and left and (config.trains or not goes_on):
        raise UserError(f"{folder} holds a run already", "resume it with resume=auto, or choose another hydra.run.dir")
    return _check_same(config, folder) if left else None


def begin(config: Config, folder: Path) -> Start:
    """Where a run begins. Nothing in its folder changes but its lock: `cut_back` cuts its files, after all checks.

    Raises:
        UserError: the folder holds another run, or one that must not or cannot be resumed, or is running.
    """
    changed = refuse(config, folder)
    if changed is None:
        there = run_folder.read_summary(folder)["status"] != "missing"
        return Start(config, again=config.resume != NEVER and there and not config.dry_run)
    if not config.trains:
        others = (key for key in changed if key.startswith(_ANSWERS_DEPEND_ON) and key not in _DIGESTED)
        return Start(config, again=True, unasked=tuple(others))
    length = {"trainer.steps", "trainer.epochs"}
    constant = config.trainer.schedule is Schedule.constant
    fixed = {f"trainer.{name}" for name in ("learning_rate", "weight_decay", "schedule", "warmup_steps")}
    kept = (fixed if constant else fixed | length) & set(changed)
    if kept and config.trainer.sharding.is_deepspeed:
        raise UserError(
            f"DeepSpeed goes on with the {' and '.join(sorted(kept))} that {folder} was begun with",
            "begin another run with its weights: checkpoint=<its newest checkpoint>",
        )
    found, damaged = checkpoint.newest(folder)
    if found is None and checkpoint.steps(folder):
        wrong = "; ".join(f"{path.name}: {why}" for path, why in damaged.items())
        raise UserError(
            f"no checkpoint in {folder} is whole, with optimizer and random state" + (f" ({wrong})" if wrong else ""),
            f"start afresh in another hydra.run.dir; weights alone serve as checkpoint={folder}/checkpoints/step-N",
        )
    # The final evaluation comes after the last step's checkpoint: a run is done, or keeps its answers, only if its
    # settings are the same.
    said = checkpoint.manifest(found) if found else {}
    step = said.get("step", 0)
    # The second is so for a run that was shortened to this step.
    last = (bool(said.get("last")) or step == config.trainer.steps) and not changed
    summary = run_folder.read_summary(folder)
    if last and has_ended(summary):
        return Start(config, step, found, again=True, finished=True)
    if original := summary.get("shared"):
        hint = f"resume={original} goes on there; or begin another run with its weights: checkpoint={original}"
        raise UserError(f"{folder} is a copy of {original}, whose checkpoints it only links", hint)
    refuse_fewer_steps(found, step, config.trainer.steps)
    # More steps at a constant learning rate are those of a longer run.
    free = length if constant else set()
    mixed = [key for key in changed if key not in free and not key.startswith("eval.")]
    mixed += reward_files.changed(config.reward, folder)
    return Start(
        config,
        step,
        found,
        again=True,
        changed=tuple(mixed) if step else (),
        last=last,
        # Whoever permits other data or another model has the base asked anew.
        base=not any(key.startswith(_ASKS) for key in changed) and not {"data", "model"} & set(config.resume_allow),
        damaged=damaged,
    )


def refuse_fewer_steps(found: Path | None, step: int, steps: int | None) -> None:
    """Raises `UserError` where a checkpoint is of a later step than the run's last."""
    if steps and step > steps:
        raise UserError(
            f"{found} is of step {step}, and this run ends at step {steps}",
            "start another run, or train for at least as many steps",
        )


def take_up(files: RunFolder, start: Start, changed: Sequence[str] = ()) -> None:
    """Make a folder that of a run from its start: cut it back, and write the run's configuration.

    Args:
        files: the folder.
        start: where the run begins.
        changed: what else differs from the steps before.
    """
    if files.writes and start.again:
        cut_back(files.path, replace(start, last=start.last and "data" not in changed))
    files.changed([*start.changed, *changed])
    files.write_summary()  # first: once the new configuration is on disk, nothing else shows that it changed
    files.write_text("config.yaml", to_yaml(start.config))
    if files.writes:
        reward_files.keep(start.config.reward, files.path)
        now = inputs_on_disk.digests(start.config)
        files.summary |= {key: (start.step and files.summary[key]) or found for key, found in now.items()}


def cut_back(folder: Path, start: Start) -> None:
    """Cut a run's files back to where it begins; what is damaged or of other settings is set aside."""
    if start.config.trains:
        _set_aside(start.damaged)
        checkpoint.tidy(folder)
        cut(folder, start.step, start.last, start.base)
        return
    cut_lines(folder / run_folder.PREDICTIONS, lambda row: True)
    if start.unasked:
        _set_answers_aside(folder, start.unasked)


_ASKS = (
    "eval.",
    "prompt.",
    "generation.",
    "model.",
    "dataset.",
    "reward.",
    "seed",
    "checkpoint",
    "trainer.bf16",
    "adapter.kind",
)
"""Keys on which the base's answers, or how they are judged, depend."""


_ANSWERS_DEPEND_ON = ("prompt.", "generation.", "model.", "seed", "trainer.bf16", "eval.protocol", "eval.direct")
_ANSWERS_DEPEND_ON += ("eval.engine",)
_DIGESTED = ("model.path",)
"""The evaluator compares the digest of the weights (`Evaluator._check_answers_on_disk`)."""


def _set_answers_aside(folder: Path, keys: Sequence[str]) -> None:
    """Answers to another prompt, or sampled in another way, are none of this evaluation's."""
    answers = folder / run_folder.PREDICTIONS
    if answers.is_file():
        aside = answers.with_name(f"predictions-{time.time_ns()}.jsonl")
        answers.rename(aside)
        say("warning", f"{', '.join(keys)}: all is answered again; the answers before this are kept as {aside.name}")


def _set_aside(damaged: Mapping[Path, str]) -> None:
    for path, wrong in damaged.items():
        aside = path.with_name(f"damaged-{path.name}")
        say("warning", f"{path} is damaged ({wrong}): an earlier one is used; it is kept as {aside.name}")
        shutil.rmtree(aside, ignore_errors=True)  # one that was damaged before
        path.rename(aside)


def _check_same(config: Config, folder: Path) -> list[str]:
    """The keys that differ and are allowed to; refuse any others."""
    text = (folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").is_file() else ""
    then, now = reader.method(text), reader.method(to_yaml(config))
    changed = _differences(then, now, config.resume_allow)
    if changed:
        listed = ", ".join(f"{key}={new} (was {old})" for key, (old, new) in list(changed.items())[:6])
        raise UserError(
            f"{folder} holds another run; here {listed}",
            "it goes on only with the same configuration; choose another hydra.run.dir, or name the keys that may "
            f"differ: resume_allow=[{','.join(changed)}]",
        )
    if other := _other_rewards(config, folder):
        listed = ", ".join(file for _, file in other.values())
        allow = f"resume_allow=[{','.join(other)}]"
        raise UserError(
            f"{listed} has changed since {folder} was begun, whose rewards/ has a copy", f"restore it, or {allow}"
        )
    return list(_differences(then, now, []))


def _other_rewards(config: Config, folder: Path) -> dict[str, tuple[str, str]]:
    """The user's reward files that have changed since a run was begun."""
    changed = reward_files.changed(config.reward, folder)
    return {key: (f"another {file}", file) for key, file in changed.items() if key not in config.resume_allow}


def _differences(old: dict[str, Any], new: dict[str, Any], allowed: list[str]) -> dict[str, tuple[Any, Any]]:
    keys = sorted(set(old) | set(new))
    free = {"trainer.processes", *allowed}  # more or fewer processes change only the last digits
    return {k: (old.get(k), new.get(k)) for k in keys if k not in free and old.get(k) != new.get(k)}


_MACHINE = ("processes", "commit", "device")
"""What a run's last digits depend on, besides library versions."""


def check_provenance(start: Start, here: dict[str, Any]) -> list[str]:
    """Refuse a checkpoint of another model or other data; warn if versions differ.

    Args:
        start: where the run begins.
        here: what a checkpoint of this run would say.

    Returns:
        Those of `model` and `data` that differ and are allowed to.

    Raises:
        UserError: with the list of differences.
    """
    said, allowed = checkpoint.manifest(start.checkpoint), start.config.resume_allow
    # Earlier versions named all splits in `data`: train, dev if it is evaluated, and the one that is reported.
    splits = said.get("data", "").split()
    then = said | {"data": splits[0] if splits else None, "valid": said.get("valid", (splits[1:] or [None])[-1])}
    parts = {"model": ["model", "settings"], "data": ["data", "dev", *(["valid"] if start.last else [])]}
    differ = {
        key: [name for name in names if _differ(then.get(name), here.get(name), name in ("model", "data"))]
        for key, names in parts.items()
    }
    if refused := [key for key, names in differ.items() if names and key not in allowed]:
        listed = ", ".join(f"{name} {here[name]} (was {then.get(name)})" for key in refused for name in differ[key])
        raise UserError(
            f"{start.checkpoint} is of another run: {listed}",
            f"if that is meant: resume_allow=[{','.join(refused)}]",
        )
    versions = [each.get("versions", {}) | {key: each.get(key) for key in _MACHINE} for each in (said, here)]
    # Keys that an older version did not record do not count.
    moved = [key for key in versions[1] if versions[0].get(key) is not None and versions[1][key] != versions[0][key]]
    if others := [f"{key} {versions[1][key]} (was {versions[0][key]})" for key in moved]:
        say("warning", f"the numbers may differ from an uninterrupted run's in their last digits: {', '.join(others)}")
    return [key for key, names in differ.items() if names]


def _differ(then: str | None, now: str | None, always: bool) -> bool:
    """Whether two digests differ; one that is not there, of an older version or of what is not used, does so only if
    there is `always` one.
    """
    return then != now and (always or None not in (then, now))


def cut(folder: Path, step: int, last: bool, base: bool = True) -> None:
    """Drop from a run's files all that came after a step, and lines that a kill has cut off.

    Args:
        folder: the run's.
        step: the last that stays.
        last: whether it is training's last; the evaluation after it stays then.
        base: whether the base's answers stay. If not, neither do those of a development evaluation that a kill has
            cut off: the rest would be answered under other settings.
    """
    evaluated = {row["step"] for row in read_rows(folder / "dev.jsonl")}

    def of_step(number: int) -> bool:
        return number <= step and (base or number in evaluated)

    def early(row: dict) -> bool:
        return row["step"] <= step

    for name in ("metrics.jsonl", "dev.jsonl", "watched.jsonl", "traces.jsonl"):
        cut_lines(folder / name, early)
    cut_lines(folder / "system.jsonl", lambda row: True)
    cut_lines(folder / "eval.jsonl", lambda row: base if row["phase"] == "base" else last)
    cut_lines(
        folder / run_folder.PREDICTIONS,
        lambda row: (
            (base and row["phase"] == "base")
            or (last and row["phase"] == "final")
            or (row["phase"].startswith("step-") and of_step(int(row["phase"][5:])))
        ),
    )
    for path in (folder / "completions").glob("step-*.jsonl"):
        if int(re.search(r"\d+", path.stem).group()) > step:
            path.unlink()


def _store_of(folder: Path) -> str | None:
    with suppress(UserError):
        return reader.configuration(folder).tracking.uri
    return None


def close_dead(folder: Path, store: str | None) -> list[Path]:
    """Mark runs beside one as killed if their status says that they are running but their process is gone.

    Args:
        folder: the run that starts.
        store: its `tracking.uri`; None if it does not track. Runs of another store are left to one that logs there.

    Returns:
        The folders of those that MLflow has.
    """
    # A killed process cannot say so itself. The next run beside it does, for people and for MLflow.
    closed = []
    for path, said in _beside(folder):
        known = bool(run_folder.mlflow_id(said))
        if said.get("ended") or (known and (store is None or _store_of(path) not in (None, store))):
            continue
        with suppress(OSError, ValueError, KeyError, StopIteration):
            if not process_is_gone(path) or in_use(path):
                continue
            file = path / "summary.json"
            said |= {"status": "killed", "error": "its process ended without a word"}
            write_atomic(file, as_json(said | {"ended": int(file.stat().st_mtime * 1000)}))
            closed += [path] if known else []
    return closed
