"""Shards a model among the processes of a training run, and gathers it where it must be whole.

`trainer.sharding=fsdp2` is PyTorch's FSDP2 as transformers applies it while it loads a model: each process reads and
keeps its shard of every weight, and so of the gradient and of the optimizer's state. `zero2` and `zero3` are
DeepSpeed's, applied to the whole model when training begins. With `none`, several processes use DDP.

A sharded module gathers its weights when its forward is called, so all processes must call the same modules in the same
order. In a training step they do (`encoders.encode_media`, `run_all`). Where they cannot, because completions differ in
length, the model is gathered first (`unsharded`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from echoink.distributed.process_group import PATIENCE


def shard_group_size(processes: int) -> int:
    """How many of a run's processes FSDP2 divides a model among: those of one machine, or all if each has only one."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    return here if here > 1 else processes


def fsdp2(processes: int, bf16: bool) -> DistributedConfig | None:
    """How a model is divided while it is loaded; None for a single process.

    With several machines each holds a whole copy, divided among its own processes. So the weights that a layer gathers
    do not cross the network; gradients do.

    Args:
        processes: the number of processes in all.
        bf16: gather the weights in bfloat16; the shards, gradients and the optimizer's state stay in float32.
    """
    if processes == 1:
        return None
    # Shards within a machine, copies across machines: gathering a layer uses only the fast links.
    inside = shard_group_size(processes)
    return DistributedConfig(fsdp_size=inside, dp_replicate_size=processes // inside, fsdp_mixed_precision=bf16)


def deepspeed(stage: int, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration; transformers replaces `auto` by values from its own.

    Args:
        stage: 2 or 3.
        bf16: weights in bfloat16, with their float32 masters in the optimizer.
    """
    return {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": stage == 3},
        "bf16": {"enabled": bf16},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,  # PyTorch's AdamW
        "zero_force_ds_cpu_optimizer": False,
    }


def meet_on_cpu() -> bool:
    """Let DeepSpeed's processes communicate on a CPU, which accelerate sets up only for GPUs.

    Returns:
        Whether this was necessary; False if there is an accelerator.
    """
    if torch.accelerator.is_available():
        return False
    AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=True)  # the process group exists already
    state.distributed_type, state._cpu = DistributedType.DEEPSPEED, False
    return True


def register_root(model: PreTrainedModel) -> None:
    """Make the whole model FSDP2's root: the first module that is called becomes the root, so it must not be a part."""
    # The root stays gathered between forward and backward; layers are sharded again after forward.
    for unit in _units(model):
        unit.set_reshard_after_forward(unit is not model, recurse=False)
    # PyTorch gives the groups of a mesh its own timeout of ten minutes, whatever the run has set.
    set_timeout = getattr(torch.distributed, "set_timeout", None) or distributed_c10d._set_pg_timeout  # before 2.14
    for group in next(model.parameters()).device_mesh.get_all_groups():
        set_timeout(PATIENCE, group)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
    model.reshard()


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether FSDP2 has sharded a model."""
    return any(True for _ in _units(model))


@contextmanager
def unsharded(model: torch.nn.Module) -> Iterator[None]:
    """Inside, each process holds all weights of a model that FSDP2 has sharded, so its forwards wait for no other."""
    # All units are gathered at once: inside, processes may call them in any order.
    units = list(_units(model))
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    # A layer that is called alone would treat itself as FSDP's root and make its streams wait for the current one.
    # While a CUDA graph is captured that is not allowed: nothing would wait for these streams. So set the root.
    root = units[0]._get_fsdp_state() if units else None
    if root:
        root._state_ctx.iter_forward_root = root
    try:
        yield
    finally:
        if root:
            root._state_ctx.iter_forward_root = None
        for number, unit in enumerate(units):
            unit.set_reshard_after_forward(number > 0, recurse=False)  # the first is the root
            unit.reshard()
            # FSDP2 records which modules ran forward, to prefetch them in the backward pass. Here they differ between
            # processes and have no backward pass.
            for group in _parameter_groups(unit):
                group._post_forward_indices.clear()
                group.comm_ctx.post_forward_order.clear()


@contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """Inside, a model that was loaded while ZeRO-3 was configured, and so was sharded, is whole."""
    if not hasattr(next(model.parameters()), "ds_id"):
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(model.parameters())):
        yield


def _parameter_groups(unit: FSDPModule) -> list:
    state = unit._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return state._fsdp_param_groups
    return [state._fsdp_param_group] if state._fsdp_param_group else []  # before torch 2.12


def _units(model: torch.nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))
