"""Completes or rebuilds MLflow from the run folders alone.

    python -m echoink.sync outputs                                    every run and sweep below outputs
    python -m echoink.sync outputs/tiny/<run> uri=http://server:5000  one run, into another store
    python -m echoink.sync outputs/tiny/<run> killed=true             one that was killed on another machine

Without uri= the store is sqlite:///outputs/mlflow.db. What is up to date there is left as it is: running the command
twice changes nothing. A run whose process died is closed as KILLED.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from echoink.common import cli, console
from echoink.common.errors import UserError, first_line
from echoink.common.keys import key
from echoink.run_folder import reader
from echoink.tracking.client import absolute_uri
from echoink.tracking.sync import folder


@dataclass
class SyncConfig:
    """Settings other than the folders."""

    uri: str = key("the store", "sqlite:///outputs/mlflow.db")
    killed: bool = key("close runs of other machines that recorded no end; they must not be running", False)


def main(words: Sequence[str]) -> int:
    """Complete every folder; see the module's docstring."""
    given, settings = cli.places_and_settings(words)
    config = cli.settings(SyncConfig, settings)
    uri = absolute_uri(config.uri, Path.cwd())
    places: list[Path] = []
    for word in map(Path, given):
        if not word.is_dir():
            raise UserError(f"no such folder: {word}", "give folders of runs, sweeps or outputs")
        places += reader.below(word, "tracking.json")
    if not places:
        raise UserError("no folder there has a tracking.json", "give folders of runs, sweeps or outputs")
    places = sorted(dict.fromkeys(places), key=lambda place: (not (place / "sweep.json").is_file(), str(place)))
    failed = 0
    for place in console.progress("sync", len(places))(places):  # sweeps first: their jobs look for them
        try:
            folder(place, uri, killed=config.killed)
        except Exception as error:  # stores raise many types; the next folder may work
            failed += 1
            hint = f" → {error.hint}" if isinstance(error, UserError) and error.hint else ""
            console.say("failed", f"{place}: {first_line(error)}{hint}")
    console.say("synced", f"{len(places) - failed} of {len(places)} folders · {uri}")
    return int(failed > 0)


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, SyncConfig))
