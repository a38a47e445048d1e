"""The schema of the configuration: one dataclass per group of `conf/`, with type, meaning and range of every field.

The values are in `conf/*.yaml`; this file says which values are valid.
"""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from echoink.common.errors import UserError
from echoink.common.keys import fields_of, key
from echoink.rewards.types import Match, OnError, Rule

OPTIONS = "Options:\n{options}"
FIELDS = ("question", "options", "media", "wanted", "think", "end_think", "answer", "end_answer")
"""The fields that a prompt's template may name in braces."""


class Task(Enum):
    """`train` is GRPO; `sft` learns given responses; `eval` evaluates one model; `compare` evaluates `checkpoint`
    against model.path, the base.
    """

    train = "train"
    sft = "sft"
    eval = "eval"
    compare = "compare"


class Dtype(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Attention(Enum):
    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class Part(Enum):
    """A part of a model that may be frozen: a tower, a tower without its projection, the language model."""

    audio = "audio"
    vision = "vision"
    audio_encoder = "audio_encoder"
    vision_encoder = "vision_encoder"
    language = "language"


class Adapter(Enum):
    none = "none"
    lora = "lora"
    qlora = "qlora"


class Source(Enum):
    """What a dataset's rows look like: ours, or those of a benchmark as it is published."""

    synthetic = "synthetic"
    rows = "rows"
    omnibench = "omnibench"
    daily_omni = "daily_omni"
    worldsense = "worldsense"
    mmau = "mmau"


class Sense(Enum):
    ear = "ear"
    eye = "eye"


class Kind(Enum):
    """What a question of the synthetic set needs: hearing, seeing, or both."""

    ear = "ear"
    eye = "eye"
    both = "both"


class Split(Enum):
    """`train` is for curation (`python -m echoink.curate mode=difficulty`), not for reported numbers."""

    valid = "valid"
    dev = "dev"
    train = "train"


class Protocol(Enum):
    """How base and trained model are compared; evaluation/evaluate.py says what each does."""

    matched = "matched"
    release = "release"
    may19 = "may19"

    def reads(self, match: Match) -> Match:
        """How the answers of base and trained model are read: as the reward does, or as the paper's public code."""
        return match if self is Protocol.matched else Match.first_letter


class Variant(Enum):
    """The media that a sample is answered with; the prompt names those that are there, question and options stay.

    `no_audio`, `no_image`, `text_only`: the medium's tokens are not in the prompt (`no_image` of a video with its sound
    keeps the soundtrack). `silent_audio`: as many sound tokens, of digital silence. `blank_image`: as many picture
    tokens, of uniform grey. `swapped_audio`, `swapped_image`: the sound, or the picture or video, of another sample:
    the same kind of question with another answer.
    """

    full = "full"
    no_audio = "no_audio"
    no_image = "no_image"
    text_only = "text_only"
    silent_audio = "silent_audio"
    blank_image = "blank_image"
    swapped_audio = "swapped_audio"
    swapped_image = "swapped_image"


class Loss(Enum):
    """How TRL sums the token losses; `grpo` is the paper's (mean over a completion's tokens, then over completions).

    On-policy (`updates_per_rollout=1`) `cispo` has the gradient of `dapo`; it clips differently. `bnpo` takes the mean
    over the tokens of a micro-batch, so it depends on `trainer.micro_batch_prompts` and on the number of processes.
    """

    grpo = "grpo"
    bnpo = "bnpo"
    dr_grpo = "dr_grpo"
    dapo = "dapo"
    cispo = "cispo"


class Advantage(Enum):
    """The weight of a completion in the loss.

    `group`: its reward relative to its group (Eq. 1, scaled as `grpo.scale` says). `rejection`: 1 where the answer is
    right, else 0: a supervised step on the model's own right completions, the control for what GRPO adds to it (RAFT,
    Dong et al. 2023); rewards and their weights are logged but do not act.
    """

    group = "group"
    rejection = "rejection"


class RolloutEngine(Enum):
    """What generates the rollouts: our decoder on the model itself, or vLLM beside it (rollout/vllm_engine.py)."""

    transformers = "transformers"
    vllm = "vllm"


class Correction(Enum):
    """Importance weights of the loss, where an engine's log-probabilities differ from the trainer's (TRL's modes).

    `token_…` weights each token with its ratio, `sequence_…` each completion with the product; `…_truncate` cuts a
    ratio at `correction_max`, `…_mask` leaves out what is beyond it. `none` weights with 1.
    """

    none = "none"
    token_truncate = "token_truncate"
    token_mask = "token_mask"
    sequence_truncate = "sequence_truncate"
    sequence_mask = "sequence_mask"


class Sharding(Enum):
    """Which parts of a model in training are divided among the processes; sharding.py says how.

    `none`: each has everything (DDP where there are several). `fsdp2`: weights, gradients and optimizer (PyTorch's,
    applied by transformers). `zero2`: gradients and optimizer, `zero3`: the weights too (DeepSpeed, `pip install
    -e ".[zero]"`).
    """

    none = "none"
    fsdp2 = "fsdp2"
    zero2 = "zero2"
    zero3 = "zero3"

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed shards the model; it keeps its own float32 weights beside the module's."""
        return self in (Sharding.zero2, Sharding.zero3)


class Scale(Enum):
    """What advantages are divided by."""

    group = "group"
    batch = "batch"
    none = "none"


class Schedule(Enum):
    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class ModelFamily(Enum):
    """Model families; each has its own module in `echoink/models/`."""

    qwen2_5_omni = "qwen2_5_omni"


@dataclass
class Dimensions:
    """The dimensions of a language model."""

    layers: int = key("layers of the language model", ge=1)
    width: int = key("width of the language model", ge=1)
    feed_forward: int = key("width of its feed-forward layers", ge=1)
    heads: int = key("attention heads", ge=1)
    key_heads: int = key("heads of keys and values", ge=1)
    vocabulary: int = key("rows of the embedding", ge=1)

    @property
    def key_width(self) -> int:
        """Width of the keys of one token in one layer, and of its values."""
        return self.width // self.heads * self.key_heads

    @property
    def linear(self) -> int:
        """Parameters of the matrices in all layers: four of attention, three of the feed-forward layer."""
        return self.layers * self.width * (2 * self.width + 2 * self.key_width + 3 * self.feed_forward)

    @property
    def head(self) -> int:
        """Parameters of the output matrix."""
        return self.vocabulary * self.width


@dataclass
class ArchitectureConfig(Dimensions):
    """A published architecture: the plan is made from it, without loading anything."""

    family: ModelFamily = key(
        "family whose token counts the plan uses; loaded weights name their own", ModelFamily.qwen2_5_omni
    )
    language_parameters: int = key("parameters of the language model with its embedding", ge=1)
    audio_parameters: int = key("parameters of the audio tower", ge=1)
    vision_parameters: int = key("parameters of the vision tower", ge=1)
    audio_projection_parameters: int = key("those of the tower's projection, part of audio_parameters", 0, ge=0)
    vision_projection_parameters: int = key("those of the tower's projection, part of vision_parameters", 0, ge=0)
    tied_head: bool = key("whether the embedding is also the output matrix", False)


@dataclass
class ModelConfig:
    path: str = key("`tiny` (the embedded model), a folder, or a hub id")
    dtype: Dtype = key("weights: float32 (master weights if trainer.bf16); bfloat16 for adapters and evaluation")
    attention: Attention = key("attention kernel of the towers; the language model has its own")
    freeze: list[Part] = key(
        "parts that do not learn: the towers `audio` and `vision`, `audio_encoder` and `vision_encoder` (a tower"
        " without its projection), `language` (with its head)",
        list,
    )
    min_pixels: int = key("a smaller picture is scaled up to this many pixels", ge=28 * 28)
    max_pixels: int = key("a larger picture is scaled down to this many pixels", ge=28 * 28)
    max_audio_seconds: float = key("a longer sound is cut to its first seconds", gt=0.05, le=300)
    video_fps: float = key("frames per second that are taken from a video", gt=0, le=30)
    min_video_frames: int = key("fewest frames, if the video has so many; even", 2, ge=2)
    max_video_frames: int = key("most frames; a longer video gets fewer per second; even", ge=2)
    min_video_pixels: int = key("a smaller frame of a video is scaled up to this many pixels", 28 * 28, ge=28 * 28)
    max_video_pixels: int = key("a larger frame of a video is scaled down to this many pixels", ge=28 * 28)
    max_prompt_tokens: int = key("a longer prompt is an error; media tokens are never cut", ge=1)
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    figures: dict[str, int] = field(default_factory=dict, metadata={"former": "model.architecture"})


@dataclass
class AdapterConfig:
    kind: Adapter = key("none: all weights; lora: low-rank updates of the language model; qlora: on 4-bit weights")
    rank: int = key("r of LoRA", ge=1)
    alpha: float = key("LoRA's updates are scaled by alpha / rank", gt=0)
    dropout: float = key("dropout on LoRA's inputs", ge=0, lt=1)
    targets: list[str] = key("linear layers that LoRA adapts, such as q_proj", list)


@dataclass
class DatasetConfig:
    source: Source = key("synthetic: made when it is missing; rows: official or your own; else a published benchmark")
    path: str = key("official folder, folder of .jsonl or Parquet files, datasets folder, file, or hub id")
    outside: list[str] = key("further folders in which the dataset's media may be", list)
    split: str | None = key("name of the dataset's validation split; null: the usual one")
    seed: int = key("seed of the synthetic data and of the choice of held-out development samples", ge=0)
    shortcut: Sense | None = key("synthetic: the sense that alone gives away the right letter, in training only")
    shortcut_share: float = key("share of the training questions of kind `both` that have the shortcut", ge=0, le=1)
    kinds: list[Kind] = key("synthetic: kinds of question, in turn; empty: all, or only `both` with a shortcut", list)
    train: int | None = key("number of training samples (synthetic: made; else the first ones); null for all", ge=1)
    dev: int | None = key("development samples, held out of train where the data have no such split", ge=1)
    valid: int | None = key("validation samples", ge=1)
    curriculum: list[str] = key(
        "train on samples of these needs only, in this order: [both, undetermined]; empty: all", list
    )
    soundtrack: bool = key("use a video's own sound if it has one and the row names no data_type", True)
    workers: int = key("threads that decode the next step's videos during this one; does not change the result", ge=0)
    max_skipped: float = key("share of a split's samples that may be dropped as broken; 0 refuses any", ge=0, lt=1)


@dataclass
class Prompt:
    """How a question is put to the model: a file of `conf/prompt/`."""

    system: str = key("system turn; empty for the chat template's own")
    template: str = key(
        "user turn, with {question} {options} {media} {wanted} {think} {end_think} {answer} {end_answer}"
    )
    options: str = key("how options are shown where a question has some; {options} has one per line", OPTIONS)

    def check(self, group: str = "prompt") -> None:
        """Raises `UserError`, naming keys of the group, unless the templates can be filled."""
        for name, text, fields in (("template", self.template, FIELDS), ("options", self.options, ("options",))):
            try:
                text.format(**dict.fromkeys(fields, ""))
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise UserError(f"{group}.{name} has a bad field: {error}", f"known: {', '.join(fields)}") from error
        wanted = ("{question}", "{options}", "{answer}", "{end_answer}")
        if missing := [name for name in wanted if name not in self.template]:
            raise UserError(f"{group}.template lacks {' and '.join(missing)}", "the model must see what is asked of it")
        if "{options}" not in self.options:
            raise UserError(f"{group}.options lacks {{options}}", "the model would not see them")

    @property
    def thinks(self) -> bool:
        """Whether it asks for a think block; without one the format is the answer block alone."""
        return "{think}" in self.template


@dataclass
class RewardFile:
    """One of several custom rewards."""

    path: str = key("a Python file that defines reward(completion, sample)")
    weight: float = key("its weight in the total reward; a negative weight penalizes", 1.0)
    name: str | None = key("its name in metrics; null: the file's name", None)

    @property
    def metric_name(self) -> str:
        """Its name in metrics."""
        return self.name or Path(self.path).stem


@dataclass
class RewardConfig:
    lambda_acc: float = key("weight of the accuracy reward (Eq. 5)", ge=0)
    lambda_fmt: float = key("weight of the format reward (Eq. 5)", ge=0)
    match: Match = key(
        "lenient: 'B. dog' counts as B; exact: the bare letter, as the paper trains; first_letter: as it evaluates"
    )
    lambda_int: float = key("weight of the integration reward; 0 does not compute it", ge=0)
    integration: Rule = key("rule that rewards using both senses (docs/evaluation.md, experiments/integration.md)")
    integration_scale: float = key("s of the rule counterfactual, in nats per token", gt=0)
    file: str | None = key("a Python file of your own that defines reward(completion, sample)")
    lambda_file: float = key("weight of the reward in reward.file; a negative weight penalizes")
    files: list[RewardFile] = key("several files: [{path: mine.py, weight: 0.5, name: brevity}, …]", list)
    on_error: OnError = key("a reward file fails, takes too long or gives no finite number: stop the run, or reward 0")
    max_seconds: float = key("seconds that a reward file may take for one completion", gt=0)


@dataclass
class GrpoConfig:
    group_size: int = key("G, completions per prompt", ge=2)
    beta: float = key("weight of the KL term; 0 leaves the reference model out", ge=0)
    loss: Loss = key("how token losses are summed")
    advantage: Advantage = key("group: rewards relative to the group; rejection: learn from right completions only")
    scale: Scale = key("what advantages are divided by; group is Eq. 1")
    modality_dropout: float = key(
        "share of the prompts with both senses that lose one of them in a rollout", ge=0, lt=1
    )
    clip: float = key("epsilon of the clipped ratio", gt=0, lt=1)
    updates_per_rollout: int = key("optimizer passes over each rollout; 1 is on-policy", ge=1)
    shared_prefix: bool = key("compute a group's prompt once in the loss; false: once per completion, for comparison")


@dataclass
class VllmConfig:
    python: str | None = key("interpreter of the environment that has vLLM; null: this run's")
    sleep: bool = key("on a GPU: vLLM gives its memory back between rollouts")
    correction: Correction = key(
        "importance weights of the loss, for the difference between vLLM's log-probabilities and the trainer's"
    )
    correction_max: float = key("largest ratio of the trainer's probability to vLLM's", gt=1)
    alarm: float = key("warn above this mean difference of the log-probabilities, in nats per token", gt=0)


@dataclass
class GenerationConfig:
    engine: RolloutEngine = key("what generates rollouts; for evaluations see eval.engine")
    temperature: float = key("of sampling, in training and in the sampled evaluation", gt=0)
    top_p: float = key("nucleus: the smallest set of tokens with this probability", gt=0, le=1)
    top_k: int = key("most candidates per token; 0 for all", ge=0)
    max_new_tokens: int = key("a longer completion is cut", ge=1)
    vllm: VllmConfig = field(default_factory=VllmConfig)


@dataclass
class TrainerConfig:
    processes: int | None = key("number of processes, one per GPU; null: as many as are started", ge=1)
    sharding: Sharding = key("what is sharded among the processes")
    patience: float = key(
        "seconds that a process waits for the others, or for vLLM, before it says where it is and ends", gt=0
    )
    prompts_per_step: int = key("prompts per optimizer step, over all processes", ge=1)
    micro_batch_prompts: int = key("prompts per forward and backward on one process", ge=1)
    steps: int | None = key("optimizer steps; null for `epochs` over the training set", ge=1)
    epochs: float = key("passes over the training set when steps is null", gt=0)
    learning_rate: float = key("peak learning rate of AdamW", gt=0)
    schedule: Schedule = key("learning rate over steps; cosine and linear end at 0")
    warmup_steps: int = key("steps of linear warm-up", ge=0)
    weight_decay: float = key("weight decay of AdamW", ge=0)
    max_grad_norm: float = key("gradient clipping; 0 for none", ge=0)
    bf16: bool = key("autocast to bfloat16")
    gradient_checkpointing: bool | None = key("recompute activations; null: where they are estimated not to fit")
    save_every: int = key("steps between checkpoints; the last step is always saved; 0 for only that", ge=0)
    keep_checkpoints: int = key("number of newest checkpoints that are kept", ge=1)
    push_to_hub: str | None = key("hub id of a repository that gets the exported model when training has ended")
    max_skipped_steps: int = key("consecutive steps with a non-finite loss or gradient that a run survives", ge=0)
    completions_every: int = key("steps between rollouts that are kept in completions/; 0 for none", ge=0)


@dataclass
class EvalConfig:
    protocol: Protocol = key("matched: base and trained model alike; release, may19: as the paper's public code")
    split: Split = key("valid, for reported numbers; or dev, for choosing settings")
    base: bool = key("evaluate the model before training too")
    limit: int | None = key("samples of eval.split to use; null for all", ge=1)
    ablations: list[Variant] = key("also evaluate with a sense taken away: [no_audio, no_image, text_only, …]", list)
    engine: RolloutEngine = key(
        "what answers: the model itself, or vLLM (see generation.vllm), whose difference is then reported"
    )
    batch_prompts: int | None = key(
        "prompts decoded together; null: as many as fit, at most 128; does not change the result", ge=1
    )
    samples: int = key("sampled draws per sample; from 2 on their mean, majority and pass@k are reported", ge=1)
    greedy: bool = key("add a greedy draw")
    every: int = key(
        "steps between evaluations on the development split, which choose the best checkpoint; 0: none", ge=0
    )
    dev_samples: int = key("sampled draws per development sample; from 2 on pass@k is logged", ge=1)
    watched: int = key("number of evaluated samples to answer and show every trainer.completions_every steps", ge=0)
    cache: str | None = key("folder that caches the base's answers for other runs of the same base; null: no cache")
    direct: Prompt = field(default_factory=Prompt)
    """The prompt without reasoning that the public protocols give the base (a file of the group `prompt`)."""


@dataclass
class TrackingConfig:
    enabled: bool = key("log to MLflow; the run folder is written in any case")
    uri: str = key("MLflow tracking URI; a relative sqlite path starts at the current folder")
    experiment: str = key("MLflow experiment")
    traces_every: int = key("steps between rollouts that are shown as traces, with picture and sound; 0 for none", ge=0)
    traces_groups: int = key("groups shown of each traced rollout", ge=1)
    machine_every: float = key("seconds between measurements of processor, memory and GPU; 0 for none", ge=0)


@dataclass
class SftConfig:
    """For task=sft only."""

    responses: int = key("most responses of a row per pass; its prompt is computed once for them", ge=2)


@dataclass
class SweepConfig:
    """For --multirun only."""

    resume: str | None = key("folder of a sweep: run what is missing there or did not finish")
    share: str | None = key("folder: a finished run below it with the same configuration is copied, not run again")


@dataclass
class Config:
    """The whole configuration. Commands, `pipeline/` and the plan take it; most other code takes one group."""

    name: str = key("first part of the run folder's name, outputs/<name>/<time>")
    seed: int = key("seed of sampling, shuffling and evaluation draws", ge=0, lt=2**32)
    task: Task = key(
        "train: GRPO; sft: learn the rows' responses; eval: evaluate `checkpoint` (or model.path) only; compare: "
        "`checkpoint` against model.path"
    )
    resume: str = key(
        "never; auto: the run in this hydra.run.dir, else the newest unfinished one with this name and configuration; "
        "or a run folder"
    )
    resume_allow: list[str] = key("keys in which a resumed run may differ", list)
    dry_run: bool = key("print and write the plan (steps, tokens, memory, disk) and stop before any weight is loaded")
    checkpoint: str | None = key(
        "weights to start from: a run folder (its best step on dev, else the last), a step or model folder, or a hub id"
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    prompt: Prompt = field(default_factory=Prompt)
    reward: RewardConfig = field(default_factory=RewardConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    @property
    def trains(self) -> bool:
        """Whether weights learn."""
        return self.task in (Task.train, Task.sft)

    @property
    def uses_vllm(self) -> bool:
        """Whether a run starts vLLM, for its rollouts or for its evaluations."""
        rollouts = self.task is Task.train and self.generation.engine is RolloutEngine.vllm
        return rollouts or self.eval.engine is RolloutEngine.vllm


def flatten(config: Config) -> dict[str, Any]:
    """Dotted keys to plain values, enums by name."""
    plain = {}
    for name, _spec, value in fields_of(config):
        if isinstance(value, list):
            value = [item.name if isinstance(item, Enum) else item for item in value]
        plain[name] = value.name if isinstance(value, Enum) else value
    return plain


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
