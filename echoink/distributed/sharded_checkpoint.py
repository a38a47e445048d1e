"""Sharded checkpoints of a model and its optimizer: any number of processes can read them.

FSDP2's shards are PyTorch's distributed checkpoints, by the names of the weights. DeepSpeed's shards are by process;
another number of processes reads them through DeepSpeed's universal format.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from echoink.common.errors import UserError
from echoink.run_folder import checkpoint

OPTIMIZER = "optimizer"
"""The folder in a checkpoint that holds FSDP2's shards of the optimizer's state."""

_BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write each process's shards of the weights, in the format that `load_weights` and `from_pretrained` read."""
    model.save_pretrained(folder, distributed_checkpoint=True, is_main_process=PartialState().is_main_process)


def holds_weights(folder: Path) -> bool:
    """Whether a checkpoint's weights are FSDP2 shards."""
    return any(folder.glob("shard-*.safetensors"))


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Read the weights into a model that FSDP2 has sharded among any number of processes."""
    state = get_model_state_dict(model)
    distributed_checkpoint.load(state, storage_reader=HuggingFaceStorageReader(str(folder)))
    set_model_state_dict(model, state)


def save_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write each process's shards of the optimizer's state, by the names of the weights."""
    state = get_optimizer_state_dict(model, optimizer, options=_BY_NAME)
    distributed_checkpoint.save(state, checkpoint_id=str(folder / OPTIMIZER))


def load_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read the optimizer's state, whatever number of processes wrote it.

    A weight that never had a gradient has no state.
    """
    state = get_optimizer_state_dict(model, optimizer, options=_BY_NAME)
    planner = DefaultLoadPlanner(allow_partial_load=True)
    distributed_checkpoint.load(state, checkpoint_id=str(folder / OPTIMIZER), planner=planner)
    set_optimizer_state_dict(model, optimizer, state, options=_BY_NAME)


def load_shards(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Read the optimizer's state that one process wrote for all weights, and keep this process's shards of it."""
    state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, weight in zip(numbers, weights, strict=True):
        own = state["state"].get(number, {})
        for name, value in own.items():
            if isinstance(weight, DTensor) and value.shape == weight.shape:
                own[name] = distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
    optimizer.load_state_dict(state)


def make_universal(folder: Path) -> None:
    """Convert DeepSpeed's shards of the optimizer's state to the universal format, by weight name.

    The result stays in the folder until `checkpoint.drop_universal` removes it. It is as large as the shards, and twice
    as large while it is made.

    Args:
        folder: a checkpoint that DeepSpeed's processes wrote.

    Raises:
        UserError: the disk has no room, or DeepSpeed fails.
    """
    (shares,) = folder.glob("global_step*")
    files = [path.stat().st_size for path in shares.iterdir()]
    # the fragments, their merged form, and ZeRO-3's common state, which is as large as one process's shards
    size, room = 2 * sum(files) + max(files), shutil.disk_usage(folder).free
    if size > room:
        raise UserError(
            f"{folder}: resuming with another number of processes needs {size / 2**30:.1f} GiB on its disk, which has "
            f"{room / 2**30:.1f} free",
            "free some space, or start as many processes as wrote it",
        )
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(shares), "--output_folder", f"{shares}{checkpoint.UNIVERSAL}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )  # in a session of its own: a launcher's signals are meant for the run, which handles them
    try:
        said, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        raise
    if process.returncode:
        last = " · ".join(said.strip().splitlines()[-3:])
        checkpoint.drop_universal(folder)
        raise UserError(
            f"DeepSpeed cannot convert {folder} for another number of processes: {last}",
            "start as many processes as wrote it",
        )


def part_groups(optimizer: torch.optim.Optimizer, decays: tuple[float, ...]) -> None:
    """Give each group of weights its own weight decay again, and each weight its own step count.

    From a universal checkpoint ZeRO-3 gives all groups the settings of the first one, and all weights the same tensor
    as step count, which each update of a weight would then increase.

    Args:
        optimizer: PyTorch's optimizer inside DeepSpeed's.
        decays: weight decay of each group; DeepSpeed leaves out groups without weights, such as an adapter's second.
    """
    for group, decay in zip(optimizer.param_groups, decays, strict=False):
        group["weight_decay"] = decay
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()
