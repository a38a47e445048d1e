"""Settings of the benchmark, and the names of what it compares."""

from dataclasses import dataclass, field
from enum import Enum

from echoink.common.keys import key
from echoink.config.schema import Dimensions, Dtype

PARTS = ("prefill", "rollout", "reference", "update", "step")
"""`prefill` is a part of `rollout`; `step` is rollout, reference and update."""

SYSTEMS = ("ours", "plain rows", "one group at a time")


@dataclass
class ShapeConfig(Dimensions):
    prompt_tokens: int = key("P, including media", ge=64)
    completion_tokens: int = key("mean C; lengths are evenly spread from 3/4 to 5/4 of it", ge=4)
    group_size: int = key("G", ge=2)
    prompts: int = key("prompts of one rollout", ge=1)
    pixels: int = key("pixels of the picture; 784 make a token", ge=56 * 56)
    audio_seconds: float = key("length of the sound; 1/25 s makes a token", gt=0.1, le=30)
    width: int = key("width of the language model", ge=32)
    feed_forward: int = key("width of its feed-forward layers", ge=32)
    vocabulary: int = key("rows of the embedding", ge=504)
    tower_width: int = key("width of the audio and the vision tower", ge=32)
    tower_layers: int = key("layers of each tower", ge=1)
    dtype: Dtype = key("type of the weights")
    rows_checkpointing: bool = key("gradient checkpointing for plain rows, for a shape that does not fit without")


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass
class BenchmarkConfig:
    seed: int = key("seed of weights, media and completions", ge=0)
    repeats: int = key("timed repetitions of every phase, after one that is not timed", ge=1)
    beta: float = key("weight of the KL term; 0 leaves the reference out, except for one group at a time", ge=0)
    lora: bool = key("LoRA on the language model, switched off for the reference; false: full fine-tuning")
    growth: bool = key("also time update and reference over G and P")
    device: Device = key("auto: a GPU where there is one")
    peak_tflops: float | None = key("peak TFLOP/s of the device in shape.dtype, for MFU; null leaves MFU out", gt=0)
    shape: ShapeConfig = field(default_factory=ShapeConfig)
