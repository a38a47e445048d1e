"""What a sweep is started with: its command line, or what an earlier one remembers. `sweep_run.py` runs it."""

import json
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser

from echoink.common.errors import UserError


class Settled(NamedTuple):
    """What a sweep is started with."""

    overrides: list[str]
    folder: Path | None = None
    """Of the sweep that goes on; None for a new one."""
    config_dir: str | None = None
    """That the sweep which goes on was started with."""


def settled(overrides: list[str]) -> Settled:
    """What a sweep is started with: the command line, or what the one that `sweep.resume=` names remembers.

    Raises:
        UserError: it is no sweep's folder, or other overrides than its own are given beside.
    """
    given = [override for override in overrides if override.startswith("sweep.resume=")]
    value = OverridesParser.create().parse_override(given[-1]).value() if given else None
    if value is None:
        return Settled(overrides)
    folder = Path(str(value))
    if not (folder / "sweep.json").is_file():
        raise UserError(f"sweep.resume={folder} is no folder of a sweep", "it has a sweep.json")
    definition = json.loads((folder / "sweep.json").read_text())
    before = definition["overrides"]
    others = [
        o for o in overrides if o not in before and not o.startswith(("sweep.resume=", "hydra/launcher", "hydra."))
    ]
    if others:
        raise UserError(
            f"sweep.resume={folder} goes on with its own overrides, not with {', '.join(others)}", "start another sweep"
        )
    if any(o.startswith("hydra/sweeper=") for o in before):
        raise UserError("a search cannot be taken up", "start another one")
    again = [*before, *(o for o in overrides if o.startswith("hydra") and o not in before)]
    return Settled(again, folder, definition.get("config_dir"))
