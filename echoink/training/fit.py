"""Trains a run: builds the trainer and its callbacks, starts or resumes training, saves a checkpoint if it stops."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel

from echoink.common import console, signals
from echoink.common.errors import UserError
from echoink.config.schema import Adapter, Advantage, Task
from echoink.distributed import collectives, watchdog
from echoink.distributed.process_group import device_name, processes
from echoink.evaluation.evaluator import Evaluator
from echoink.models import fingerprint, loading
from echoink.planning.steps import training_steps
from echoink.rewards import terms
from echoink.rollout.vllm_engine import Engine
from echoink.run_folder import reader, resume
from echoink.run_folder.environment import environment
from echoink.run_folder.folder import RunFolder
from echoink.tracking import traces
from echoink.tracking.logger import Tracker
from echoink.training.callbacks import Keeper, Recorder
from echoink.training.host import Policy, Scoring
from echoink.training.integration_reward import IntegrationReward
from echoink.training.rollout_log import LearningSignalMonitor, every
from echoink.training.setup import Job, shard_plan_of, with_checkpointing_decided
from echoink.training.supervised import SupervisedTrainer
from echoink.training.trainer import EchoInkTrainer
from echoink.training.trl_config import arguments


def train(
    job: Job,
    files: RunFolder,
    tracker: Tracker,
    evaluator: Evaluator,
    longest: int,
    start: resume.Start,
    provenance: dict[str, Any],
    engine: Engine | None = None,
) -> EchoInkTrainer:
    """Train the job's model to the last step and write the outcome to the run's summary.

    Args:
        job: model, data and configuration of the run.
        files: the run's folder.
        tracker: the run in MLflow.
        evaluator: evaluates the development split and the watched samples.
        longest: tokens of the longest prompt.
        start: the step and the checkpoint from which training starts.
        provenance: see `provenance_of`.
        engine: generates the rollouts instead of our decoder.

    Returns:
        The trainer; its `unsharded` gives the trained model.

    Raises:
        UserError: training cannot go on.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint is saved where possible.
        signals.Preempted: on SIGTERM or SIGUSR1, after a checkpoint is saved where possible.
    """
    config = job.config
    steps = training_steps(config.trainer, config.grpo.updates_per_rollout, len(job.splits.train))
    watchdog.at("loading the reference")
    lora, reference = _adapter_and_reference(job)
    settings = with_checkpointing_decided(job, longest)
    recorder = Recorder(config, files, tracker, steps)
    keeper = Keeper(job, files, evaluator, recorder=recorder, provenance=provenance)
    scoring, generation, kind = _scoring(job), config.generation, EchoInkTrainer
    if config.task is Task.sft:
        generation, kind = replace(generation, temperature=1.0), SupervisedTrainer  # responses are learned as they are
    trainer = kind(
        Policy(job.model, reference, job.processor, lora, engine=engine, correction=config.generation.vllm.correction),
        job.splits.train,
        scoring,
        args=arguments(settings, config.grpo, generation, seed=config.seed, steps=steps, folder=str(files.path)),
        settings=config.grpo,
        curriculum=config.dataset.curriculum,
        callbacks=[recorder, keeper],
        on_rollout=_on_rollout(job, files, tracker, scoring),
    )
    if lora:
        learning, total = trainer.model.get_nb_trainable_parameters()
        console.say("adapter", f"{config.adapter.kind.name} of rank {lora.r} · {learning:,} of {total:,} learn")
    keeper.trainer = trainer
    _go_on(trainer, start, recorder, keeper)
    _sum_up(files, trainer, keeper)
    return trainer


def _go_on(trainer: EchoInkTrainer, start: resume.Start, recorder: Recorder, keeper: Keeper) -> None:
    """Train to the end. Save a checkpoint if a signal stops training, or, with one process, a `UserError`."""
    try:
        trainer.go_on(start.checkpoint)
    except (KeyboardInterrupt, signals.Preempted, UserError) as error:
        if isinstance(error, UserError) and (collectives.several() or trainer.state.global_step <= start.step):
            raise  # other processes may not know of it, and all write a checkpoint; or there is nothing new to save
        recorder.close()
        keeper.leave()
        raise
    finally:
        recorder.close()
        trainer.close()


def _scoring(job: Job) -> Scoring:
    """The rewards of the job's configuration."""
    config, train = job.config, job.splits.train
    rewards = terms.make_rewards(config.reward, job.processor.prompt.thinks, job.extra_rewards)
    rows = config.trainer.micro_batch_prompts * config.grpo.group_size
    integration = None
    if config.reward.lambda_int:
        clusters = job.splits.clusters("train", train)
        integration = IntegrationReward(config.reward, job.processor, rows, train, seed=config.seed, clusters=clusters)
    return Scoring(rewards, integration)


