"""Threads prepare prompts with videos while the model computes: decoding releases the GIL.

Pictures and sounds are not worth it: most of their work holds the GIL, and the model's own steps then wait for it
(experiments/scale.md). Timing does not change the result: a prompt is a function of its sample, and prompts are taken
in the requested order.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from echoink.data.processor import PromptProcessor
from echoink.data.samples import Sample
from echoink.models.family import PromptInputs


class Prefetcher:
    """Makes prompts before they are needed.

    Args:
        processor: makes the prompts; its `workers` is the number of threads. With 0 `ask` does nothing.
    """

    def __init__(self, processor: PromptProcessor):
        self._processor = processor
        self._pool = ThreadPoolExecutor(processor.workers, "media") if processor.workers else None
        self._asked: dict[str, tuple[Sample, Future]] = {}

    def ask(self, samples: Sequence[Sample]) -> None:
        """Start making the prompts with videos, which will be taken soon; no prompt is made twice."""
        for sample in samples:
            if self._pool and sample.video is not None and sample.id not in self._asked:
                self._asked[sample.id] = sample, self._pool.submit(self._processor, sample)

    def take(self, samples: Sequence[Sample]) -> list[PromptInputs]:
        """The prompts of samples, in their order; it waits for those in progress and makes the others now.

        Raises:
            UserError: from `PromptProcessor`, for the first sample that fails.
        """
        return [self._take(sample) for sample in samples]

    def close(self) -> None:
        """Drop the prompts that were asked for and end the threads."""
        self._asked.clear()
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _take(self, sample: Sample) -> PromptInputs:
        asked, future = self._asked.pop(sample.id, (None, None))
        return future.result() if asked is sample else self._processor(sample)  # a variant has the same id
