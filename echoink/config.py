"""The schema of the configuration: one dataclass per group of `conf/`, with type, meaning and range of every field.

Values live in `conf/*.yaml`; here is what they may be. `compose` gives a validated `Config` or raises `UserError`,
before anything heavy is imported and before a folder is written.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from echoink.errors import UserError
from echoink.rewards import Match

VERSION_BASE = "1.3"


def _(doc: str, default: Any = MISSING, **bounds: float) -> Any:
    """A field: its one-line meaning and, for a number, its range (`ge`, `gt`, `le`, `lt`)."""
    return field(default=default, metadata={"doc": doc, **bounds})


class Task(Enum):
    train = "train"
    eval = "eval"


class Dtype(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Attention(Enum):
    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class Tower(Enum):
    audio = "audio"
    vision = "vision"


class Source(Enum):
    synthetic = "synthetic"
    folder = "folder"


class Loss(Enum):
    """How TRL sums the token losses; `grpo` is the paper's (mean over a completion's tokens, then over completions)."""

    grpo = "grpo"
    bnpo = "bnpo"
    dr_grpo = "dr_grpo"
    dapo = "dapo"


class Scale(Enum):
    """What advantages are divided by."""

    group = "group"
    batch = "batch"
    none = "none"


class Schedule(Enum):
    cosine = "cosine"
    linear = "linear"
    constant = "constant"


@dataclass
class ModelConfig:
    path: str = _("`tiny` (the embedded model), a folder, or a hub id")
    dtype: Dtype = _("precision of the weights; float32 are master weights when trainer.bf16 is on")
    attention: Attention = _("attention kernel")
    freeze: list[Tower] = field(default_factory=list, metadata={"doc": "towers that do not learn: [audio, vision]"})
    max_pixels: int = _("a larger picture is scaled down to this many pixels", ge=28 * 28)
    max_audio_seconds: float = _("a longer sound is cut to its first seconds", gt=0.05, le=300)
    max_prompt_tokens: int = _("a longer prompt is an error; media tokens are never cut", ge=1)


@dataclass
class DatasetConfig:
    source: Source = _("synthetic: made when it is missing; folder: must be there, in the official layout")
    path: str = _("folder that holds omni_rl_format_<split>.json and the split folders")
    seed: int = _("makes the synthetic data", ge=0)
    train: int | None = _("training samples (synthetic: to make; folder: the first so many); null for all", ge=1)
    dev: int | None = _("development samples, held out of train for choosing", ge=1)
    valid: int | None = _("validation samples", ge=1)


@dataclass
class PromptConfig:
    system: str = _("system turn; empty for the chat template's own")
    template: str = _("user turn, with {question} {options} {think} {end_think} {answer} {end_answer}")


@dataclass
class RewardConfig:
    lambda_acc: float = _("weight of the accuracy reward (Eq. 5)", ge=0)
    lambda_fmt: float = _("weight of the format reward (Eq. 5)", ge=0)
    match: Match = _("lenient: 'B. dog' counts as B; exact: the bare letter, as in the paper's run")


@dataclass
class GrpoConfig:
    group_size: int = _("G, completions per prompt", ge=2)
    beta: float = _("weight of the KL term; 0 leaves the reference model out", ge=0)
    loss: Loss = _("how token losses are summed")
    scale: Scale = _("what advantages are divided by; group is Eq. 1")
    clip: float = _("epsilon of the clipped ratio", gt=0, lt=1)
    updates_per_rollout: int = _("optimizer passes over each rollout; 1 is on-policy", ge=1)


@dataclass
class GenerationConfig:
    temperature: float = _("of sampling, in training and in the sampled evaluation", gt=0)
    top_p: float = _("nucleus: the smallest set of tokens with this probability", gt=0, le=1)
    top_k: int = _("at most so many candidates per token; 0 for all", ge=0)
    max_new_tokens: int = _("a longer completion is cut", ge=1)


@dataclass
class TrainerConfig:
    prompts_per_step: int = _("prompts per optimizer step, over all processes", ge=1)
    micro_batch_prompts: int = _("prompts per forward and backward on one process", ge=1)
    steps: int | None = _("optimizer steps; null for `epochs` over the training set", ge=1)
    epochs: float = _("passes over the training set when steps is null", gt=0)
    learning_rate: float = _("peak learning rate of AdamW", gt=0)
    schedule: Schedule = _("learning rate over steps; cosine and linear end at 0")
    warmup_steps: int = _("steps of linear warm-up", ge=0)
    weight_decay: float = _("of AdamW", ge=0)
    max_grad_norm: float = _("gradient clipping; 0 for none", ge=0)
    bf16: bool = _("autocast to bfloat16")
    gradient_checkpointing: bool = _("recompute activations to save memory")
    save_every: int = _("steps between checkpoints; the last step is always saved; 0 for only that", ge=0)
    keep_checkpoints: int = _("newest checkpoints kept", ge=1)
    completions_every: int = _("steps between samples of rollouts in completions/; 0 for none", ge=0)


@dataclass
class EvalConfig:
    base: bool = _("evaluate the model before training too")
    limit: int | None = _("validation samples to use; null for all", ge=1)
    batch_prompts: int = _("prompts decoded together; does not change the result", ge=1)
    samples: int = _("sampled draws per sample; from 2 on their mean, majority and pass@k are reported", ge=1)
    greedy: bool = _("add a greedy draw")


@dataclass
class TrackingConfig:
    enabled: bool = _("log to MLflow; the run folder is written in any case")
    uri: str = _("MLflow tracking URI; a relative sqlite path counts from the current folder")
    experiment: str = _("MLflow experiment")


@dataclass
class Config:
    """The whole configuration. Only `train.py` sees it; everything else gets its group."""

    name: str = _("first part of the run folder's name, outputs/<name>/<time>")
    seed: int = _("of sampling, shuffling and evaluation draws", ge=0)
    task: Task = _("train, or eval to evaluate `checkpoint` (or model.path) only")
    checkpoint: str | None = _("weights to start from: a run folder, a step folder, a model folder or a hub id")
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


ConfigStore.instance().store(name="schema", node=Config)


def conf_dir() -> Path:
    """The folder `conf/`: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(f"no conf/config.yaml in or beside {package}", "reinstall echoink")


