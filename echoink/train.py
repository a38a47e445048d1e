"""The single entry point: train or evaluate.

    python -m echoink.train                                          the default run
    python -m echoink.train reward.lambda_fmt=0.5 grpo.beta=0        other values
    python -m echoink.train --multirun reward.lambda_fmt=0,0.5,1     a sweep, each job in its own process
    python -m echoink.train task=eval checkpoint=outputs/tiny/…      evaluate only
    python -m echoink.train dry_run=true experiment=echoink_r1_7b …  the plan: steps, tokens, memory, disk

The configuration is composed and validated first, in a sweep for every job, before anything heavy is imported and
before a folder is written.
"""

import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from echoink import checkpoint, preflight, resume, signals, sweep
from echoink.compose import VERSION_BASE, compose, conf_dir, quoted, started, validate
from echoink.config import Adapter, Advantage, Config, Protocol, RolloutEngine, Sharding, Task, flatten, to_yaml
from echoink.errors import UserError
from echoink.help import help_text

if TYPE_CHECKING:
    from echoink.evaluation import Prediction
    from echoink.job import Job
    from echoink.phases import Evaluator
    from echoink.splits import Splits
    from echoink.tracker import Tracker
    from echoink.tracking import RunFolder


def main() -> None:
    """Validate the command line, then let Hydra run the job or the sweep."""
    signals.install()
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
        overrides, again = sweep.settled(arguments.overrides) if arguments.multirun else (arguments.overrides, None)
        sys.argv[1:] = [*flags, *overrides]
        jobs = compose(overrides, arguments.multirun, arguments.config_dir)
        first = jobs[0]
        if not arguments.multirun:
            _check_processes(first.config)
        if arguments.multirun:
            where, folder = "sweep", again or first.folder
        else:
            where, folder = "run", resume.place(first.config, first.folder)
        if started() > 1:
            folder = _agreed(folder, arguments.multirun)
        preflight.check_disk(folder, 0)
        sys.argv.append(f"hydra.{where}.dir={quoted(folder)}")
        if arguments.multirun:
            sys.exit(sweep.run(run, jobs, folder, overrides, flags))
        run()
    except UserError as error:
        _say(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _agreed(folder: Path, multirun: bool) -> Path:
    """The first process's folder, for all of them; the others leave writing to it."""
    if multirun:
        raise UserError(
            "a sweep is started as one process; it gives its jobs theirs",
            "python -m echoink.train --multirun trainer=ddp trainer.processes=2 …",
        )
    from echoink import console, together
    from echoink.models import processes

    state = processes()
    signals.share()
    folder = together.first(lambda: folder)
    if not state.is_main_process:
        console.console.quiet = True
        log = quoted(folder / f"train.rank{state.process_index}.log")
        sys.argv += ["hydra.output_subdir=null", f"hydra.job_logging.handlers.file.filename={log}"]
    return folder


def _say(error: UserError) -> None:
    """What is wrong, on the screen; of several processes that find the same only the first says it."""
    if not getattr(error, "of_the_first", False):
        print(f"\nerror: {error}", file=sys.stderr)


def _task(raw: DictConfig) -> float | None:
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    if settings.mode == RunMode.MULTIRUN:
        own = [source.path for source in settings.runtime.config_sources if source.provider == "command-line"]
        flags = [word for path in own for word in ("--config-dir", path)]
        kept = [o for o in settings.overrides.hydra if o.startswith(("hydra.searchpath", "hydra.job."))]
        side_by_side = sweep.side_by_side(settings)
        found = sweep.run_job(validate(raw), [*settings.overrides.task, *kept], folder, flags, side_by_side)
        if math.isnan(found) and settings.runtime.choices["hydra/sweeper"] != "basic":
            raise RuntimeError(f"job {folder.name} failed")  # a search counts it, see hydra.sweeper.max_failure_rate
        return found
    try:
        return run(validate(raw), folder, list(settings.overrides.task))
    except UserError as error:
        logging.getLogger("echoink").error("%s", error)
        _say(error)
        sys.exit(2)
    except Exception:
        logging.getLogger("echoink").exception("the run failed")
        raise


def run(config: Config, folder: Path, overrides: Sequence[str] = ()) -> float | None:
    """One run: data, model, evaluation of the base, training, evaluation again, and what a person wants to see.

    Args:
        config: validated.
        folder: where the run's files go.
        overrides: the command line's, which say what the run is called in MLflow.

    Returns:
        The final sampled accuracy: the objective of a search. None for a dry run.
    """
    from echoink import console, stored, tracking

    console.say("EchoInk", f"{config.task.name} · seed {config.seed} · {folder}")
    console.say("config", summary_line(config))
    writes = int(os.environ.get("RANK", "0")) == 0
    start = _first(lambda: resume.begin(config, folder))
    if config.resume != resume.NEVER:
        console.say("resume", start.told())
    if start.finished:
        return (tracking.read_summary(folder)["final"])["accuracy"]
    if config.dry_run:
        with tracking.RunFolder(folder, "plan", config.name, config.seed, writes) as files:
            _plan(config, files)
        return None
    uri = stored.absolute_uri(config.tracking.uri, Path.cwd()) if config.tracking.enabled and writes else None
    with tracking.RunFolder(folder, config.task.name, config.name, config.seed, writes) as files:
        files.write_text("config.yaml", to_yaml(config))
        files.write_json("environment.json", tracking.environment())
        if config.checkpoint:
            config = replace(config, checkpoint=checkpoint.resolve(config.checkpoint))
        disk = _disk_bytes(config, files.path) if config.task is Task.train else 0
        store = None if stored.PARENT in os.environ else uri  # a sweep has asked; later it goes on without
        _first(lambda: preflight.check(folder, disk, store, config.trainer.push_to_hub))
        if config.task is Task.train and config.generation.engine is RolloutEngine.vllm:
            from echoink import engine

            _first(lambda: engine.check(config.generation.vllm.python))
        splits = _load_data(config)
        files.write_json("dataset.json", splits.profile)
        with console.quiet_libraries():
            from echoink import machine, sharding, together
            from echoink.job import load_model, longest_prompt

            first, last = _models(config)
            job = load_model(config, splits, first)
            longest = longest_prompt(job)
            files.summary["mlflow"] = files.summary["mlflow"] or {"run_id": None}
            with (
                _tracker(job, files, uri, overrides) as view,
                machine.Watch(files, view, config.tracking.machine_every),
            ):
                for dead in resume.close_dead(folder, tracked=uri is not None) if writes else []:
                    view.adopt_later(dead)
                files.summary["mlflow"]["run_id"] = view.run_id or files.summary["mlflow"]["run_id"]
                files.write_summary()  # a process that dies now leaves its run's id
                evaluator = _evaluator(job, files, view)
                evaluates_base = config.task is Task.compare or (first == _base(config) and config.eval.base)
                base, final, whole = [], [], nullcontext
                with together.Watchdog(config.trainer.patience):
                    if evaluates_base:
                        with sharding.whole(job.model):
                            base = evaluator.phase(job.model, splits.valid, "base", 0)
                    if config.task is Task.train:
                        from echoink import training

                        whole = training.train(job, files, view, evaluator, longest, start).whole
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


def _check_processes(config: Config) -> None:
    """Refuse a training run on another number of processes than it is for."""
    wanted, there, sharding = config.trainer.processes, started(), config.trainer.sharding
    if config.task is not Task.train or config.dry_run:
        return
    theirs = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]
    if theirs:
        raise UserError(
            f"accelerate's own configuration asks for {theirs[0]}",
            "here trainer=fsdp2, zero2 or zero3 says what is divided; launch with a configuration without it",
        )
    if sharding in (Sharding.zero2, Sharding.zero3) and "RANK" not in os.environ:
        hint = f"torchrun --nproc_per_node {wanted} -m echoink.train …"
        raise UserError(f"trainer.sharding={sharding.name} is started by torchrun, one process too", hint)
    if wanted == there:
        return
    raise UserError(
        f"this run is for trainer.processes={wanted}, and {there} {'is' if there == 1 else 'are'} started",
        f"torchrun --nproc_per_node {wanted} -m echoink.train …, or set trainer.processes={there}"
        + (" with trainer=ddp, fsdp2, zero2 or zero3" if there > 1 else "")
        + "; dry_run=true makes the plan on one",
    )


