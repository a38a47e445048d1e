"""The part of a run that needs the model: evaluates the base, trains, evaluates again, compares and reports."""

import gc
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from typing import Any

import torch

from echoink.common import console
from echoink.common.errors import first_line, last_error
from echoink.config.overrides import quoted
from echoink.config.schema import Config, Protocol, RolloutEngine, Task, flatten
from echoink.data.splits import Splits
from echoink.distributed import collectives, sharding, watchdog
from echoink.evaluation import metrics, reflection, tables
from echoink.evaluation.evaluate import EvaluationSetup
from echoink.evaluation.evaluator import Evaluator
from echoink.evaluation.prediction import GREEDY, Prediction
from echoink.pipeline import sweep_job
from echoink.planning.steps import training_steps
from echoink.report.build import try_to_write
from echoink.rollout.vllm_engine import Engine
from echoink.rollout.vllm_environment import alone
from echoink.run_folder import before, resume
from echoink.run_folder.environment import git
from echoink.run_folder.folder import RunFolder
from echoink.tracking import client, system_metrics
from echoink.tracking.logger import Tracker
from echoink.training import fit, start_engine, supervised
from echoink.training.setup import Job, build_job, evaluation_batch_prompts, longest_prompt

MLFLOW_PARAMETERS = (
    "seed",
    "model.path",
    "adapter.kind",
    "dataset.source",
    "grpo.group_size",
    "grpo.beta",
    "grpo.loss",
    "grpo.scale",
    "grpo.advantage",
    "trainer.learning_rate",
    "trainer.steps",
)
"""The MLflow parameters of every run, beside the weights of its rewards and what its command line changed."""


def execute(
    config: Config, files: RunFolder, splits: Splits, start: resume.Start, uri: str | None, overrides: Sequence[str]
) -> Tracker:
    """Evaluate the base, train, evaluate again, compare, report: those of these that the task asks for.

    Args:
        config: the configuration; its checkpoint is a folder or a hub id.
        files: the run folder.
        splits: the data.
        start: where training begins.
        uri: MLflow's store; None if this process does not track.
        overrides: the command line's.

    Returns: The tracker, closed.
    """
    first, last = _first_and_last(config)
    job = build_job(config, splits, first)
    longest = longest_prompt(job)
    if config.task is Task.sft:
        supervised.check(splits.train, job.processor.processor.tokenizer, config.generation.max_new_tokens)
    provenance = _begin(job, files, start)
    with (
        _tracker(job, files, uri, overrides) as tracker,
        system_metrics.SystemMonitor(files, tracker, config.tracking.machine_every),
        ExitStack() as stack,
    ):
        # Runs beside this one whose processes are gone are closed here, in their folders and in MLflow.
        for dead in resume.close_dead(files.path, uri and config.tracking.uri) if files.writes else []:
            tracker.adopt(dead, later=True)
        files.summary["mlflow"]["run_id"] = tracker.run_id or files.summary["mlflow"]["run_id"]
        files.write_summary()  # if the process dies from now on, its run's id is on disk
        batch = evaluation_batch_prompts(job, longest)
        engine = stack.enter_context(closing(start_engine.start(job, files, longest))) if config.uses_vllm else None
        evaluator = _evaluator(job, files, tracker, batch_prompts=batch, engine=engine)
        is_base = config.trains or first == config.model.path
        evaluates_base = config.task is Task.compare or (config.eval.base and is_base)
        # `gathered` unshards a model for its last evaluation; without training the model is not sharded.
        base, final, gathered = [], [], nullcontext
        with watchdog.Watchdog(config.trainer.patience, watches_engine=config.uses_vllm):
            if evaluates_base:
                with sharding.unsharded(job.model):
                    base = evaluator.phase(job.model, splits.valid, "base", 0)
            if config.trains:
                rollouts = engine if config.generation.engine is RolloutEngine.vllm else None
                how = {"longest": longest, "start": start, "provenance": provenance, "engine": rollouts}
                gathered = fit.train(job, files, tracker, evaluator=evaluator, **how).unsharded
            elif last != first:
                del job, evaluator  # memory for one model at a time suffices
                _free_memory(engine)
                job = build_job(config, splits, last)
                evaluator = _evaluator(job, files, tracker, batch_prompts=batch, engine=engine)
            # task=eval without a checkpoint has evaluated its only model above, as the base.
            if config.task is not Task.eval or not evaluates_base:
                with gathered():
                    final = evaluator.phase(job.model, splits.valid, "final", files.summary["steps"] or 0)
        _finish(job, files, base, final)
        if config.trains and config.trainer.push_to_hub and files.writes:
            _push(files, config.trainer.push_to_hub)
    return tracker


def _free_memory(engine: Engine | None) -> None:
    """Free the memory of a model to which nothing refers, and make the next push send all weights."""
    gc.collect()  # a model has reference cycles, so it is freed only here
    torch.cuda.empty_cache()
    if engine:
        engine.forget()


def _begin(job: Job, files: RunFolder, start: resume.Start) -> dict[str, Any]:
    """Compare a run that goes on with its checkpoint, and take its folder up; return the provenance of a training."""
    config, changed = job.config, []
    provenance = fit.provenance_of(job) if config.trains else {}
    if start.checkpoint:
        steps = training_steps(config.trainer, config.grpo.updates_per_rollout, len(job.splits.train))
        resume.refuse_fewer_steps(start.checkpoint, start.step, steps)
        changed = resume.check_provenance(start, provenance)
    if start.again:
        collectives.on_main_process(lambda: resume.take_up(files, start, changed if start.step else ()))
    files.write_json("dataset.json", job.splits.profile)
    files.summary["mlflow"] = files.summary["mlflow"] or {"run_id": None}
    return provenance


