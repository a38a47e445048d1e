"""Checkpoints on disk: whole or absent, with a manifest to check them.

A run keeps `checkpoints/step-N/`, each a plain transformers model folder (weights, configuration, processor), or a PEFT
adapter's with the processor beside it. The `RESUMABLE` newest also hold the state that training resumes from:
`optimizer.pt`, `scheduler.pt`, `rng_state.pth`, `trainer_state.json` and `rollout.pt`. `manifest.json` has every file's
size and SHA-256; a folder that does not match it is damaged. A checkpoint is written to a temporary folder, flushed and
renamed; only then are old ones deleted.

Each process writes its own `rng_state.pth` and `rollout.pt`. Under FSDP2 each also writes its shards of the weights
(`shard-….safetensors`, which `loading.load_model` reads and `python -m echoink.export` merges) and of the optimizer's
state (`optimizer/`); under DeepSpeed its shards of that state (`global_step…/`).
"""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from echoink.common.console import say
from echoink.common.errors import UserError
from echoink.common.files import as_json, read_json, write_atomic

_STEP = re.compile(r"step-(\d+)$")
FOLDER = "checkpoints"
BEST = "best.json"
MANIFEST = "manifest.json"
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "rollout.pt")
"""The files that only training needs; the optimizer's is twice the size of the weights that learn."""
_OF_TRAINING = re.compile(
    rf"({'|'.join(map(re.escape, STATE))})(\.process-\d+)?$"
    r"|optimizer/|global_step\d+/|latest$|zero_to_\w+\.py$"  # FSDP2's and DeepSpeed's
)
_OPTIMIZER = re.compile(r"optimizer\.pt$|optimizer/|global_step\d+/")
UNIVERSAL = "_universal"
"""Suffix of DeepSpeed's universal shards, which any number of processes reads; they exist only during a start."""
_THREADS = 4
"""Files that a process reads at a time."""
RESUMABLE = 2
"""This many newest checkpoints keep `STATE`."""


