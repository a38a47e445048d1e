"""MLflow completed, or rebuilt, from folders alone.

python -m echoink.sync outputs                                    every run and sweep below outputs
python -m echoink.sync outputs/tiny/<run> uri=http://server:5000  one run, into another store

The store is sqlite:///outputs/mlflow.db where no uri= is given. What is there already is left as it is: running it
twice changes nothing. A run whose process died is closed as KILLED.
"""

from collections.abc import Sequence
from pathlib import Path

from echoink.common import cli, console
from echoink.common.errors import UserError
from echoink.tracking.client import absolute_uri
from echoink.tracking.sync import folder


def main(words: Sequence[str]) -> int:
    """Complete every folder; see the module's docstring."""
    uris = [word.partition("=")[2] for word in words if word.startswith("uri=")]
    uri = absolute_uri(uris[-1] if uris else "sqlite:///outputs/mlflow.db", Path.cwd())
    places: list[Path] = []
    for word in (Path(word) for word in words if not word.startswith("uri=")):
        if not word.is_dir():
            raise UserError(f"no such folder: {word}", "give folders of runs, sweeps or outputs")
        files = word.rglob("tracking.json")
        places += [file.parent for file in files if "unfinished" not in file.relative_to(word).parts]
    if not places:
        raise UserError("no folder there has a tracking.json", "give folders of runs, sweeps or outputs")
    places = sorted(dict.fromkeys(places), key=lambda place: (not (place / "sweep.json").is_file(), str(place)))
    failed = 0
    for place in console.progress("sync", len(places))(places):  # sweeps first: their jobs look for them
        try:
            folder(place, uri)
        except Exception as error:  # a store raises many kinds of its own; the next folder may do
            failed += 1
            console.say("failed", f"{place}: {next(iter(str(error).splitlines()), type(error).__name__)}")
    console.say("synced", f"{len(places) - failed} of {len(places)} folders · {uri}")
    return int(failed > 0)


if __name__ == "__main__":
    cli.run(main, __doc__)
