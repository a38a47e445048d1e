"""One run: data, model, evaluation of the base, training, evaluation again."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoink.common import console
from echoink.common.errors import UserError
from echoink.config.compose import started
from echoink.config.schema import Adapter, Advantage, Config, Protocol, RolloutEngine, Task, flatten, to_yaml
from echoink.evaluation import metrics, tables
from echoink.evaluation.prediction import GREEDY, Prediction
from echoink.pipeline import sweep_job
from echoink.planning import preflight
from echoink.run_folder import checkpoint, resume
from echoink.run_folder.folder import RunFolder


def conclude(
    files: RunFolder,
    base: Sequence[Prediction],
    final: Sequence[Prediction],
    protocol: Protocol = Protocol.matched,
) -> None:
    """Compare base and final where both were evaluated: summary, flips.jsonl, screen."""
    if base and final:
        sampled = metrics.compare(base, final)
        drawn = [{p.draw for p in predictions} for predictions in (base, final)]
        both_greedy = all(GREEDY in names and len(names) > 1 for names in drawn)
        greedy = metrics.compare(base, final, GREEDY) if both_greedy else None
        files.summary["paired"] = {**asdict(sampled), "greedy": greedy and asdict(greedy)}
        flipped = metrics.flips(base, final)
        files.write_text("flips.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in flipped))
        low, high = (100 * end for end in sampled.interval)
        several = files.summary["final"]["samples"]
        unit = f" (mean of {several['k']} draws)" if several and files.summary["base"]["samples"] else ""
        how = "" if protocol is Protocol.matched else f" · protocol {protocol.name}, not matched"
        console.say(
            "gain",
            f"{100 * sampled.difference:+.1f} points{unit} [{low:+.1f}, {high:+.1f}], {sampled.test} "
            f"p = {sampled.p_value:.2g} · {sampled.gained} samples gained, {sampled.lost} lost"
            + (f" · greedy p = {greedy.p_value:.2g}" if greedy else "")
            + how,
        )
    told = {phase: files.summary[phase] for phase in ("base", "final") if files.summary[phase]}
    tables.accuracy_table(told)
    if all("ablations" in found for found in told.values()):
        tables.ablation_table({phase: found["ablations"] for phase, found in told.items()})


if TYPE_CHECKING:
    from echoink.data.splits import Splits
    from echoink.evaluation.evaluator import Evaluator
    from echoink.evaluation.prediction import Prediction
    from echoink.run_folder.folder import RunFolder
    from echoink.tracking.logger import Tracker
    from echoink.training.setup import Job


def run(config: Config, folder: Path, overrides: Sequence[str] = ()) -> float | None:
    """One run: data, model, evaluation of the base, training, evaluation again, and what a person wants to see.

    Args:
        config: validated.
        folder: where the run's files go.
        overrides: the command line's, which say what the run is called in MLflow.

    Returns:
        The final sampled accuracy: the objective of a search. None for a dry run.
    """
    from echoink.common import console
    from echoink.run_folder import folder as run_folder
    from echoink.run_folder.environment import environment
    from echoink.tracking import client

    console.say("EchoInk", f"{config.task.name} · seed {config.seed} · {folder}")
    console.say("config", summary_line(config))
    writes = int(os.environ.get("RANK", "0")) == 0
    start = _first(lambda: resume.begin(config, folder))
    if config.resume != resume.NEVER:
        console.say("resume", start.told())
    if start.finished:
        return (run_folder.read_summary(folder)["final"])["accuracy"]
    if config.dry_run:
        with run_folder.RunFolder(folder, "plan", config.name, config.seed, writes) as files:
            _plan(config, files)
        return None
    uri = client.absolute_uri(config.tracking.uri, Path.cwd()) if config.tracking.enabled and writes else None
    with run_folder.RunFolder(folder, config.task.name, config.name, config.seed, writes) as files:
        files.write_text("config.yaml", to_yaml(config))
        files.write_json("environment.json", environment())
        if config.checkpoint:
            config = replace(config, checkpoint=checkpoint.resolve(config.checkpoint))
        disk = _disk_bytes(config, files.path) if config.task is Task.train else 0
        store = None if client.PARENT in os.environ else uri  # a sweep has asked; later it goes on without
        _first(lambda: preflight.check(folder, disk, store, config.trainer.push_to_hub))
        if config.task is Task.train and config.generation.engine is RolloutEngine.vllm:
            from echoink.rollout import vllm_engine

            _first(lambda: vllm_engine.check(config.generation.vllm.python))
        splits = _load_data(config)
        files.write_json("dataset.json", splits.profile)
        with console.quiet_libraries():
            from echoink.distributed import sharding, watchdog
            from echoink.tracking import system_metrics
            from echoink.training.setup import load_model, longest_prompt

            first, last = _models(config)
            job = load_model(config, splits, first)
            longest = longest_prompt(job)
            files.summary["mlflow"] = files.summary["mlflow"] or {"run_id": None}
            with (
                _tracker(job, files, uri, overrides) as view,
                system_metrics.Watch(files, view, config.tracking.machine_every),
            ):
                for dead in resume.close_dead(folder, tracked=uri is not None) if writes else []:
                    view.adopt_later(dead)
                files.summary["mlflow"]["run_id"] = view.run_id or files.summary["mlflow"]["run_id"]
                files.write_summary()  # a process that dies now leaves its run's id
                evaluator = _evaluator(job, files, view)
                evaluates_base = config.task is Task.compare or (first == _base(config) and config.eval.base)
                base, final, whole = [], [], nullcontext
                with watchdog.Watchdog(config.trainer.patience):
                    if evaluates_base:
                        with sharding.whole(job.model):
                            base = evaluator.phase(job.model, splits.valid, "base", 0)
                    if config.task is Task.train:
                        from echoink.training import fit

                        whole = fit.train(job, files, view, evaluator, longest, start).whole
                    elif last != first:
                        del job, evaluator  # two models need not fit side by side
                        job = load_model(config, splits, last)
                        evaluator = _evaluator(job, files, view)
                    if config.task is not Task.eval or not evaluates_base:
                        with whole():
                            final = evaluator.phase(job.model, splits.valid, "final", files.summary["steps"] or 0)
                _conclude(job, files, base, final)
                if config.task is Task.train and config.trainer.push_to_hub and writes:
                    _push(files, config.trainer.push_to_hub)
        if view.run_id:
            console.say_mlflow(view.uri, view.url_path)
        if view.refused:
            console.say("MLflow", f"did not take everything ({view.refused})")
            console.say("", f"the run folder has it all: python -m echoink.sync {files.path} uri={view.uri}")
    return (files.summary["final"] or files.summary["base"])["accuracy"]


def _first(work: Callable[[], Any]) -> Any:
    """What the first of the run's processes finds, in all of them."""
    if started() == 1:
        return work()
    from echoink.distributed import collectives

    return collectives.first(work)


