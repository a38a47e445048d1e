"""The processes of this run."""

from datetime import timedelta

import torch
from accelerate import PartialState

PATIENCE = timedelta(days=7)
"""How long processes wait for each other; `watchdog.Watchdog` reports which one hangs."""


def processes() -> PartialState:
    """The processes of this run and the device of this one; without an accelerator they meet on the CPU (gloo).

    PyTorch's ten minutes would stop those that wait while the first one converts a checkpoint of 100 GB.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def device_name() -> str:
    """What computes here, such as "NVIDIA H200, CUDA 13.0" or "cpu"."""
    kind = processes().device.type
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if kind == "cuda" else kind
