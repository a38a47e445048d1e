"""The single entry point: train or evaluate.

    python -m echoink.train                                          the default run
    python -m echoink.train reward.lambda_fmt=0.5 grpo.beta=0        other values
    python -m echoink.train --multirun reward.lambda_fmt=0,0.5,1     a sweep, each job in its own process
    python -m echoink.train task=eval checkpoint=outputs/tiny/…      evaluate only

The configuration is composed and validated first, in a sweep for every job, before anything heavy is imported and
before a folder is written.
"""

import logging
import os
import signal
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from echoink import checkpoint, sweep
from echoink.compose import VERSION_BASE, compose, conf_dir, quoted, validate
from echoink.config import Adapter, Config, Task, flatten, to_yaml
from echoink.errors import UserError
from echoink.help import help_text

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    from echoink.config import TrainerConfig
    from echoink.data import Splits
    from echoink.evaluation import Prediction
    from echoink.processing import PromptProcessor
    from echoink.rollout import Sampling
    from echoink.tracking import RunFolder, Tracker


def main() -> None:
    """Validate the command line, then let Hydra run the job or the sweep."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    arguments = get_args_parser().parse_intermixed_args()
    if arguments.help:
        sys.stdout.write(help_text())
        return
    shows_only = arguments.cfg or arguments.info or arguments.hydra_help or arguments.shell_completion
    run = hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name="config")(_task)
    try:
        flags = [word for word in sys.argv[1:] if word not in arguments.overrides]
        sys.argv[1:] = [*flags, *arguments.overrides]  # Hydra's parser wants all overrides side by side
        if shows_only:
            run()
            return
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("training on several processes is not there yet", "start one process")
        jobs = compose(arguments.overrides, arguments.multirun, arguments.config_dir)
        where = "sweep" if arguments.multirun else "run"
        sys.argv.append(f"hydra.{where}.dir={quoted(jobs[0].folder)}")
        if arguments.multirun:
            sys.exit(sweep.run(run, jobs[0].config, jobs[0].folder, len(jobs), arguments.overrides))
        run()
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _task(raw: DictConfig) -> float | None:
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    if settings.mode == RunMode.MULTIRUN:
        own = [source.path for source in settings.runtime.config_sources if source.provider == "command-line"]
        flags = [word for path in own for word in ("--config-dir", path)]
        kept = [o for o in settings.overrides.hydra if o.startswith(("hydra.searchpath", "hydra.job."))]
        return sweep.run_job([*settings.overrides.task, *kept], folder, flags)
    try:
        return run(validate(raw), folder, sweep.run_name(list(settings.overrides.task)))
    except UserError as error:
        logging.getLogger("echoink").error("%s", error)
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        logging.getLogger("echoink").exception("the run failed")
        raise


def run(config: Config, folder: Path, name: str = "") -> float | None:
    """One run: data, model, evaluation of the base, training, evaluation again, and what a person wants to see.

    Args:
        config: validated.
        folder: where the run's files go.
        name: of the run in MLflow: what the command line changed.

    Returns:
        The final sampled accuracy: the objective of a search.
    """
    from echoink import console, tracking

    console.say("EchoInk", f"{config.task.name} · seed {config.seed} · {folder}")
    if not sweep.swept_keys():
        console.config_tree(flatten(config))
    with tracking.RunFolder(folder, config.task.name, config.name, config.seed) as files:
        (folder / "config.yaml").write_text(to_yaml(config))
        files.write_json("environment.json", tracking.environment())
        if config.checkpoint:
            config = replace(config, checkpoint=checkpoint.resolve(config.checkpoint))
        splits = _load_data(config)
        with console.quiet_libraries():
            job = _load_model(config, splits)
            with _tracker(config, files, name) as tracker:
                _record_inputs(job, files, tracker)
                trains, evaluates_base = _phases(config)
                base = _evaluate(job, files, tracker, "base") if evaluates_base else []
                if trains:
                    _train(job, files, tracker)
                final = _evaluate(job, files, tracker, "final") if trains or not evaluates_base else []
                _conclude(job, files, tracker, base, final)
        if tracker.run_id:
            console.say_mlflow(tracker.uri, tracker.url_path)
        if tracker.refused:
            console.say("MLflow", f"did not take everything ({tracker.refused}); the run folder has it all")
    return (files.summary["final"] or files.summary["base"])["accuracy"]


@dataclass(frozen=True)
class Job:
    """What a run works with."""

    config: Config
    splits: "Splits"
    path: str
    """Model folder or hub id that the weights come from."""
    model: "Qwen2_5OmniThinkerForConditionalGeneration"
    processor: "PromptProcessor"
    sampling: "Sampling"
    end_ids: list[int]


def _phases(config: Config) -> tuple[bool, bool]:
    """Whether the run trains, and whether it evaluates a base: task=eval calls a named checkpoint `final`."""
    trains = config.task is Task.train
    return trains, config.eval.base if trains else not config.checkpoint


def _load_data(config: Config) -> "Splits":
    from echoink import console, data

    trains = config.task is Task.train
    splits = data.load(config.dataset, config.eval, config.model.max_audio_seconds, trains)
    console.say("data", data.describe(splits))
    if trains:
        data.training_steps(config.trainer, config.grpo.updates_per_rollout, len(splits.train))
    return splits


def _load_model(config: Config, splits: "Splits") -> Job:
    from echoink import console, models
    from echoink.processing import PromptProcessor
    from echoink.rollout import Sampling

    path = config.checkpoint or config.model.path
    wanted, prompt, generation = config.model, config.prompt, config.generation
    freeze = tuple(tower.name for tower in wanted.freeze)
    model = models.load_model(path, wanted.dtype.name, wanted.attention.name, freeze)
    if config.adapter.kind is Adapter.lora:
        models.check_targets(model, config.adapter.targets)
        model.requires_grad_(False)  # PEFT's adapter alone learns
    console.say("model", f"{path} · {models.describe(model)}")
    omni = models.load_processor(path, wanted.max_pixels)
    processor = PromptProcessor(
        omni,
        model,
        prompt.template,
        prompt.system,
        wanted.max_audio_seconds,
        wanted.max_prompt_tokens,
    )
    sampling = Sampling(generation.temperature, generation.top_p, generation.top_k, generation.max_new_tokens)
    return Job(config, splits, path, model, processor, sampling, models.end_ids(model, omni))


def _tracker(config: Config, files: "RunFolder", name: str) -> "Tracker":
    from echoink import tracking

    uri = tracking.absolute_uri(config.tracking.uri, Path.cwd()) if config.tracking.enabled else None
    parameters = {key: value for key, value in flatten(config).items() if len(str(value)) <= 100}
    tags = {
        "experiment": config.name,
        "dataset": config.dataset.source.name,
        "commit": tracking.git()["commit"] or "none",
        "folder": str(files.path.resolve()),
    }
    name = name or f"{config.task.name} seed {config.seed}"
    return tracking.Tracker(uri, config.tracking.experiment, name, parameters, tags)


def _record_inputs(job: Job, files: "RunFolder", tracker: "Tracker") -> None:
    from echoink import samples

    files.summary["mlflow"] = {"run_id": tracker.run_id}
    files.write_summary()  # a process that dies now leaves its run's id
    for name in ("config.yaml", "environment.json"):
        tracker.artifact(files.path / name)
    dataset = job.config.dataset
    for split, rows in (("train", job.splits.train), (job.config.eval.split.name, job.splits.valid)):
        if rows:
            digest, profile = samples.fingerprint(rows), {"num_rows": len(rows)}
            tracker.dataset(f"{dataset.source.name} {split}", digest, dataset.path, profile, split)


def _evaluate(job: Job, files: "RunFolder", tracker: "Tracker", phase: str) -> list["Prediction"]:
    from echoink import console, evaluation

    config = job.config
    samples = job.splits.valid
    draws = evaluation.draw_names(config.eval.samples, config.eval.greedy)
    predictions = []
    for prediction in evaluation.evaluate(
        job.model,
        job.processor,
        samples,
        job.sampling,
        job.end_ids,
        config.reward.match,
        config.seed,
        phase,
        config.eval.batch_prompts,
        config.trainer.bf16,
        draws,
        console.progress(phase, -(-len(samples) // config.eval.batch_prompts)),
    ):
        files.append("predictions.jsonl", [asdict(prediction)])
        predictions.append(prediction)
    found = files.summary[phase] = evaluation.summarize(predictions)
    tracker.metrics(
        {
            "eval/accuracy": found["accuracy"],
            "eval/format": found["format"],
            "eval/parse_failure_ratio": found["parse_failures"],
            "eval/mean_length": found["mean_tokens"],
            **({"eval/greedy_accuracy": found["greedy_accuracy"]} if config.eval.greedy else {}),
        },
        files.summary["steps"] or 0,
    )
    console.say(
        phase,
        f"accuracy {console.percent(found['accuracy'])} {console.interval(found['interval'])} · "
        f"greedy {console.percent(found['greedy_accuracy'])} · format {console.percent(found['format'])} · "
        f"parse failures {console.percent(found['parse_failures'])}",
    )
    return predictions


def _with_checkpointing_decided(job: Job, reference: bool) -> "TrainerConfig":
    """The trainer's settings, activations recomputed where they are estimated not to fit."""
    from echoink import console, memory

    config = job.config
    if config.trainer.gradient_checkpointing is not None:
        return config.trainer
    prompt, completion = job.processor.most_tokens, config.generation.max_new_tokens
    if not config.grpo.shared_prefix:
        prompt, completion = 0, prompt + completion
    rows = memory.Rows(config.trainer.micro_batch_prompts, config.grpo.group_size, prompt, completion)
    learning = sum(p.numel() for p in job.model.parameters() if p.requires_grad)  # an adapter's are few
    needs = memory.estimate(job.model, learning, reference, rows, config.trainer.bf16)
    there = memory.available(job.model.device)
    fits = needs.total <= memory.SHARE * there
    console.say(
        "memory",
        f"at most about {needs.total / 2**30:.1f} of {there / 2**30:.0f} GiB · activations "
        f"({needs.activations / 2**30:.1f}) {'kept' if fits else 'recomputed'} for the backward pass",
    )
    return replace(config.trainer, gradient_checkpointing=not fits)