def steps(run: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    found = [path for path in (run / FOLDER).glob("step-*") if _STEP.search(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """N of `step-N`."""
    return int(_STEP.search(folder.name).group(1))


def best(run: Path) -> Path | None:
    """A run's checkpoint with the best development accuracy; None if that split was not evaluated."""
    note = run / "checkpoints" / BEST
    folder = run / "checkpoints" / f"step-{read_json(note)['step']}" if note.is_file() else None
    return folder if folder and folder.is_dir() else None


def save(
    run: Path,
    step: int,
    write: Callable[[Path], None],
    keep: int,
    provenance: dict[str, Any] | None = None,
    on_main_process: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    each: Callable[[Callable[[], None]], None] = lambda work: work(),
    share: Callable[[Callable[[int, int], Any]], list] = lambda work: [work(0, 1)],
) -> Path:
    """Write `checkpoints/step-N` by `write(folder)`, then drop all but the `keep` newest and the best.

    A failure leaves older checkpoints alone, and nothing of this one.

    Args:
        run: the run's folder.
        step: N.
        write: writes the files.
        keep: how many of the newest checkpoints are kept.
        provenance: what else the manifest says, such as what the weights were trained on.
        on_main_process: runs work in the run's first process; returns its result in all.
        each: runs work in every process; a failure in one is a failure in all.
        share: runs work(number, processes) in every process; returns all results in all of them.
    """
    final = run / "checkpoints" / f"step-{step}"

    def begin() -> Path:
        part = final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}")
        part.mkdir(parents=True)
        return part

    def finish(found: dict[str, Any]) -> None:
        files = dict(sorted(found.items()))
        (part / MANIFEST).write_text(as_json({"step": step, **(provenance or {}), "files": files}), "utf-8")
        # Directories too: without it a crash may leave a renamed folder whose files' names are lost.
        for path in (part / MANIFEST, *(path for path in part.rglob("*") if path.is_dir()), part):
            _flush(path)
        if final.exists():  # another one of this step, which no run goes on from
            _remove(final)
        os.rename(part, final)
        _flush(final.parent)

    part = on_main_process(begin)
    try:
        each(lambda: write(part))
        # 100 GB are read once more here: each process reads its share, several files at a time.
        names = on_main_process(lambda: _largest_first(part))  # one list: over a network others may see a file later
        shares = share(lambda number, processes: _flushed_and_seen(part, names[number::processes]))
        on_main_process(lambda: finish({name: seen for one in shares for name, seen in one.items()}))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    on_main_process(lambda: rotate(run, keep))
    return final


def rotate(run: Path, keep: int) -> None:
    """Delete all but the `keep` newest and the best; all but the `RESUMABLE` newest lose their training state."""
    for old in steps(run)[:-keep]:
        if old != best(run):
            _remove(old)
    for old in steps(run)[:-RESUMABLE]:
        _leave_weights(old)  # the optimizer's state is twice the weights, and nobody goes on from an old step


def _remove(folder: Path) -> None:
    """Remove a checkpoint. A file that another process reads may stay for a while (NFS); `tidy` clears what is left."""
    gone = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _leave_weights(folder: Path) -> None:
    said = manifest(folder)
    if not said:  # without a readable manifest the folder is damaged, and stays so
        return
    of_training = [path for path in folder.rglob("*") if _OF_TRAINING.match(str(path.relative_to(folder)))]
    if of_training:
        # The manifest first: a kill in between leaves files that it does not list, not entries without a file.
        said["files"] = {name: seen for name, seen in said.get("files", {}).items() if not _OF_TRAINING.match(name)}
        write_atomic(folder / MANIFEST, as_json(said))
    for path in of_training:
        if path.is_file():
            path.unlink()
    for name in sorted({path.parent for path in of_training} - {folder}, reverse=True):
        shutil.rmtree(name, ignore_errors=True)


def of_process(number: int) -> Callable[[str], str]:
    """How one process names a file that every process writes."""
    return lambda name: f"{name}.process-{number}" if number else name


def note_best(run: Path, best_of: dict[str, float]) -> None:
    """Note step and accuracy of the checkpoint with the best accuracy on the development split."""
    write_atomic(run / "checkpoints" / BEST, json.dumps(best_of) + "\n")


def _largest_first(folder: Path) -> list[str]:
    """Names of a folder's files, the largest first."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)) for path in sorted(files, key=lambda path: (-path.stat().st_size, path))]


def _flushed_and_seen(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Flush files to disk; return size and digest by name."""

    def work(name: str) -> dict[str, Any]:
        _flush(folder / name)
        return _seen(folder / name)

    with ThreadPoolExecutor(_THREADS) as threads:  # hashing and disk access release the GIL
        return dict(zip(names, threads.map(work, names), strict=True))


def _seen(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot flush a directory
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest; empty if it cannot be read."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def damage(folder: Path, thorough: bool = True, trains: bool = True) -> str | None:
    """What is wrong with a checkpoint; None where it is as it was written.

    Args:
        folder: `step-N`.
        thorough: compare the contents too, not only the sizes.
        trains: check the state for resuming too, not only the model.
    """
    said = manifest(folder)
    if not isinstance(said.get("files"), dict):
        return f"{MANIFEST} is missing or cannot be read"
    files = {name: wanted for name, wanted in said["files"].items() if trains or not _OF_TRAINING.match(name)}
    size = sum(wanted["bytes"] for wanted in files.values())
    if thorough and size > 2**31:  # which takes seconds to read
        say("checkpoint", f"comparing {size / 2**30:.0f} GiB of {folder} with their digests")
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, not {wanted['bytes']:,}"
    if thorough:
        with ThreadPoolExecutor(_THREADS) as threads:
            found = threads.map(lambda name: _seen(folder / name), files)
            for (name, wanted), seen in zip(files.items(), found, strict=True):
                if seen != wanted:
                    return f"{name} has changed since it was written"
    return None


def _goes_on(said: dict[str, Any]) -> bool:
    """Whether a manifest lists what training goes on from."""
    names = said.get("files", {})
    return all(name in names for name in STATE[1:]) and any(map(_OPTIMIZER.match, names))


def newest(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that training can go on from, and the newer ones that are damaged, with what is wrong."""
    damaged: dict[Path, str] = {}
    for folder in reversed(steps(run)):
        wrong = damage(folder)
        if wrong is None and not _goes_on(manifest(folder)):
            return None, damaged  # those before it have no optimizer either
        if wrong is None:
            return folder, damaged
        damaged[folder] = wrong
    return None, damaged


def can_go_on(run: Path) -> bool:
    """Whether a run has no checkpoint yet, or one to resume from, judging by file sizes."""
    found = steps(run)
    return not found or any(_goes_on(manifest(folder)) and not damage(folder, thorough=False) for folder in found)


def tidy(run: Path) -> None:
    """Delete what a killed save or start has left behind."""
    for part in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(part, ignore_errors=True)
    for folder in steps(run):
        drop_universal(folder)


def drop_universal(folder: Path) -> None:
    """Remove what `sharded_checkpoint.make_universal` wrote, whole or not."""
    for made in folder.glob(f"global_step*{UNIVERSAL}"):
        shutil.rmtree(made)
    (folder / "latest_universal").unlink(missing_ok=True)


def run_of(folder: Path) -> Path | None:
    """The run of a folder that is a run or one of its checkpoints; None for any other folder."""
    run = folder.parent.parent if folder.parent.name == FOLDER else folder
    return run if (run / FOLDER).is_dir() and (run / "config.yaml").is_file() else None


def chosen(folder: Path) -> Path | None:
    """The model folder itself, or a run's best step, else its newest; None for another folder."""
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return folder
    found = steps(folder)
    return (best(folder) or found[-1]) if found else None


def resolve(checkpoint: str) -> str:
    """What to load for `checkpoint=`: a run folder's best step, else its newest; a step or model folder; a hub id.

    Raises:
        UserError: the folder is none of these, its model is damaged, or the text is neither a folder nor a hub id.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        if found := chosen(folder):
            if (found / MANIFEST).exists() and (wrong := damage(found, trains=False)):
                hint = f"choose another checkpoint; if you changed it on purpose, remove its {MANIFEST}"
                raise UserError(f"{found} is damaged: {wrong}", hint)
            return str(found)
        raise UserError(
            f"checkpoint={checkpoint} is neither a model folder nor a run with checkpoints",
            "a model folder holds config.json (or adapter_config.json); a run folder holds checkpoints/step-N",
        )
    if checkpoint == "tiny" or (re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint) and not checkpoint.startswith("outputs/")):
        return checkpoint
    raise UserError(f"checkpoint={checkpoint}: no such folder", "give a run folder, a step folder or a hub id")
