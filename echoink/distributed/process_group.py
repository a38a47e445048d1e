"""The processes of this run."""

from datetime import timedelta

import torch
from accelerate import PartialState

PATIENCE = timedelta(days=7)
"""How long processes wait for each other; `watchdog.Watchdog` reports which one hangs."""


def processes() -> PartialState:
    """The processes of this run and the device of this one; without an accelerator they communicate by gloo on the CPU.

    PyTorch's own timeout of ten minutes would stop those that wait while the first converts a checkpoint of 100 GB.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def device_name() -> str:
    """The name of this process's device, such as "NVIDIA H200, CUDA 13.0" or "cpu"."""
    kind = processes().device.type
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if kind == "cuda" else kind
