"""Estimates the memory of a training step from the model's dimensions, to decide about gradient checkpointing.

Shapes: T tokens of a packed row, D width, F width of the feed-forward layer, K width of keys and values.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from echoink.config.schema import Adapter, Config, Dimensions, RolloutEngine, Sharding, Task
from echoink.rewards.types import ANSWERS_AGAIN

if TYPE_CHECKING:
    from transformers import PreTrainedModel

USABLE = 0.85
"""Share of memory that an estimate may fill; the rest is for fragmentation, the allocator's cache and the rollout."""


@dataclass(frozen=True)
class Model:
    """What the estimate needs to know about a model, whether it is loaded or not."""

    dimensions: Dimensions
    parameters: int
    """Of the model, including its towers."""
    weight_bytes: int
    itemsize: int
    """Bytes of a weight that is not quantized."""
    quantized: bool
    """Whether its linear layers are held in 4 bits."""
    joins_keys: bool
    """Whether keys and values of prefix and completion are joined for each completion, as without a GPU."""


def model_of(model: "PreTrainedModel") -> Model:
    """The dimensions of a loaded model."""
    text = model.config.get_text_config()
    return Model(
        Dimensions(
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            feed_forward=text.intermediate_size,
            heads=text.num_attention_heads,
            key_heads=text.num_key_value_heads,
            vocabulary=text.vocab_size,
        ),
        parameters=model.num_parameters(),
        weight_bytes=sum(p.numel() * p.itemsize for p in model.parameters()),
        itemsize=model.dtype.itemsize,
        quantized=getattr(model, "is_quantized", False),
        joins_keys=model.device.type != "cuda",
    )


SHARDED_PARTS = {
    Sharding.none: (),
    Sharding.zero2: ("gradients", "optimizer", "update"),
    Sharding.zero3: ("weights", "reference", "gradients", "optimizer", "update"),
    Sharding.fsdp2: ("weights", "reference", "gradients", "optimizer", "update"),
}
"""The parts of an estimate that processes divide among themselves."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on one process."""

    weights: int
    """The policy's, with the copies that computing in bfloat16 takes."""
    reference: int
    gradients: int
    optimizer: int
    """AdamW's two moments; under DeepSpeed also the float32 weights that it takes its steps on."""
    activations: int
    """Kept for the backward pass."""
    cache: int
    """Keys and values of a rollout; the decoder keeps this memory for the next one."""
    update: int = 0
    """What AdamW needs during its step on a GPU: the roots of all second moments at once."""
    gathered: int = 0
    """Sharded weights, gathered for a rollout."""
    engine: int = 0
    """vLLM's weights, keys and values."""
    engine_between: int = 0
    """The same between rollouts; 0 if the engine sleeps."""

    @property
    def total(self) -> int:
        """Bytes at the peak of a step: in the rollout, in an evaluation, in the backward pass or in the optimizer."""
        always = self.weights + self.reference + self.optimizer + self.cache + self.engine_between
        decoding = self.gathered + self.engine - self.engine_between
        return always + max(self.gradients + max(self.activations, self.update), decoding)


@dataclass(frozen=True)
class PackedRow:
    """A packed row: so many prompts of P tokens, each with G completions of C tokens. In plain rows the prompt
    counts as part of each completion: P = 0, C = prompt and completion."""

    prompts: int
    group: int
    prompt: int
    completion: int

    @property
    def tokens(self) -> int:
        """T"""
        return self.prompts * (self.prompt + self.group * self.completion)


def activations(model: Model, rows: PackedRow, bf16: bool, checkpointing: bool = False) -> int:
    """Bytes that the language model keeps for the backward pass of a packed row of T tokens.

    Counted per token and layer, in units of D, F and K: the inputs of two norms and of every linear layer, query and
    attention output (11 D; under autocast the norms stay in float32 and each linear layer keeps its own input:
    34 bytes per D), four values of the feed-forward layer (4 F), key and value (4 K). Without a GPU keys and values are
    also joined, prefix and completion: 2 K for each of the G (P + C). With gradient checkpointing each layer keeps its
    input alone, and one layer at a time is computed again.
    The towers, and the head, which works in chunks, are small in comparison.
    """
    size = 2 if bf16 else model.itemsize
    widths = 34 if bf16 and model.itemsize > 2 else 11 * size
    joined = rows.prompts * rows.group * (rows.prompt + rows.completion) if model.joins_keys else 0
    d = model.dimensions
    units = widths * d.width + (4 * d.feed_forward + 4 * d.key_width) * size
    attended = max(size, 4)  # without a GPU attention is computed in float32 at least, see `shared_prefix.by_parts`
    layer = rows.tokens * units + joined * 2 * d.key_width * attended
    if model.joins_keys and size < 4:
        layer += rows.tokens * 2 * (d.width + d.key_width) * 4
    return d.layers * rows.tokens * d.width * model.itemsize + layer if checkpointing else d.layers * layer


def cache(model: Model, rows: PackedRow, bf16: bool) -> int:
    """Bytes of a rollout's keys and values, each prompt's held once for its group."""
    return model.dimensions.layers * rows.tokens * 2 * model.dimensions.key_width * (2 if bf16 else model.itemsize)


