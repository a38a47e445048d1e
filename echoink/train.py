"""The main entry point: trains or evaluates.

    python -m echoink.train                                          the default run
    python -m echoink.train reward.lambda_fmt=0.5 grpo.beta=0        other values
    python -m echoink.train --multirun reward.lambda_fmt=0,0.5,1     a sweep, each job in its own process
    python -m echoink.train task=eval checkpoint=outputs/tiny/…      evaluate only
    python -m echoink.train dry_run=true experiment=echoink_r1_7b …  the plan: steps, tokens, memory, disk

The configuration (in a sweep, that of every job) is composed and validated first, before heavy libraries are imported
and before a folder is written.
"""

import logging
import math
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from echoink.common import signals
from echoink.common.errors import UserError
from echoink.common.startup import imports, take_any_text
from echoink.config.compose import SWEPT, VERSION_BASE, Composed, compose
from echoink.config.help import help_text
from echoink.config.mistakes import closest, hint_for
from echoink.config.overrides import normalized, quoted
from echoink.config.paths import conf_dir
from echoink.config.schema import Config
from echoink.config.validate import launched_processes, validate
from echoink.pipeline import sweep, sweep_job
from echoink.pipeline.run import run
from echoink.planning import preflight
from echoink.run_folder import before, resume

_OWN_EXPERIMENT = "make it an experiment: --config-dir mine experiment=x, with mine/experiment/x.yaml"
"""What takes the place of a primary configuration of one's own: checks and a sweep's jobs would not see one."""


