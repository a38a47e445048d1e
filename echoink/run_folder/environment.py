"""What a run ran on: versions, commit, machine, processes."""

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from echoink.common import processors
from echoink.common.files import read_json
from echoink.run_folder.folder import in_use

_LIBRARIES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "mlflow", "hydra-core", "omegaconf"),
    *("triton", "bitsandbytes", "deepspeed"),
)


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, machine, git commit, command."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": processors.available(),
        "process": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "processes_per_host": int(here) if (here := os.environ.get("LOCAL_WORLD_SIZE")) else None,
        "host": socket.gethostname(),
        "versions": {library: version(library) for library in _LIBRARIES},
        **git(),
    }


def process_is_gone(folder: Path) -> bool:
    """Whether the process that wrote a run's or sweep's folder has ended; False if it ran on another machine."""
    files = [file for name in ("environment.json", "sweep.json") if (file := folder / name).is_file()]
    found = read_json(files[0]) if files else {}
    if found.get("host") != socket.gethostname():
        return False
    try:
        began = psutil.Process(found["process"]).create_time()
    except psutil.NoSuchProcess:
        return True
    # Another process has its PID; or it still runs and the clock was set: then it holds the folder's lock.
    return abs(began - found["process_started"]) > 1 and not in_use(folder)


def is_of_another_host(folder: Path) -> bool:
    """Whether the process that wrote a run's folder ran on another machine or in another container."""
    file = folder / "environment.json"
    return file.is_file() and read_json(file).get("host") != socket.gethostname()


def git() -> dict[str, str | bool | None]:
    """Commit of the checkout that this package runs from, and whether it has uncommitted changes."""

    def ask(*words: str) -> str | None:
        try:
            found = subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return found.stdout.strip()

    root = ask("rev-parse", "--show-toplevel")
    ours = root is not None and Path(root).resolve() == Path(__file__).resolve().parent.parent.parent
    commit = ask("rev-parse", "HEAD") if ours else None  # not that of a project that merely installed the package
    return {"commit": commit, "uncommitted_changes": bool(ask("status", "--porcelain")) if commit else None}
