"""Rounds weights to bfloat16 once, where autocast would round them at every use.

Under autocast each linear layer rounds its float32 weights when it is called. PyTorch caches the result for weights
that learn, but rounds frozen ones every time: at every token of a rollout. Rounding them here gives bit for bit the
same numbers; norms, embeddings and convolutions stay as they are.
"""

import time
from collections.abc import Container, Iterator

import torch
from torch import Tensor, nn

from echoink.distributed import sharding


def _linear_weights(
    model: nn.Module, within: Container[nn.Module] | None = None, shared: bool = False
) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of linear layers in float32.

    Args:
        model: the model.
        within: only layers that are among these; None: all layers.
        shared: also parameters that another kind of layer uses too, such as a head tied to the embedding.
    """
    elsewhere = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, nn.Linear)
        for parameter in module.parameters(recurse=False)
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (within is None or module in within):
            for own, parameter in module.named_parameters(name, recurse=False):
                if parameter.dtype is torch.float32 and (shared or id(parameter) not in elsewhere):
                    yield own, parameter


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The type that autocast rounds to; None if autocast is off."""
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if on else None


def bf16_slowdown() -> float:
    """Time of a matrix product in bfloat16 divided by its time in float32, measured now on this machine's CPU.

    A CPU without instructions for bfloat16 (AVX512_BF16, AMX, those of ARM) converts at every use.
    """
    least = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(10):  # in turns, and the least time of each, because other work disturbs
        for dtype in least:
            one = torch.ones(512, 512, dtype=dtype)
            started = time.perf_counter()
            one @ one
            least[dtype] = min(least[dtype], time.perf_counter() - started)
    return least[torch.bfloat16] / least[torch.float32]


def round_linear(
    model: nn.Module, dtype: torch.dtype | None, copies: dict[str, Tensor], within: Container[nn.Module] | None = None
) -> None:
    """Bring `copies` up to date: the float32 weights of linear layers, rounded to `dtype`.

    An existing copy is overwritten in place, so that its address does not change.

    Args:
        model: the model.
        dtype: the type of the copies; None removes all copies.
        copies: the copies by name.
        within: only layers that are among these; None: all layers.
    """
    if dtype is None:
        copies.clear()
        return
    for name, parameter in _linear_weights(model, within, shared=True):
        if name not in copies:
            copies[name] = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        copies[name].copy_(parameter.detach())


def unround_what_learns(model: nn.Module) -> None:
    """Convert the weights that learn to float32.

    TRL rounds an adapter on 4-bit weights to bfloat16, where AdamW's small steps and the decay of its moments are lost.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def round_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert frozen float32 weights of linear layers to `dtype`, in place, unless FSDP2 has sharded the model.

    In bfloat16 they take half the memory. Weights that another kind of layer uses too stay as they are.
    """
    if sharding.is_sharded(model):  # FSDP2 gathers in bfloat16 anyway
        return
    for _, parameter in _linear_weights(model):
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
