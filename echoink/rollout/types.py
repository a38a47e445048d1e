"""A rollout: the prompts of a step and G completions of each.

Shapes: B prompts, G group, R = B·G rows, C completion tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from echoink.data.samples import Sample
from echoink.models.family import Features, PromptInputs


@dataclass(frozen=True, eq=False)
class Rollout:
    """One rollout of this process. The rows of a group are adjacent."""

    samples: Sequence[Sample]
    """The B samples; modality dropout may have removed a sense."""
    prompts: Sequence[PromptInputs]
    """Model inputs of the B samples."""
    features: Sequence[Features] | None
    """The features of the prompts' media, from frozen towers; None if towers learn: the loss then encodes the media."""
    prompt_index: Sequence[int]
    """For each of the R rows, the index of its prompt."""
    completions: Sequence[Sequence[int]]
    """R lists of token ids."""
    engine_logps: Sequence[Sequence[float]] | None = None
    """Log-probabilities of these tokens under the engine that sampled them; None if no engine did."""

    @property
    def ids(self) -> list[str]:
        """Sample ids of the B prompts."""
        return [sample.id for sample in self.samples]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each of the R completions."""
        return [len(completion) for completion in self.completions]