def main() -> None:
    """Validate the command line, then let Hydra run the job or the sweep."""
    signals.install()
    take_any_text()
    parser = get_args_parser()
    arguments, unknown = parser.parse_known_intermixed_args()
    if arguments.help:
        sys.stdout.write(help_text())
        return
    shows_only = arguments.cfg or arguments.info or arguments.hydra_help or arguments.shell_completion
    launch = hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name="config")(_task)
    try:
        if unknown:
            raise _no_flag(unknown[0], [*parser._option_string_actions])
        flags = [word for word in sys.argv[1:] if word not in arguments.overrides]
        sys.argv[1:] = [*flags, *arguments.overrides]  # Hydra's parser needs all overrides together
        if arguments.config_name or arguments.config_path:
            raise UserError("--config-name and --config-path are not supported", _OWN_EXPERIMENT)
        if shows_only:
            launch()
            return
        given = [*map(normalized, arguments.overrides)]
        overrides, again, remembered = sweep.settled(given) if arguments.multirun else sweep.Settled(given)
        if remembered and not arguments.config_dir:
            arguments.config_dir, flags = remembered, [*flags, "--config-dir", remembered]
        sys.argv[1:] = [*flags, *overrides]
        _check_hydra(overrides, arguments.multirun)
        first, *_ = jobs = compose(overrides, arguments.multirun, arguments.config_dir)
        _check_grid(jobs, arguments.multirun)
        if arguments.multirun:
            folder = again or first.folder
            if not again:
                sweep.refuse(overrides, folder)
            sweep.check_jobs([job.config for job in jobs], first.is_search)
            if launched_processes() > 1:
                raise UserError(
                    "a sweep is started as one process, which starts those of its jobs",
                    "python -m echoink.train --multirun trainer=ddp trainer.processes=2 …",
                )
        else:
            _check_processes(first.config)
            folder = (_agreed if launched_processes() > 1 else _of_run)(first.config, first.folder)
        preflight.check_disk(folder, 0)
        place = "hydra.sweep.dir" if arguments.multirun else "hydra.run.dir"
        sys.argv += [f"{place}={quoted(folder)}", "hydra.job.chdir=false"]  # whatever a file of the user's says
        if arguments.multirun:
            # Imported after every check, like `execute` for a run: it loads MLflow, matplotlib and the report.
            with imports():
                from echoink.pipeline import sweep_run

            sweep_run.run(launch, jobs, folder, overrides=overrides, flags=flags, config_dir=arguments.config_dir)
        else:
            launch()
    except UserError as error:
        _say(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        before.put_all_back()  # of a run that was refused, or had finished, before its folder was opened


def _no_flag(given: str, flags: Sequence[str]) -> UserError:
    word = given.partition("=")[0]
    hint = closest(word, flags) or hint_for(word.lstrip("-").replace("-", "_"))
    return UserError(f"{given} is no flag: settings are key=value, without dashes", hint)


_OF_SWEEPS = ("sweep.", "hydra.sweep.", "hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweeper.")
"""Overrides that act in a sweep alone."""


def _check_hydra(overrides: Sequence[str], multirun: bool) -> None:
    """Refuse settings of sweeps that would be ignored."""
    for word in overrides:
        if word.startswith("hydra.job.chdir=") and word != "hydra.job.chdir=false":
            hint = "leave it out: relative paths are read from the folder of the command, and a run knows its own"
            raise UserError(f"{word} is not supported", hint)
        if word.startswith("hydra.sweeper.storage="):
            raise UserError("hydra.sweeper.storage is not supported: a search cannot be resumed", "leave it out")
        if word.startswith("hydra.sweep.subdir="):
            raise UserError("hydra.sweep.subdir is fixed: a sweep finds its jobs by their numbers", "leave it out")
        if word.startswith(_OF_SWEEPS) and not multirun and SWEPT not in os.environ:
            raise UserError(f"{word} is about a sweep", "add --multirun, also for one job; or leave it out")
    again = [word for word in overrides if word.startswith("resume=") and word != f"resume={resume.NEVER}"]
    if multirun and again and not any(word.startswith("hydra.sweep.dir=") for word in overrides):
        hint = "--multirun sweep.resume=<the sweep's folder>"
        raise UserError(f"{again[0]} is of one run: a new sweep has nothing to resume", hint)


def _of_run(config: Config, folder: Path) -> Path:
    """The folder of a run, or of the one that it resumes; checked before Hydra writes this command line into it."""
    found = resume.place(config, folder)
    resume.refuse(config, found)
    if not config.dry_run:
        before.keep(found)  # Hydra writes this command line there
    return found


def _agreed(config: Config, folder: Path) -> Path:
    """The first process's folder, for all processes, unless it holds another run; the others log to their own files."""
    with imports():
        from echoink.common import console
        from echoink.distributed import collectives
        from echoink.distributed.process_group import processes

    preflight.check_devices()
    state = processes()
    signals.only_note()
    folder = collectives.on_main_process(lambda: _of_run(config, folder))
    if not state.is_main_process:
        console.console.quiet = True
        log = quoted(folder / f"train.rank{state.process_index}.log")
        sys.argv += ["hydra.output_subdir=null", f"hydra.job_logging.handlers.file.filename={log}"]
    return folder


def _say(error: UserError) -> None:
    """Print an error; if several processes find the same one, only the first prints it."""
    if not getattr(error, "of_the_first", False):
        print(f"\nerror: {error}", file=sys.stderr)


def _task(raw: DictConfig) -> float | None:
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    if settings.mode == RunMode.MULTIRUN:
        if threading.current_thread() is threading.main_thread():
            signals.install()  # in a launcher's process, such as submitit's, which has handlers of its own
        own = [source.path for source in settings.runtime.config_sources if source.provider == "command-line"]
        flags = [word for path in own for word in ("--config-dir", path)]
        kept = [o for o in settings.overrides.hydra if o.startswith(("hydra.searchpath", "hydra.job."))]
        side_by_side = sweep_job.side_by_side(settings)
        found = sweep_job.run_job(
            validate(raw), [*settings.overrides.task, *kept], folder, flags=flags, side_by_side=side_by_side
        )
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


def _check_grid(jobs: Sequence[Composed], multirun: bool) -> None:
    """Refuse an experiment whose grid would be left out, and a search for the lowest accuracy."""
    if multirun and jobs[0].direction not in (None, "maximize"):
        hint = "hydra.sweeper.direction=maximize: what a run gives a search is its final accuracy"
        raise UserError(f"this search is for the lowest accuracy (direction {jobs[0].direction})", hint)
    if multirun and jobs[0].is_search:
        return
    for job in jobs:
        if job.grid and multirun:
            raise UserError(
                f"a sweep over experiments leaves out their own grids, here over {', '.join(job.grid)}",
                "start one sweep for each experiment",
            )
        if job.grid:
            raise UserError(
                f"this experiment is a grid over {', '.join(job.grid)}, and this is one run",
                "add --multirun for all of its runs, or give " + " ".join(f"{key}=…" for key in job.grid),
            )


def _check_processes(config: Config) -> None:
    """Refuse to train on another number of processes than configured."""
    wanted, there, sharding = config.trainer.processes, launched_processes(), config.trainer.sharding
    if not config.trains or config.dry_run:
        return
    theirs = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]
    if theirs:
        raise UserError(
            f"accelerate's own configuration asks for {theirs[0]}",
            "here trainer=fsdp2, zero2 or zero3 says what is divided; launch with a configuration without it",
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", "bf16" if config.trainer.bf16 else "no"):
        raise UserError(
            f"ACCELERATE_MIXED_PRECISION={precision}, and trainer.bf16={str(config.trainer.bf16).lower()}",
            "here trainer.bf16 decides: unset the variable, or mixed_precision: 'no' in accelerate's configuration",
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UserError("ACCELERATE_DYNAMO_BACKEND asks for torch.compile, which was never tried here", "unset it")
    if sharding.is_deepspeed and "RANK" not in os.environ:
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


if __name__ == "__main__":
    main()
