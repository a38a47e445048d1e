"""Finds a sweep's overrides: those of the command line, or of the sweep that it resumes. `sweep_run.py` runs it."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser

from echoink.common.errors import UserError
from echoink.common.files import read_json
from echoink.config.schema import Config
from echoink.run_folder.environment import process_is_gone


class Settled(NamedTuple):
    """The overrides, folder and configuration folder of a sweep."""

    overrides: list[str]
    folder: Path | None = None
    """The resumed sweep's folder; None for a new sweep."""
    config_dir: str | None = None
    """The --config-dir that the resumed sweep was started with."""


def is_search(definition: Mapping[str, Any]) -> bool:
    """Whether a sweep.json belongs to a search; in an older file only the overrides show this."""
    return definition.get("search", any(word.startswith("hydra/sweeper=") for word in definition.get("overrides", ())))


def is_running(folder: Path) -> bool:
    """Whether a sweep's process runs on this machine."""
    there = read_json(folder / "sweep.json")
    return (
        there.get("status") == "running" and there.get("host") == socket.gethostname() and not process_is_gone(folder)
    )


def check_jobs(jobs: Sequence[Config], is_search: bool) -> None:
    """Refuse settings that several jobs cannot have, or that would do nothing.

    Raises:
        UserError: they push to one repository, or share runs of a folder that is not there.
    """
    config = jobs[0]
    if config.sweep.share and not Path(config.sweep.share).is_dir():
        raise UserError(f"sweep.share={config.sweep.share}: no such folder", "outputs, or the folder of a sweep")
    pushed = [job.trainer.push_to_hub for job in jobs if job.trainer.push_to_hub]
    if len(set(pushed)) < len(pushed) or (pushed and is_search):
        hint = "leave trainer.push_to_hub out, and push the one that you want: python -m echoink.export … push_to=…"
        raise UserError(f"each job would replace what another has pushed to {pushed[0]}", hint)


def refuse(overrides: Sequence[str], folder: Path) -> None:
    """Refuse a folder that holds another sweep, whose jobs would be counted too.

    Args:
        overrides: the new sweep's.
        folder: the new sweep's.

    Raises:
        UserError: the folder holds a search, or a sweep with other jobs.
    """
    file = folder / "sweep.json"
    definition = read_json(file) if file.is_file() else None
    if definition and (is_search(definition) or _of_jobs(definition["overrides"]) != _of_jobs(overrides)):
        raise UserError(
            f"{folder} holds another sweep: {' '.join(definition['overrides'])}", "choose another hydra.sweep.dir"
        )


def _of_jobs(overrides: Sequence[str]) -> list[str]:
    """The overrides that decide which jobs there are."""
    return sorted(word for word in overrides if not word.startswith(("hydra", "sweep.", "tracking.")))


def settled(overrides: list[str]) -> Settled:
    """What a sweep is started with: the command line's overrides, or those stored in the folder of `sweep.resume=`.

    Raises:
        UserError: the folder holds no sweep or a search, or overrides are given that are not its own.
    """
    given = [override for override in overrides if override.startswith("sweep.resume=")]
    value = OverridesParser.create().parse_override(given[-1]).value() if given else None
    if value is None:
        return Settled(overrides)
    folder = Path(str(value))
    if not (folder / "sweep.json").is_file():
        raise UserError(f"sweep.resume={folder} is not the folder of a sweep", "a sweep's folder has a sweep.json")
    definition = read_json(folder / "sweep.json")
    if is_running(folder):
        raise UserError(f"the sweep {folder} is still running", "wait for it, or end its process")
    before = definition["overrides"]
    if is_search(definition):
        raise UserError(f"{folder} is a search, which cannot be resumed", "start another one")
    others = [
        o for o in overrides if o not in before and not o.startswith(("sweep.resume=", "hydra/launcher", "hydra."))
    ]
    if others:
        raise UserError(
            f"sweep.resume={folder} goes on with its own overrides, not with {', '.join(others)}", "start another sweep"
        )
    if any(word.startswith("hydra/launcher=") for word in overrides):  # the settings of another launcher go with it
        before = [word for word in before if not word.startswith(("hydra/launcher=", "hydra.launcher."))]
    again = [*before, *(o for o in overrides if o.startswith("hydra") and o not in before)]
    return Settled(again, folder, definition.get("config_dir"))