def _train(job: Job, files: "RunFolder", tracker: "Tracker") -> None:
    from echoink import console, models
    from echoink.callbacks import Keeper, Recorder, completions_writer
    from echoink.data import training_steps
    from echoink.trainer import EchoInkTrainer, arguments

    config = job.config
    steps = training_steps(config.trainer, config.grpo.updates_per_rollout, len(job.splits.train))
    wanted = config.model
    adapter = config.adapter
    lora = None
    if adapter.kind is Adapter.lora:
        lora = models.lora(adapter.rank, adapter.alpha, adapter.dropout, adapter.targets)
    needs_reference = config.grpo.beta > 0 and lora is None  # with an adapter: the same model, the adapter off
    reference = models.load_reference(job.path, wanted.dtype.name, wanted.attention.name) if needs_reference else None
    settings = _with_checkpointing_decided(job, needs_reference)
    completions = config.trainer.prompts_per_step * config.grpo.group_size
    recorder = Recorder(files, tracker, steps, completions, config.grpo.updates_per_rollout)
    keeper = Keeper(files.path, config.trainer.save_every, config.trainer.keep_checkpoints)
    trainer = EchoInkTrainer(
        model=job.model,
        reference=reference,
        processor=job.processor,
        samples=job.splits.train,
        match=config.reward.match,
        reward_weights=(config.reward.lambda_acc, config.reward.lambda_fmt),
        args=arguments(settings, config.grpo, config.generation, config.seed, steps, str(files.path)),
        callbacks=[recorder, keeper],
        on_rollout=completions_writer(files, config.trainer.completions_every),
        shared_prefix=config.grpo.shared_prefix,
        adapter=lora,
    )
    if lora:
        learning, total = trainer.model.get_nb_trainable_parameters()
        console.say("adapter", f"LoRA of rank {adapter.rank} · {learning:,} of {total:,} parameters learn")
    keeper.trainer = trainer
    try:
        trainer.train()
    finally:
        recorder.close()
    rewards = [row["reward/accuracy"] for row in files.read("metrics.jsonl") if "reward/accuracy" in row]
    tenth = -(-len(rewards) // 10)
    files.summary |= {
        "steps": trainer.state.global_step,
        "train": {
            "accuracy_first": sum(rewards[:tenth]) / tenth,
            "accuracy_last": sum(rewards[-tenth:]) / tenth,
        },
        "checkpoint": str(keeper.newest.relative_to(files.path)),
    }


def _conclude(
    job: Job, files: "RunFolder", tracker: "Tracker", base: list["Prediction"], final: list["Prediction"]
) -> None:
    from echoink import console, evaluation, report

    if base and final:
        sampled = evaluation.compare(base, final, evaluation.SAMPLED)
        greedy = evaluation.compare(base, final, evaluation.GREEDY) if job.config.eval.greedy else None
        files.summary["paired"] = {**asdict(sampled), "greedy": greedy and asdict(greedy)}
        gain = 100 * (files.summary["final"]["accuracy"] - files.summary["base"]["accuracy"])
        console.say(
            "gain",
            f"{gain:+.1f} points, exact McNemar p = {sampled.p_value:.2g}"
            + (f" · greedy p = {greedy.p_value:.2g}" if greedy else ""),
        )
    console.accuracy_table({phase: files.summary[phase] for phase in ("base", "final") if files.summary[phase]})
    files.write_summary()
    if figure := report.curves({files.path.name: files.path}, files.path / "figures" / "curves.png"):
        tracker.artifact(figure, "figures")
        console.say("figure", str(figure))
    rows = [
        row for path in sorted(files.path.glob("completions/*.jsonl")) for row in files.read(f"completions/{path.name}")
    ]
    tracker.table(rows, "completions.json")
    files.summary["status"] = "finished"  # the last thing a run does; a failure after this is written over it
    files.write_summary()
    tracker.artifact(files.path / "summary.json")
    shown = (final or base)[0]
    sample = next(sample for sample in job.splits.valid if sample.id == shown.id)
    console.say("sample", f"{sample.problem} {' '.join(sample.options)}")
    console.say("", f"{sample.image}  {sample.audio}")
    console.say("", f"{shown.completion!r} → {'right' if shown.correct else 'wrong'}, gold {shown.gold}")


if __name__ == "__main__":
    main()
