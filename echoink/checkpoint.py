"""Model folders on disk: written aside and renamed, so that a checkpoint is whole or absent.

A run keeps `checkpoints/step-N/`, each a plain transformers model folder (weights, configuration, processor), or a PEFT
adapter's with the processor beside it.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from echoink.errors import UserError

_STEP = re.compile(r"step-(\d+)$")
BEST = "best.json"


def steps(run: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if _STEP.search(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """N of `step-N`."""
    return int(_STEP.search(folder.name).group(1))


def best(run: Path) -> Path | None:
    """The checkpoint of a run that answered the development split best; None where that was not asked."""
    note = run / "checkpoints" / BEST
    folder = run / "checkpoints" / f"step-{json.loads(note.read_text())['step']}" if note.is_file() else None
    return folder if folder and folder.is_dir() else None


def save(
    run: Path, step: int, write: Callable[[Path], None], keep: int, best_of: dict[str, float] | None = None
) -> Path:
    """Write `checkpoints/step-N` by `write(folder)`, then drop all but the `keep` newest and the best.

    `best_of` has step and accuracy of the best so far, where there is one; it is noted in `checkpoints/best.json`.

    The files are written to a folder beside it and flushed before the rename; a failure leaves older checkpoints alone.
    """
    final = run / "checkpoints" / f"step-{step}"
    part = final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}")
    part.mkdir(parents=True)
    try:
        write(part)
        for path in part.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        if final.exists():
            shutil.rmtree(final)
        os.rename(part, final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if best_of:
        note = run / "checkpoints" / BEST
        note.with_suffix(".part").write_text(json.dumps(best_of) + "\n")
        os.replace(note.with_suffix(".part"), note)
    for old in steps(run)[:-keep]:
        if old != best(run):
            shutil.rmtree(old)
    return final


def resolve(checkpoint: str) -> str:
    """What to load for `checkpoint=`: of a run folder the best step, else the newest; a step or model folder; a hub id.

    Raises:
        UserError: the folder is neither, or there is no such folder and the text is no hub id.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return str(folder)
        if found := steps(folder):
            return str(best(folder) or found[-1])
        raise UserError(
            f"checkpoint={checkpoint} is neither a model folder nor a run with checkpoints",
            "a model folder holds config.json (or adapter_config.json); a run folder holds checkpoints/step-N",
        )
    if checkpoint == "tiny" or (re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint) and not checkpoint.startswith("outputs/")):
        return checkpoint
    raise UserError(f"checkpoint={checkpoint}: no such folder", "give a run folder, a step folder or a hub id")