def of_run(config: Config, model: Model, learning: int, longest: int, among: int = 1) -> Estimate:
    """Memory of a run's training step on one process.

    Args:
        config: the run's.
        model: the policy.
        learning: how many parameters learn.
        longest: tokens of the longest prompt.
        among: how many processes divide what `trainer.sharding` divides.
    """
    trainer, group, completion = config.trainer, config.grpo.group_size, config.generation.max_new_tokens
    bf16, adapts = trainer.bf16, config.adapter.kind is not Adapter.none
    weights, reference = _weights(config, model, learning)
    packed = (longest, completion) if config.grpo.shared_prefix else (0, longest + completion)
    rows = PackedRow(trainer.micro_batch_prompts, group, *packed)
    decoded = replace(rows, prompts=-(-trainer.prompts_per_step // trainer.processes))
    deepspeed = trainer.sharding.is_deepspeed
    size = 4 if adapts or deepspeed else model.itemsize  # an adapter learns in float32
    # DistributedDataParallel holds a second copy of the gradients, in its buckets.
    buckets = 2 if trainer.sharding is Sharding.none and trainer.processes > 1 else 1
    in_engine, engine = PackedRow(decoded.prompts * group, 1, 0, longest + completion), 0
    # Our decoder also makes rollouts beside eval.engine=vllm, and the further answers of some integration rules.
    again = config.reward.lambda_int > 0 and config.reward.integration in ANSWERS_AGAIN
    ours = config.task is not Task.sft and (config.generation.engine is not RolloutEngine.vllm or again)
    if config.uses_vllm:
        engine = gathered_bytes(model, bf16) + cache(model, in_engine, bf16)
    sleeps = config.generation.vllm.sleep and not model.joins_keys  # without a GPU the engine keeps its memory
    whole = Estimate(
        weights=weights,
        reference=reference if config.grpo.beta > 0 and not adapts else 0,
        gradients=buckets * learning * size,
        optimizer=(3 if deepspeed else 2) * learning * size,
        update=0 if model.joins_keys else learning * size,
        activations=activations(model, rows, bf16, bool(trainer.gradient_checkpointing)),
        cache=cache(model, decoded, bf16) if ours else 0,
        engine=engine,
        engine_between=0 if sleeps else engine,
    )
    shares = {name: getattr(whole, name) // among for name in SHARDED_PARTS[trainer.sharding]}
    return replace(whole, **shares, gathered=gathered_bytes(model, bf16) if "weights" in shares and among > 1 else 0)


def _weights(config: Config, model: Model, learning: int) -> tuple[int, int]:
    """Bytes of the policy's weights and of the reference's, with the copies that computing in bfloat16 takes."""
    held, sharding, adapts = model.weight_bytes, config.trainer.sharding, config.adapter.kind is not Adapter.none
    if not config.trainer.bf16 or model.itemsize <= 2:
        return held, held
    if sharding.is_deepspeed:  # its module is in bfloat16; `fit` loads the reference in it too
        return 2 * model.parameters, 2 * model.parameters
    if sharding is Sharding.fsdp2:  # gathered in bfloat16; the shards stay as they are
        return held + 2 * model.parameters, held
    # An adapter's base and the reference are held in bfloat16 (`models/rounding.py`). Other linear layers have a
    # bfloat16 copy for the decoder, whether they learn or not, and those that learn have autocast's copy too.
    saved = 2 * (model.parameters - model.dimensions.head) if not model.quantized else 0
    copied = learning if adapts else max(learning, model.dimensions.linear)
    return held + 2 * learning + 2 * copied - (saved if adapts else 0), held - saved


MOST_PROMPTS = 128
"""The most in an evaluation's batch: more save little, and a batch waits for its longest completion."""


def prompts_that_fit(
    model: Model, beside: int, draws: int, longest: int, completion: int, bf16: bool, room: int
) -> int:
    """Prompts that an evaluation decodes together: as many as there is room for, at least 1, at most `MOST_PROMPTS`.

    Each takes the keys and values of its prompt several times (as they are prefilled, in the type of the decoder, and
    where the decoder holds them), those of its completions, a layer's activations while it is prefilled, and the logits
    of its draws.

    Args:
        model: what is evaluated.
        beside: bytes that other things take.
        draws: completions of a prompt.
        longest: tokens of the longest prompt.
        completion: tokens of a completion, at most.
        bf16: whether it computes in bfloat16 under autocast.
        room: bytes of memory.
    """
    d, size = model.dimensions, 2 if bf16 else model.itemsize
    kept = cache(model, PackedRow(1, draws, 4 * longest, completion), bf16)
    passing = longest * (3 * d.feed_forward + 8 * d.width) * size + draws * d.vocabulary * 12
    return max(1, min(MOST_PROMPTS, int((USABLE * room - beside) // (kept + passing))))


def gathered_bytes(model: Model, bf16: bool) -> int:
    """Bytes of all weights in the type that they compute in."""
    return model.parameters * (2 if bf16 else model.itemsize)
