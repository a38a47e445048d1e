"""What a rollout is: the prompts of a step as they were asked, and G completions of each.

Shapes: B prompts, G group, R = B·G rows, C completion tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from echoink.data.samples import Sample
from echoink.models.family import Features, PromptInputs


@dataclass(frozen=True, eq=False)
class Rollout:
    """One rollout of this process. The rows of a group stand together."""

    samples: Sequence[Sample]
    """B samples as they were asked: with modality dropout perhaps without a sense."""
    prompts: Sequence[PromptInputs]
    """Model inputs of the B samples."""
    features: Sequence[Features] | None
    """What the towers made of the prompts' media; None where nothing encoded them."""
    prompt_index: Sequence[int]
    """For each of the R rows the index of its prompt."""
    completions: Sequence[Sequence[int]]
    """R lists of token ids."""
    engine_logps: Sequence[Sequence[float]] | None = None
    """Log-probabilities of those tokens under the engine that sampled them; None where the model itself did."""

    @property
    def ids(self) -> list[str]:
        """Sample ids of the B prompts."""
        return [sample.id for sample in self.samples]

    @property
    def row_ids(self) -> list[str]:
        """Sample ids of the R rows."""
        return [self.samples[index].id for index in self.prompt_index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each of the R completions."""
        return [len(completion) for completion in self.completions]