def _adapter_and_reference(job: Job) -> tuple[LoraConfig | None, PreTrainedModel | None]:
    """The adapter that learns, and the frozen reference of the KL term; each is None where there is none.

    With an adapter the reference is the same model with the adapter switched off, so no second model is loaded.
    """
    config, adapter, wanted = job.config, job.config.adapter, job.config.model
    if adapter.kind is not Adapter.none:
        return loading.lora(adapter.rank, adapter.alpha, adapter.dropout, adapter.targets), None
    if not config.grpo.beta:
        return None, None
    shards, dtype = shard_plan_of(config), wanted.dtype.name
    if config.trainer.bf16 and config.trainer.sharding.is_deepspeed:
        dtype = "bfloat16"  # DeepSpeed would round it only after each process has held all of it in float32
    return None, loading.load_reference(job.path, dtype, wanted.attention.name, shards)


def _on_rollout(job: Job, files: RunFolder, tracker: Tracker, scoring: Scoring) -> Callable[[list[dict]], None]:
    """A function that passes every rollout's rows to the learning signal monitor, some to `completions/` and traces."""
    config, updates = job.config, job.config.grpo.updates_per_rollout
    rewards = [reward.name for reward in scoring.terms if reward.weight]
    rewards += ["integration"] if scoring.integration and scoring.integration.pays else []
    of_id = {sample.id: sample for sample in job.splits.train}
    watch = LearningSignalMonitor(
        config.generation.max_new_tokens, rewards, rejects=config.grpo.advantage is Advantage.rejection
    )

    def keep_traces(rows: list[dict]) -> None:
        for id in list(dict.fromkeys(row["id"] for row in rows))[: config.tracking.traces_groups]:
            group = [row for row in rows if row["id"] == id]
            files.append(traces.FILE, group)
            tracker.group(group)

    lookers = (
        *(() if config.task is Task.sft else (watch,)),  # supervised runs sample nothing
        every(
            config.trainer.completions_every,
            updates,
            lambda rows: files.append(f"completions/step-{rows[0]['step']}.jsonl", rows),
        ),
        every(config.tracking.traces_every, updates, keep_traces),
    )

    def on_rollout(rows: list[dict]) -> None:
        rows = [
            {
                **row,
                "problem": of_id[row["id"]].problem,
                "options": of_id[row["id"]].options,
                "gold": of_id[row["id"]].solution,
            }
            for row in rows
        ]
        for look in lookers:
            look(rows)

    return on_rollout


def _sum_up(files: RunFolder, trainer: EchoInkTrainer, keeper: Keeper) -> None:
    """Write the outcome of training to the run's summary."""
    files.summary |= {
        "steps": trainer.state.global_step,
        "train": collectives.on_main_process(lambda: _first_and_last(files)),
        "checkpoint": str(keeper.newest.relative_to(files.path)),
        "best": keeper.best,
    }
    files.write_summary()
    if keeper.best:
        console.say("best", f"step {keeper.best['step']}, {console.percent(keeper.best['accuracy'])} on dev, is kept")


def _first_and_last(files: RunFolder) -> dict[str, float]:
    """Mean accuracy reward of the first and the last tenth of the rollouts."""
    rewards = [row["reward/accuracy"] for row in files.read("metrics.jsonl") if "reward/accuracy" in row]
    return dict(zip(("accuracy_first", "accuracy_last"), reader.ends(rewards), strict=True))


def provenance_of(job: Job) -> dict[str, Any]:
    """What a checkpoint's manifest says about the run: model, data, processes, versions, commit and device."""
    here, splits = environment(), job.splits
    return {
        "model": fingerprint.weights_digest(job.model)[:16],
        "settings": fingerprint.settings_digest(job.model)[:16],
        "data": splits.digest("train", splits.train)[:12],
        "dev": splits.digest("dev", splits.dev)[:12] if splits.dev else None,
        "valid": splits.digest(job.config.eval.split.name, splits.valid)[:12],
        "processes": processes().num_processes,
        "versions": here["versions"],
        "commit": here["commit"],
        "device": device_name(),
    }