def summary_line(config: Config) -> str:
    """What a run is, in one line; config.yaml in its folder has every value."""
    compared = f"model {config.model.path} with {config.checkpoint}"
    model = compared if config.task is Task.compare else f"model {config.checkpoint or config.model.path}"
    parts = [model, f"dataset {config.dataset.source.name}"]
    if config.eval.protocol is not Protocol.matched:
        parts.append(f"protocol {config.eval.protocol.name}: base and trained model are asked in different ways")
    if config.task is not Task.train:
        return " · ".join(parts)
    if config.adapter.kind is not Adapter.none:
        parts.append(f"{config.adapter.kind.name} of rank {config.adapter.rank}")
    reward = f"λ_acc {config.reward.lambda_acc:g}, λ_fmt {config.reward.lambda_fmt:g}"
    if config.reward.lambda_int:
        reward += f", λ_int {config.reward.lambda_int:g} ({config.reward.integration.name})"
    parts.append(
        f"reward {reward}" + (f", {config.reward.file} {config.reward.lambda_file:g}" if config.reward.file else "")
    )
    if config.grpo.advantage is not Advantage.group:
        parts.append(f"advantage {config.grpo.advantage.name}")
    parts += [f"G {config.grpo.group_size}", f"β {config.grpo.beta:g}"]
    parts.append(f"{config.trainer.steps} steps" if config.trainer.steps else f"{config.trainer.epochs:g} epochs")
    return " · ".join(parts)


def _base(config: Config) -> str:
    """Where a training run starts: what is called its base."""
    return (config.checkpoint or config.model.path) if config.task is Task.train else config.model.path


def _models(config: Config) -> tuple[str, str]:
    """The weights that a run begins with, and those that it ends with where it does not train."""
    if config.task is Task.compare:
        return config.model.path, config.checkpoint
    return (config.checkpoint or config.model.path,) * 2


def _load_data(config: Config) -> "Splits":
    from echoink.common import console
    from echoink.data.ablations import has_both
    from echoink.data.sampler import training_steps
    from echoink.data.splits import describe, load

    trains = config.task is Task.train
    splits = load(config.dataset, config.eval, config.model, trains, _first)
    for line in describe(splits, config.eval.split.name, config.dataset):
        console.say("data", line)
    if trains:
        takes_both = {
            "reward.lambda_int": config.reward.lambda_int,
            "grpo.modality_dropout": config.grpo.modality_dropout,
        }
        if any(takes_both.values()) and not any(map(has_both, splits.train)):
            key = next(key for key, value in takes_both.items() if value)
            raise UserError(f"{key} is about sound and sight together, and no training sample has both", "set it to 0")
        training_steps(config.trainer, config.grpo.updates_per_rollout, len(splits.train))
    return splits


