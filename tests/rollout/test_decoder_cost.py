"""What a decoded token costs at the 7B's layers: kernels and bytes, counted on the meta device, where nothing runs."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from echoink.benchmark.config import ShapeConfig
from echoink.benchmark.workload import make_model
from echoink.config.schema import Dtype
from echoink.models.loading import lora
from echoink.models.shared_prefix import install
from echoink.planning import step_time
from echoink.rollout.decoder import Decoder
from tests.helpers.configs import config_of

VIEWS = {"view", "_unsafe_view", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze", "permute"}
VIEWS |= {"detach", "alias", "split", "split_with_sizes", "unflatten", "as_strided", "unbind", "narrow", "empty"}
"""Operations that start no kernel."""


class Counted(TorchDispatchMode):
    """Kernels that are started, and the bytes that they read and write."""

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.kernels[name] += 1
            touched = size(args) + size(found)
            if name == "index_copy_":  # touches what is copied, not all of the tensor that it goes into
                touched = 2 * size(args[3])
            elif name in ("embedding", "index"):  # and these the rows that are asked for
                touched = 2 * size(found)
            self.bytes[name] += touched
        return found


def size(of) -> int:
    """Bytes of the tensors in an argument, a repeated dimension counted once."""
    if isinstance(of, torch.Tensor):
        held = of.itemsize
        for length, stride in zip(of.shape, of.stride(), strict=True):
            held *= length if stride else 1
        return held
    return sum(map(size, of)) if isinstance(of, list | tuple) else 0


def shape_of(layers: int) -> ShapeConfig:
    d = config_of("model=qwen2_5_omni_7b", "dataset.path=x").model.architecture
    return ShapeConfig(
        layers=layers,
        width=d.width,
        feed_forward=d.feed_forward,
        heads=d.heads,
        key_heads=d.key_heads,
        vocabulary=d.vocabulary,
        prompt_tokens=1000,
        completion_tokens=200,
        group_size=16,
        prompts=1,
        pixels=200_704,
        audio_seconds=10,
        tower_width=160,
        tower_layers=1,
        dtype=Dtype.bfloat16,
        rows_checkpointing=False,
    )


def counted(layers: int, adapter: bool, own_tokens: int, prompts: int = 1) -> tuple[Counted, int]:
    """A token of 16 rows a prompt of 1,000 tokens, after so many of their own; and the bytes of the weights."""
    shape, meta = shape_of(layers), torch.device("meta")
    model = make_model(shape, 0, meta)
    install(model)
    weights = size([*model.model.language_model.layers.parameters(), model.lm_head.weight])
    if adapter:
        from peft import get_peft_model

        get_peft_model(
            model, lora(16, 32, 0.0, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
        )
    model.eval()
    cache = DynamicCache(config=model.config.get_text_config())
    for layer in range(layers):
        keys = torch.empty(
            prompts, shape.key_heads, 1000, shape.width // shape.heads, dtype=torch.bfloat16, device=meta
        )
        cache.update(keys, keys, layer)
    decoder = Decoder(model, lambda: lambda step: step)
    decoder.begin(cache, torch.ones(prompts, 1000, device=meta), shape.group_size, 768)
    decoder._calls = own_tokens
    rows = torch.zeros(prompts * shape.group_size, dtype=torch.long, device=meta)
    with torch.no_grad(), Counted() as found:
        decoder(rows, rows)
    return found, weights


@pytest.mark.parametrize(("prompts", "adapter"), [(1, False), (2, False), (1, True)])
def test_kernels_of_a_layer_and_bytes_of_a_token_at_the_7bs_shapes(prompts, adapter):
    """The mean completion of the paper's curve has about 200 tokens."""
    layers = 28
    (one, weights), (two, both) = (counted(n, adapter, 200, prompts) for n in (1, 2))
    kernels = (two.kernels - one.kernels).total()
    moved = one.bytes.total() + (layers - 1) * (two.bytes - one.bytes).total()
    ratio = moved / (weights + (layers - 1) * (both - weights))
    print(f"{prompts} prompts, adapter {adapter}: {kernels} kernels a layer, {ratio:.2f} x the bytes of the weights")
    assert kernels == step_time.KERNELS + (step_time.OF_LORA if adapter else 0) + (prompts > 1)  # one copy of scores
    assert ratio <= 1.3


def test_a_window_keeps_a_short_completion_from_reading_the_room_of_a_long_one():
    short, long = (counted(1, False, own_tokens)[0].bytes.total() for own_tokens in (10, 700))
    assert long - short > 5e6
