"""What is checked before anything expensive starts: GPUs, the disk, the run's folder, the tracking store, the hub."""

import importlib.util
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

from echoink.common.console import counted
from echoink.common.errors import UserError, first_line
from echoink.config.schema import Attention
from echoink.tracking import client


def check_attention(attention: Attention) -> None:
    """Raises `UserError` where the towers' attention kernel is not installed."""
    if attention is Attention.flash_attention_2 and importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            "model.attention=flash_attention_2 needs the package flash-attn, which is not installed",
            "model.attention=sdpa needs nothing; or pip install flash-attn --no-build-isolation",
        )


def check_gpus(bf16: bool) -> str | None:
    """Whether PyTorch can use the GPUs that the machine has: if a driver is too old, it silently uses the CPU. And
    whether kernels can be compiled for them.

    Returns:
        A warning, for a run that may go on without them.

    Raises:
        UserError: the run asks for bfloat16, and PyTorch cannot use a GPU, or the GPU only emulates it.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")  # the user chose the CPU
    there = len(list(NVIDIA_GPUS.iterdir())) if NVIDIA_GPUS.is_dir() else 0
    if hidden or not (there or bf16):
        return None
    import torch

    if torch.cuda.is_available():
        # Emulated, it is slow, and its attention kernel cannot be compiled: without it memory runs out.
        if bf16 and torch.version.cuda and torch.cuda.get_device_capability() < (8, 0):
            raise UserError(f"{torch.cuda.get_device_name()} has no bfloat16 of its own", "set trainer.bf16=false")
        return without_compiler()
    if not there:
        return None
    found = f"{counted(there, 'GPU')} there, and PyTorch {torch.__version__} cannot use {'them' if there > 1 else 'it'}"
    way = f"its CUDA {torch.version.cuda} needs a newer driver, or this is a build for the CPU; nvidia-smi says more"
    if bf16:
        raise UserError(found, f"{way}; CUDA_VISIBLE_DEVICES= and trainer.bf16=false for the CPU")
    return f"{found}: {way}"


def without_compiler() -> str | None:
    """What a GPU's attention kernels lack to be compiled; None where there is all. Triton compiles a module in C."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang", "cc")), None)
    if compiler is None or not shutil.which(compiler.split()[0]):
        return "no C compiler (gcc), without which Triton cannot load a kernel"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.is_file() else f"no {header}, without which Triton cannot load a kernel (python3-dev)"


def check_devices() -> None:
    """Raises `UserError` where this machine has more processes of the run than GPUs: no two can share one."""
    import torch

    if not torch.accelerator.is_available():  # `device_count` also counts GPUs that the driver cannot use
        return
    here, there = int(os.environ.get("LOCAL_WORLD_SIZE") or 1), torch.cuda.device_count()
    if 0 < there < here:
        raise UserError(
            f"{here} processes were started on this machine, and each sees {counted(there, 'GPU')}",
            "start one per GPU, and let each see all GPUs of its machine (no --gpus-per-task); for the CPU set "
            "CUDA_VISIBLE_DEVICES=",
        )


NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver lists its GPUs, whatever PyTorch can do with them."""


def check_disk(folder: Path, disk_bytes: int) -> None:
    """Raises `UserError` where the folder cannot be written to or its disk is too full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:  # it has a unique name: several processes may check
            probe.write(b"x")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}", "set hydra.run.dir to another folder") from error
    free = shutil.disk_usage(folder).free
    if free < disk_bytes:
        raise UserError(
            f"{folder} has {free / 2**30:.1f} GiB free; the checkpoints need about {disk_bytes / 2**30:.1f} GiB",
            "free some, set hydra.run.dir to another disk, or keep fewer: trainer.keep_checkpoints",
        )


def check_store(uri: str, experiment: str) -> None:
    """Raises `UserError` where the tracking store cannot be opened, or its experiment is deleted."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client.known_experiment(client.connect(uri), experiment, uri)
    except UserError:  # a ValueError too
        raise
    except ImportError as error:
        hint = f"pip install {error.name}, or name the driver that is there, such as postgresql+psycopg2://…"
        raise UserError(f"the tracking store {uri} needs the package {error.name}", hint) from error
    except (MlflowException, RequestException, SQLAlchemyError, OSError, ValueError) as error:
        reason = first_line(error)[:200]
        raise UserError(
            f"the tracking store {uri} cannot be opened: {reason}", "set tracking.uri, or tracking=off to do without"
        ) from error


def check_hub(repository: str) -> None:
    """Raises `UserError` where nobody is logged in to the hub, or may not write to that repository."""
    from huggingface_hub import HfApi

    hint = "log in with `hf auth login`, or leave trainer.push_to_hub out and push later with echoink.export"
    try:
        user = HfApi().whoami()
    except Exception as error:  # the hub's client raises many types
        reason = first_line(error)
        raise UserError(f"cannot push to {repository}: {reason}", hint) from error
    owners = {user["name"], *(each["name"] for each in user.get("orgs", []))}
    if (owner := repository.partition("/")[0]) not in owners:
        raise UserError(f"cannot push to {repository}: {user['name']} is no member of {owner}", hint)
