"""Threads prepare prompts with videos while the model is at work: decoding releases the GIL.

Pictures and sounds are not worth it: most of their work holds the GIL, for which the model's own steps then wait
(experiments/scale.md). Timing does not change the result: a prompt is a function of its sample, and prompts are taken
in the order asked for.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from echoink.data.processor import PromptProcessor
from echoink.data.samples import Sample
from echoink.models.family import PromptInputs


class Prefetcher:
    """Makes prompts before they are needed.

    Args:
        processor: of prompts; its `workers` is the number of threads, 0 for none: then `ask` does nothing.
    """

    def __init__(self, processor: PromptProcessor):
        self._processor = processor
        self._pool = ThreadPoolExecutor(processor.workers, "media") if processor.workers else None
        self._asked: dict[str, tuple[Sample, Future]] = {}

    def ask(self, samples: Sequence[Sample]) -> None:
        """Start on the samples with videos, which will be taken soon; no prompt is made twice."""
        for sample in samples:
            if self._pool and sample.video is not None and sample.id not in self._asked:
                self._asked[sample.id] = sample, self._pool.submit(self._processor, sample)

    def take(self, samples: Sequence[Sample]) -> list[PromptInputs]:
        """The prompts of samples, in their order; what is not ready is waited for or made now.

        Raises:
            UserError: of `PromptProcessor`, for the first sample that has one.
        """
        return [self._take(sample) for sample in samples]

    def close(self) -> None:
        """Drop what was asked for and end the threads."""
        self._asked.clear()
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _take(self, sample: Sample) -> PromptInputs:
        asked, future = self._asked.pop(sample.id, (None, None))
        return future.result() if asked is sample else self._processor(sample)  # it may be asked without a sense now