def _first(work: Callable[[], Any]) -> Any:
    """What the first of the run's processes finds, in all of them."""
    if started() == 1:
        return work()
    from echoink import together

    return together.first(work)


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
    from echoink import console
    from echoink.splits import describe, load, training_steps
    from echoink.variants import has_both

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
    from echoink import console, plan

    made = plan.make(config, _load_data(config))
    files.write_json("plan.json", made)
    for label, text in plan.lines(made):
        console.say(label, text)
    console.say("plan", str(files.path / "plan.json"))


def _disk_bytes(config: Config, folder: Path) -> int:
    """What checkpoints will take beside those that are there."""
    from echoink import plan

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
    from echoink import samples, stored, tracker, tracking

    config = job.config
    values = flatten(config)
    changed = {key: value for key, _, value in (one.partition("=") for one in sweep.told(overrides))}
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
    record = stored.Record(
        experiment=config.tracking.experiment,
        name=sweep.run_name(overrides) or f"{config.task.name} seed {config.seed}",
        params={key: values[key] for key in CORE} | {k: values.get(k, v) for k, v in changed.items() if len(v) <= 100},
        tags={
            "experiment": config.name,
            "dataset": config.dataset.source.name,
            "commit": tracking.git()["commit"] or "none",
            "folder": str(files.path.resolve()),
        },
        inputs=inputs,
    )
    return tracker.Tracker(uri, record.kept(files.path) if files.writes else record, files.path, files)


def _evaluator(job: "Job", files: "RunFolder", tracker: "Tracker") -> "Evaluator":
    from echoink.phases import Evaluator
    from echoink.prompts import Prompt

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
    from echoink import console, export

    target = files.path / "export"
    try:
        export.export(files.path, target, push_to=repository)
        console.say("pushed", repository)
    except Exception as error:  # the hub's client raises many kinds of its own
        hint = f"python -m echoink.export checkpoint={files.path} output=<folder> push_to={repository}"
        console.say("push", f"failed: {next(iter(str(error).splitlines()), type(error).__name__)} · again: {hint}")


def _conclude(job: "Job", files: "RunFolder", base: list["Prediction"], final: list["Prediction"]) -> None:
    from echoink import console, figures, phases, report

    phases.conclude(files, base, final, job.config.eval.protocol)
    files.summary["status"] = "finished"  # the last thing a run does; a failure after this is written over it
    files.write_summary()
    if files.writes:
        if figure := figures.curves({files.path.name: files.path}, files.path / "figures" / "curves.png"):
            console.say("figure", str(figure))
        if page := report.try_to_write([files.path], files.path):
            console.say("report", str(page))
    shown = (final or base)[0]
    sample = next(sample for sample in job.splits.valid if sample.id == shown.id)
    console.say("sample", f"{sample.problem} {' '.join(sample.options)}")
    console.say("", "  ".join(str(medium) for medium in sample.media.values()))
    console.say("", f"{shown.completion!r} → {'right' if shown.correct else 'wrong'}, gold {shown.gold}")


if __name__ == "__main__":
    main()
