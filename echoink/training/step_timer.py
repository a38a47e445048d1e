"""Measures the seconds that each section of a training step takes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Mark = float | torch.cuda.Event


class StepTimer:
    """Measures the seconds of a step's sections; a nested section does not count in the outer one.

    A GPU runs asynchronously to Python, so there the marks are CUDA events. They are read once, at the end of a
    step, after one synchronization. On a CPU they are readings of `time.perf_counter`.

    Args:
        device: the device that the step runs on.
    """

    def __init__(self, device: torch.device):
        self._device, self._on_gpu = device, device.type == "cuda"
        self._sections: list[tuple[str, int | None, Mark, Mark]] = []
        self._open: list[int] = []
        self._started: float | None = None

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count the time of what runs inside as `name`."""
        place, parent, start = len(self._sections), self._open[-1] if self._open else None, self._mark()
        self._sections.append((name, parent, start, start))
        self._open.append(place)
        try:
            yield
        finally:
            self._open.pop()
            self._sections[place] = (name, parent, start, self._mark())

    def begin(self) -> None:
        """Begin the first step. Every later step begins where the one before ended."""
        if self._started is None:
            self._started = time.perf_counter()

    def end(self) -> dict[str, float]:
        """End the step; return the seconds of each section, and of the whole step as `time/step`."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        seconds: dict[str, float] = defaultdict(float)
        for name, parent, start, end in self._sections:
            elapsed = start.elapsed_time(end) / 1000 if self._on_gpu else end - start
            seconds[name] += elapsed
            if parent is not None:
                seconds[self._sections[parent][0]] -= elapsed
        self._sections.clear()
        now = time.perf_counter()
        seconds["time/step"] = now - (now if self._started is None else self._started)
        self._started = now
        return dict(seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what runs inside out of `time/step`."""
        before = time.perf_counter()
        yield
        if self._started is not None:
            self._started += time.perf_counter() - before

    def _mark(self) -> Mark:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