@dataclass(frozen=True)
class Composed:
    """A validated configuration and the folder that Hydra gives it."""

    config: Config
    folder: Path


def compose(overrides: Sequence[str], multirun: bool = False, config_dir: str | None = None) -> list[Composed]:
    """Compose and validate what Hydra would run: one configuration, or one per job of a sweep.

    Args:
        overrides: Hydra's command-line overrides, `reward.lambda_fmt=0.5`.
        multirun: expand `a=1,2` into jobs.
        config_dir: a folder of the user's own with more files for the groups, as Hydra's --config-dir.

    Raises:
        UserError: naming the key and the closest valid one, the wrong type, or the value out of range.
    """
    jobs = _expand(overrides) if multirun else [list(overrides)]
    if config_dir is not None:
        jobs = [[*job, f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"] for job in jobs]
    return [_compose_one(job, multirun) for job in jobs]


def _expand(overrides: Sequence[str]) -> list[list[str]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise _explained(error, overrides) from error
    if any(override.is_sweep_override() and override.is_discrete_sweep() is False for override in parsed):
        return [[o.input_line for o in parsed if not o.is_sweep_override()]]
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def _compose_one(overrides: Sequence[str], multirun: bool) -> Composed:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE, job_name="train"):
        try:
            raw = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
            hydra = raw.hydra
            OmegaConf.set_struct(hydra, False)
            hydra.mode = RunMode.MULTIRUN if multirun else RunMode.RUN
            OmegaConf.resolve(raw.hydra.sweep if multirun else raw.hydra.run)
            folder = Path(raw.hydra.sweep.dir if multirun else raw.hydra.run.dir)
            del_hydra = OmegaConf.masked_copy(raw, [key for key in raw if key != "hydra"])
            return Composed(validate(del_hydra), folder)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explained(error, overrides) from error


def validate(raw: DictConfig) -> Config:
    """Turn a composed configuration into a `Config`, refusing unknown keys (with `+` too), wrong types and bad values.

    Raises:
        UserError: see `compose`.
    """
    missing = sorted(OmegaConf.missing_keys(raw))
    if missing:
        hints = [f"set {key}=…" for key in missing]
        raise UserError(f"the configuration lacks {', '.join(missing)}", " ".join(hints))
    try:
        plain = OmegaConf.to_container(raw, resolve=True)
        config: Config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    except OmegaConfBaseException as error:
        raise _explained(error, []) from error
    for key, spec, value in fields_of(config):
        _check_range(key, spec, value)
    _check_together(config)
    return config


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Every leaf of the configuration: dotted key, field, value."""
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", spec, value


def flatten(config: Config) -> dict[str, Any]:
    """Dotted keys to plain values, enums by name."""
    plain = {}
    for key, _spec, value in fields_of(config):
        if isinstance(value, list):
            value = [item.name if isinstance(item, Enum) else item for item in value]
        plain[key] = value.name if isinstance(value, Enum) else value
    return plain


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _check_range(key: str, spec: dataclasses.Field, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if not math.isfinite(value):
        raise UserError(f"{key}={value} is not a finite number", spec.metadata["doc"])
    tests = {
        "ge": (">=", value.__ge__),
        "gt": (">", value.__gt__),
        "le": ("<=", value.__le__),
        "lt": ("<", value.__lt__),
    }
    for name, (sign, holds) in tests.items():
        if name in spec.metadata and holds(spec.metadata[name]) is not True:
            raise UserError(f"{key}={value} must be {sign} {spec.metadata[name]}", spec.metadata["doc"])


def _check_together(config: Config) -> None:
    trainer = config.trainer
    if trainer.prompts_per_step % trainer.micro_batch_prompts:
        raise UserError(
            f"trainer.prompts_per_step={trainer.prompts_per_step} is not a multiple of "
            f"trainer.micro_batch_prompts={trainer.micro_batch_prompts}",
            "gradients are accumulated over whole micro-batches",
        )
    if config.reward.lambda_acc == 0 and config.reward.lambda_fmt == 0:
        raise UserError("reward.lambda_acc and reward.lambda_fmt are both 0", "nothing would be rewarded")
    from echoink.prompts import check_template

    check_template(config.prompt.template)
    if config.model.attention is Attention.flash_attention_2 and not (
        config.trainer.bf16 or config.model.dtype is Dtype.bfloat16
    ):
        raise UserError("model.attention=flash_attention_2 needs half precision", "set trainer.bf16=true")


def _keys() -> list[str]:
    schema = OmegaConf.structured(Config)
    keys = []

    def walk(node: Any, prefix: str) -> None:
        for name in node:
            keys.append(f"{prefix}{name}")
            if isinstance(node._get_node(name), DictConfig):
                walk(node[name], f"{prefix}{name}.")

    walk(schema, "")
    return keys


def _explained(error: Exception, overrides: Sequence[str]) -> UserError:
    """What Hydra or OmegaConf found, in one line, with the closest valid name."""
    text = str(error)
    cause = error.__cause__ or error
    if isinstance(error, MissingConfigException) and "Available options" in text:
        what, _, listing = text.partition("Available options")
        names = listing.partition("Config search path")[0].split("\n")[1:]
        names = [name.strip() for name in names if name.strip()]
        tried = what.split("'")[-2].split("/")[-1]
        return UserError(what.strip().splitlines()[-1], f"{_closest(tried, names)}available: {', '.join(names)}")
    if isinstance(error, OverrideParseException):
        return UserError(f"cannot read the override {error.override!r}", "overrides read key=value, without spaces")
    if "Ambiguous value for argument" in text:
        return UserError(text.splitlines()[0], "add --multirun for a sweep, or quote the value")
    given = [override.partition("=")[0] for override in overrides]
    for key in given:
        if key.lstrip("+").partition("@")[0] in _groups() and key.startswith("+"):
            return UserError(f"{key} adds a group that is already there", f"write {key.lstrip('+')}=… without +")
    keys = _keys()
    tried = getattr(cause, "full_key", None) or next((key for key in given if key.lstrip("+~") in text), "")
    tried = tried.lstrip("+~")
    if tried and re.sub(r"\[\d+\]$", "", tried) not in keys:
        alike = [key for key in keys if key.count(".") == tried.count(".")]
        siblings = [key for key in alike if key.rpartition(".")[0] == tried.rpartition(".")[0]]
        return UserError(f"unknown key {tried}", f"{_closest(tried, alike)}known: {', '.join(siblings or alike)}")
    detail = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    return UserError(f"{tried}: {detail}" if tried else detail, "python -m echoink.train --help explains every key")


def _closest(tried: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(tried, names, 1, 0.75)
    return f"did you mean {close[0]}? " if close else ""


def _groups() -> list[str]:
    return [path.name for path in conf_dir().iterdir() if path.is_dir()]