def _plan(config: Config, files: "RunFolder") -> None:
    from echoink.common import console
    from echoink.planning import plan

    made = plan.make(config, _load_data(config))
    files.write_json("plan.json", made)
    for label, text in plan.lines(made):
        console.say(label, text)
    console.say("plan", str(files.path / "plan.json"))


def _disk_bytes(config: Config, folder: Path) -> int:
    """What checkpoints will take beside those that are there."""
    from echoink.planning import plan

    there = sum(file.stat().st_size for file in folder.glob("checkpoints/**/*") if file.is_file())
    return max(0, plan.disk_bytes(config, plan.count_parameters(config))["total"] - there)


CORE = (
    "seed",
    "model.path",
    "adapter.kind",
    "dataset.source",
    "reward.lambda_acc",
    "reward.lambda_fmt",
    "grpo.group_size",
    "grpo.beta",
    "grpo.loss",
    "grpo.scale",
    "grpo.advantage",
    "trainer.learning_rate",
    "trainer.steps",
)
"""What every run has as parameters in MLflow, beside what its command line changed."""


def _tracker(job: "Job", files: "RunFolder", uri: str | None, overrides: Sequence[str]) -> "Tracker":
    from echoink.data import samples
    from echoink.run_folder.environment import git
    from echoink.tracking import client, logger

    config = job.config
    values = flatten(config)
    changed = {key: value for key, _, value in (one.partition("=") for one in sweep_job.told(overrides))}
    inputs = [
        {
            "name": f"{config.dataset.source.name} {split}",
            "digest": samples.fingerprint(rows),
            "source": config.dataset.path,
            "profile": {"num_rows": len(rows)},
            "context": split,
        }
        for split, rows in (("train", job.splits.train), (config.eval.split.name, job.splits.valid))
        if rows
    ]
    record = client.Record(
        experiment=config.tracking.experiment,
        name=sweep_job.run_name(overrides) or f"{config.task.name} seed {config.seed}",
        params={key: values[key] for key in CORE} | {k: values.get(k, v) for k, v in changed.items() if len(v) <= 100},
        tags={
            "experiment": config.name,
            "dataset": config.dataset.source.name,
            "commit": git()["commit"] or "none",
            "folder": str(files.path.resolve()),
        },
        inputs=inputs,
    )
    return logger.Tracker(uri, record.kept(files.path) if files.writes else record, files.path, files)


def _evaluator(job: "Job", files: "RunFolder", tracker: "Tracker") -> "Evaluator":
    from echoink.config.schema import Prompt
    from echoink.evaluation.evaluator import Evaluator

    config = job.config
    return Evaluator(
        config=config.eval,
        direct=Prompt(**vars(config.eval.direct)),
        processor=job.processor,
        sampling=job.sampling,
        end_ids=job.end_ids,
        match=config.reward.match,
        own_reward=job.own_reward,
        seed=config.seed,
        bf16=config.trainer.bf16,
        clusters=job.splits.clusters(config.eval.split.name, job.splits.valid),
        dev_clusters=job.splits.clusters("dev", job.splits.dev),
        data=job.splits.digest(config.eval.split.name, job.splits.valid),
        files=files,
        tracker=tracker,
    )


def _push(files: "RunFolder", repository: str) -> None:
    """The best checkpoint, else the last, to the hub; a failure is said and costs nothing that is on disk."""
    from echoink.common import console
    from echoink.pipeline import export

    target = files.path / "export"
    try:
        export.export(files.path, target, push_to=repository)
        console.say("pushed", repository)
    except Exception as error:  # the hub's client raises many kinds of its own
        hint = f"python -m echoink.export checkpoint={files.path} output=<folder> push_to={repository}"
        console.say("push", f"failed: {next(iter(str(error).splitlines()), type(error).__name__)} · again: {hint}")


def _conclude(job: "Job", files: "RunFolder", base: list["Prediction"], final: list["Prediction"]) -> None:
    from echoink.common import console
    from echoink.pipeline.run import conclude
    from echoink.report import figures
    from echoink.report.build import try_to_write

    conclude(files, base, final, job.config.eval.protocol)
    files.summary["status"] = "finished"  # the last thing a run does; a failure after this is written over it
    files.write_summary()
    if files.writes:
        if figure := figures.curves({files.path.name: files.path}, files.path / "figures" / "curves.png"):
            console.say("figure", str(figure))
        if page := try_to_write([files.path], files.path):
            console.say("report", str(page))
    shown = (final or base)[0]
    sample = next(sample for sample in job.splits.valid if sample.id == shown.id)
    console.say("sample", f"{sample.problem} {' '.join(sample.options)}")
    console.say("", "  ".join(str(medium) for medium in sample.media.values()))
    console.say("", f"{shown.completion!r} → {'right' if shown.correct else 'wrong'}, gold {shown.gold}")
