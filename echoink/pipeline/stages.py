"""Runs supervised stages one after another: each is a run of `echoink.train` and starts from the previous model."""

import gc
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from echoink.common import cli
from echoink.common.console import quiet_libraries, say
from echoink.common.errors import UserError
from echoink.common.files import as_json, read_json, write_atomic
from echoink.config.compose import compose
from echoink.config.overrides import quoted
from echoink.config.schema import to_yaml
from echoink.run_folder import checkpoint, reader
from echoink.run_folder.folder import read_summary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    Made = tuple[PreTrainedModel, ProcessorMixin, dict]

RECORD = "how_it_was_made.json"


@dataclass(frozen=True)
class Stage:
    """One of the runs."""

    name: str
    """The stage's name, also of its folder."""
    words: Sequence[str]
    """Its overrides, without those for model, folder and resuming."""


def learn(stages: Sequence[Stage], model: Path, work: Path) -> tuple[Path, list[dict]]:
    """Run the stages that have not finished; resume one that was interrupted.

    Args:
        stages: the stages in order.
        model: folder of the model that the first stage starts from.
        work: folder for the runs.

    Returns:
        The folder of the last stage's model, and for each stage its steps, seconds and evaluation.

    Raises:
        UserError: a stage failed.
    """
    record = []
    for stage in stages:
        run = work / stage.name
        words = [*stage.words, f"model.path={quoted(model)}", f"hydra.run.dir={quoted(run)}", "resume=auto"]
        there, wanted = reader.read(run), reader.method(to_yaml(compose(words)[0].config))
        if not (there and there.finished and there.config == wanted):  # the run refuses other settings
            say("stage", stage.name)
            gc.collect()  # a model that this process has made; the run needs the memory
            if status := cli.train(words):
                hint = "the same command goes on from there"
                raise UserError(f"the stage {stage.name} ended with exit status {status}", hint)
        summary = read_summary(run)
        record.append({"stage": stage.name, **{name: summary[name] for name in ("steps", "seconds", "final")}})
        model = Path(checkpoint.resolve(str(run)))
    return model, record


def check(stage: Stage) -> None:
    """Compose a stage's command line to find its errors early.

    Raises:
        UserError: `echoink.train` would refuse it.
    """
    compose([*stage.words, "model.path=tiny"])


def begin(output: Path, settings: dict, decides: Sequence[str]) -> Path:
    """The work folder for the model `output`: a new one, or one that was begun with the same settings.

    Args:
        output: the model's folder.
        settings: the command's.
        decides: names of the settings that decide what is made.

    Raises:
        UserError: the model exists, or was begun with other settings.
    """
    if output.exists():
        raise UserError(f"{output} is there already", "give a new folder: output=…")
    work = folder_of(output)
    told, wanted = work / "settings.json", {name: settings[name] for name in decides}
    before = read_json(told) if told.is_file() else wanted
    if different := ", ".join(name for name, value in wanted.items() if before.get(name, value) != value):
        raise UserError(
            f"{work} was begun with another value of {different}", "delete it, or give a new folder: output=…"
        )
    work.mkdir(parents=True, exist_ok=True)
    write_atomic(told, as_json(wanted))
    return work


def folder_of(output: Path) -> Path:
    """The folder of the stages of a model.

    Raises:
        UserError: the model's folder has no name.
    """
    if not output.name:
        raise UserError(f"output={output} has no name", "give a new folder: output=outputs/mine")
    return output.with_name(f"{output.name}_stages")


def made_once(folder: Path, make: Callable[[], "Made"]) -> Path:
    """A model's complete folder: it is made now unless it exists."""
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        with quiet_libraries():
            started = time.perf_counter()
            model, processor, record = make()
            model.save_pretrained(part)
            processor.save_pretrained(part)
        told = {**record, "seconds": round(time.perf_counter() - started)}
        (part / RECORD).write_text(as_json(told), encoding="utf-8")
        part.rename(folder)
    return folder


def record_of(folder: Path) -> dict:
    """The stored record of how a folder of `made_once` was made."""
    return read_json(folder / RECORD)


def finish(
    output: Path, write: Callable[[Path], object], settings: dict, record: Sequence[dict], use: Sequence[str] = ()
) -> None:
    """Write the model's folder, whole or not at all, with a record of how it was made, and print where it is.

    Args:
        output: the folder.
        write: writes the model to a given folder.
        settings: the command's.
        record: the record of each stage.
        use: further words of the command that trains the model, which is printed.
    """
    part = output.with_name(f".{output.name}.whole")
    shutil.rmtree(part, ignore_errors=True)
    with quiet_libraries():
        write(part)
    told = {"config": {name: value for name, value in settings.items() if name != "output"}, "stages": record}
    (part / RECORD).write_text(as_json(told), encoding="utf-8")
    part.rename(output)
    say("written", f"{output} · {folder_of(output)} can be deleted")
    say("try it", f"python -m echoink.train {shlex.join([*use, f'model.path={quoted(output)}'])}")
