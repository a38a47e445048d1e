"""Lists the runs in the output folders: status, accuracy, changed keys, and the command to resume.

    python -m echoink.runs                          all of outputs/
    python -m echoink.runs outputs/tiny             only those below a folder
    python -m echoink.runs status=unfinished        those that can resume, with the command to paste
    python -m echoink.runs status=failed            or finished, running, killed

The jobs of a sweep are listed together; one command runs all that are missing.
"""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.markup import escape
from rich.table import Table
from yaml import YAMLError

from echoink.common import cli
from echoink.common.console import console, percent, say
from echoink.common.errors import UserError
from echoink.common.files import read_json
from echoink.config.overrides import quoted
from echoink.config.schema import Task
from echoink.pipeline.sweep import is_running, is_search
from echoink.run_folder import checkpoint, reader, resume
from echoink.run_folder.environment import process_is_gone
from echoink.run_folder.folder import in_use, read_summary
from echoink.run_folder.reader import Run

UNFINISHED = "unfinished"
_PLACES = ("hydra", "resume", "tracking.", "sweep.", "eval.cache", "seed=", "name=")
"""Overrides that say where files go, or that have their own column."""

CHANGED = 4
"""How many changed keys are shown."""


def changed(run: Run) -> str:
    """The first overrides of a run's command line; if it has none, the first keys that differ from the defaults."""
    given = [word for word in reader.overrides(run.folder) if not word.startswith(_PLACES)]
    if sweep := reader.sweep_of(run.folder):  # first what differs between the sweep's jobs
        swept = _said(sweep).get("swept", [])
        given.sort(key=lambda word: word.partition("=")[0] not in swept)
    if not given:
        default = reader.defaults()
        keys = [key for key in run.config if run.config[key] not in (None, default.get(key)) and key != "seed"]
        given = [f"{key}={run.config[key]}" for key in keys]
    shown = ", ".join(f"{key}={_short(value)}" for key, _, value in (word.partition("=") for word in given[:CHANGED]))
    return shown + (f" and {len(given) - CHANGED} more" if len(given) > CHANGED else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 30 else "…" + text[-29:]


def going_on(run: Run) -> str | None:
    """The command that resumes an unfinished training run; None if it cannot be resumed."""
    if (
        resume.has_ended(run.summary)
        or run.summary.get("task") not in (Task.train.name, Task.sft.name)
        or in_use(run.folder)
    ):
        return None
    if sweep := reader.sweep_of(run.folder):
        said = _said(sweep)
        return None if is_search(said) or (said and is_running(sweep)) else sweep_command(sweep)
    own = run.folder / ".hydra"
    written = all((own / name).is_file() for name in ("overrides.yaml", "hydra.yaml"))
    fails_again = run.summary["status"] == "failed" and not checkpoint.steps(run.folder)  # such as a wrong path
    if not written or fails_again or not checkpoint.can_go_on(run.folder):
        return None
    given = [word for word in reader.overrides(run.folder) if not word.startswith(("resume=", "hydra."))]
    sources = OmegaConf.load(own / "hydra.yaml").hydra.runtime.config_sources
    flags = [word for each in sources if each.provider == "command-line" for word in ("--config-dir", each.path)]
    words = [*_launcher(run), "-m", "echoink.train", *flags, *given]
    return _where_it_began(_began(run.folder), words, "resume", run.folder)


def _began(folder: Path) -> Path:
    """The folder in which a run began; this one, if its file does not say."""
    with suppress(OSError, YAMLError, OmegaConfBaseException):
        return Path(OmegaConf.load(folder / ".hydra/hydra.yaml").hydra.runtime.cwd)
    return Path.cwd()


def _where_it_began(began: Path, words: Sequence[str], key: str, folder: Path) -> str:
    """A command for the folder in which a run began: relative paths, also those of the defaults, count from there."""
    if began == Path.cwd() or not began.is_dir():
        return shlex.join([*words, f"{key}={quoted(folder)}"])
    return f"cd {shlex.quote(str(began))} && {shlex.join([*words, f'{key}={quoted(folder.resolve())}'])}"


def _launcher(run: Run) -> list[str]:
    """The words that start a run's processes; for several machines they are to be given on each of them."""
    processes = run.config["trainer.processes"]
    if processes <= 1 and not str(run.config["trainer.sharding"]).startswith("zero"):
        return ["python"]
    per_host = None
    with suppress(OSError, UserError):  # one damaged folder must not hide the others
        per_host = read_json(run.folder / "environment.json").get("processes_per_host")
    if per_host in (None, processes):
        return ["torchrun", "--nproc_per_node", str(processes)]
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "FIRST_HOST:29500"]
    return ["torchrun", "--nnodes", str(processes // per_host), "--nproc_per_node", str(per_host), *meeting]


def _said(sweep: Path) -> dict[str, Any]:
    """A sweep's definition; empty if its file is damaged: one folder must not hide the others."""
    with suppress(UserError):
        return read_json(sweep / "sweep.json")
    return {}


def sweep_command(sweep: Path) -> str:
    """The command that resumes a sweep."""
    jobs = reader.jobs(sweep)
    began = _began(jobs[0]) if jobs else Path.cwd()
    return _where_it_began(began, ["python", "-m", "echoink.train", "--multirun"], "sweep.resume", sweep)


def status(run: Run) -> str:
    """A run's status: `killed` if its folder says that it is running, but no process holds the folder."""
    said = str(run.summary["status"])
    if not run.summary.get("ended") and in_use(run.folder):
        return "running"
    return "killed" if said == "running" else said


def unfinished_sweeps(folders: Sequence[Path]) -> list[Path]:
    """Sweeps that have ended with unfinished or missing jobs; searches are left out."""
    found = []
    for sweep in sorted(place for folder in folders for place in reader.below(folder, "sweep.json")):
        if not (said := _said(sweep)):
            continue
        done = [job for job in reader.jobs(sweep) if read_summary(job)["status"] == "finished"]
        if len(done) < said["jobs"] and not is_search(said) and (said["status"] != "running" or process_is_gone(sweep)):
            found.append(sweep)
    return found


def main(words: Sequence[str]) -> None:
    """Print the table and the commands.

    Raises:
        UserError: a folder is missing, or a word is not known.
    """
    places, others = cli.places_and_settings(words)
    given = dict(word.split("=", 1) for word in others)
    if unknown := [key for key in given if key != "status"]:
        raise UserError(f"{unknown[0]}= is not known", "status=unfinished, or folders")
    folders = [Path(place) for place in places] or [Path("outputs")]
    runs = reader.find(folders)
    ways = {run.folder: going_on(run) for run in runs}
    wanted = given.get("status")
    known = {UNFINISHED, "finished", "running", "failed", "killed", *map(status, runs)}
    if wanted is not None and wanted not in known:
        raise UserError(f"status={wanted} is not known", f"known: {', '.join(sorted(known))}")
    chosen = [
        run for run in runs if wanted is None or status(run) == wanted or (wanted == UNFINISHED and ways[run.folder])
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("run", "task", "status", "seed", "base", "final", "changed"):
        table.add_column(title, no_wrap=title not in ("run", "changed"), overflow="fold")
    for run in chosen:
        base, final = (percent((run.summary.get(phase) or {}).get("accuracy")) for phase in ("base", "final"))
        row = (run.folder, run.summary.get("task", ""), status(run), run.seed, base, final, changed(run))
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table)
    sweeps = unfinished_sweeps(folders) if wanted in (None, UNFINISHED) else []
    commands = [way for run in chosen if (way := ways[run.folder])]
    for command in dict.fromkeys([*commands, *map(sweep_command, sweeps)]):
        say("go on", command)
    for sweep in sorted({sweep for run in chosen if (sweep := reader.sweep_of(run.folder))}):
        if _said(sweep).get("status") == "finished":
            say("report", str(sweep / "report.html"))


if __name__ == "__main__":
    cli.run(main, __doc__, needs_words=False)