def _first_and_last(config: Config) -> tuple[str, str]:
    """The weights that a run begins with, the base if it trains; and those that it ends with if it does not."""
    if config.task is Task.compare:
        return config.model.path, config.checkpoint
    return (config.checkpoint or config.model.path,) * 2


def conclude(
    files: RunFolder, base: Sequence[Prediction], final: Sequence[Prediction], protocol: Protocol = Protocol.matched
) -> None:
    """Compare base and final if both were evaluated, in the summary and flips.jsonl; print gain and tables."""
    if base and final:
        sampled = metrics.compare(base, final)
        drawn = [{p.draw for p in predictions} for predictions in (base, final)]
        both_greedy = all(GREEDY in names and len(names) > 1 for names in drawn)
        greedy = metrics.compare(base, final, GREEDY) if both_greedy else None
        several = files.summary["final"]["samples"]  # the base may have only one draw: eval.protocol=may19
        k = several["k"] if several else 1
        files.summary["paired"] = {**asdict(sampled), "draws": k, "greedy": greedy and asdict(greedy)}
        files.write_rows("flips.jsonl", metrics.flips(base, final))
        shares_media = sampled.clusters < files.summary["final"]["n"]
        how = "" if protocol is Protocol.matched else f" · protocol {protocol.name}, not matched"
        console.say(
            "gain",
            tables.gain(sampled, k)
            + (f" · greedy p = {greedy.p_value:.2g}" if greedy else "")
            + (f" · clusters of shared media: {tables.cluster_note(sampled.clusters)}" if shares_media else "")
            + how,
        )
    evaluated = {phase: files.summary[phase] for phase in ("base", "final") if files.summary[phase]}
    tables.accuracy_table(evaluated)
    if all("ablations" in found for found in evaluated.values()):
        tables.ablation_table({phase: found["ablations"] for phase, found in evaluated.items()})


def _finish(job: Job, files: RunFolder, base: list[Prediction], final: list[Prediction]) -> None:
    """Compare, write the summary and the report with its figure, show one sample."""
    conclude(files, base, final, job.config.eval.protocol)
    if files.writes:
        before.drop(files.path)  # a result, also if all of its rows were there
    files.summary["status"] = "finished"  # before the report, which reads it; a later failure overwrites it
    files.write_summary()
    if files.writes:
        try_to_write([files.path], files.path)
    shown = (final or base)[0]
    sample = next(sample for sample in job.splits.valid if sample.id == shown.id)
    console.say("sample", f"{sample.problem} {' '.join(sample.options)}")
    console.say("", "  ".join(str(medium) for medium in sample.media.values()))
    console.say("", f"{shown.completion!r} → {'right' if shown.correct else 'wrong'}, gold {shown.gold}")


def _tracker(job: Job, files: RunFolder, uri: str | None, overrides: Sequence[str]) -> Tracker:
    config = job.config
    values = flatten(config)
    # MLflow's table shows parameters as columns: those of every run and those that this run changed, not every key.
    params = {key: value for key, value in values.items() if key.startswith("reward.lambda_")}
    if not config.reward.file:
        del params["reward.lambda_file"]
    params |= {f"reward.files.{each.metric_name}": each.weight for each in config.reward.files}
    params |= {key: values[key] for key in MLFLOW_PARAMETERS} | sweep_job.params(overrides, values)
    params |= {"checkpoint": config.checkpoint} if config.checkpoint else {}  # its weights, not those of model.path
    inputs = [
        {
            "name": f"{config.dataset.source.name} {split}",
            "digest": job.splits.digest(split, rows)[:16],
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
        params=params,
        tags={
            "experiment": config.name,
            "dataset": config.dataset.source.name,
            "commit": git()["commit"] or "none",
            "reflection": f"indicators, rules of version {reflection.VERSION}: experiments/reflection.md",
            "folder": str(files.path.resolve()),
        },
        inputs=inputs,
    )
    return Tracker(uri, record.kept(files.path) if files.writes else record, files.path, files)


def _evaluator(job: Job, files: RunFolder, tracker: Tracker, batch_prompts: int, engine: Engine | None) -> Evaluator:
    config = job.config
    setup = EvaluationSetup(
        job.processor,
        job.sampling,
        match=config.reward.match,
        seed=config.seed,
        batch_prompts=batch_prompts,
        bf16=config.trainer.bf16,
        split=config.eval.split.name,
        extra_rewards=job.extra_rewards,
    )
    return Evaluator(
        config.eval,
        setup,
        clusters=job.splits.clusters(setup.split, job.splits.valid),
        dev_clusters=job.splits.clusters("dev", job.splits.dev),
        data=job.splits.digest(setup.split, job.splits.valid),
        files=files,
        tracker=tracker,
        engine=engine if config.eval.engine is RolloutEngine.vllm else None,
    )


def _push(files: RunFolder, repository: str) -> None:
    """Push the best checkpoint, else the last one, to the hub; a failure is reported and loses nothing on disk."""
    target = files.path / "export"
    try:
        shutil.rmtree(target, ignore_errors=True)  # of fewer steps of this run, or cut off
        # In a process of its own: shards are read by all processes of a run together, and the others have ended.
        words = [f"checkpoint={quoted(files.path)}", f"output={quoted(target)}", f"push_to={repository}"]
        command = [sys.executable, "-m", "echoink.export", *words]
        done = subprocess.run(command, env=alone(), stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(last_error(done.stderr))
        console.say("pushed", repository)
    except Exception as error:  # the hub's client raises many types
        hint = f"python -m echoink.export checkpoint={files.path} output=<folder> push_to={repository}"
        console.say("push", f"failed: {first_line(error)} · again: {hint}")
