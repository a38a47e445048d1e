"""The processes of this run."""

from datetime import timedelta

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The processes of this run and the device of this one; without an accelerator they meet on the CPU (gloo).

    They wait for each other without an end: who hangs is for `watchdog.Watchdog` to say. PyTorch's ten minutes would
    stop those that wait while the first one hashes or converts a checkpoint of 100 GB.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
