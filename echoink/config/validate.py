"""Checks of a composed configuration, each key alone and all of them together."""

import dataclasses
import functools
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from echoink.common.errors import UserError
from echoink.common.keys import check_range, fields_of, refuse_home
from echoink.config.mistakes import explained, known_like
from echoink.config.paths import NO_RUNS
from echoink.config.schema import (
    Adapter,
    Advantage,
    Attention,
    Config,
    Dtype,
    ModelConfig,
    Part,
    RewardConfig,
    RewardFile,
    RolloutEngine,
    Sharding,
    Split,
    Task,
)
from echoink.rewards.types import ROW_FIELDS, TWINS, Rule

MAY_BE_EMPTY = (".system", ".template", ".options")
"""The texts of a prompt."""

Schema = TypeVar("Schema")


def validate(raw: DictConfig) -> Config:
    """Turn a composed configuration into a `Config`, refusing unknown keys (with `+` too), wrong types and bad values.

    Raises:
        UserError: see `compose`.
    """
    if raw.model.get("figures"):
        says = "model.figures is called model.architecture now; the old name will be removed in the next release"
        warnings.warn(says, stacklevel=2)
        raw.model.architecture = OmegaConf.merge(raw.model.architecture, raw.model.figures)
        raw.model.figures = {}
    config = typed(raw, Config)
    config.trainer.processes = config.trainer.processes or _processes_of_launcher()
    _check_together(config)
    if config.task is Task.sft:
        _supervise(config)
    return config


def _supervise(config: Config) -> None:
    """Set the GRPO keys for a supervised run, whose given responses take the place of a rollout.

    Raises:
        UserError: something is asked for that only GRPO does.
    """
    if config.generation.engine is RolloutEngine.vllm:
        raise UserError("task=sft generates no rollouts", "generation=transformers; eval.engine=vllm for evaluations")
    if config.reward.lambda_int:
        raise UserError("task=sft learns responses, whatever reward.lambda_int is", "reward=accuracy_format")
    config.grpo.group_size, config.grpo.beta, config.grpo.updates_per_rollout = config.sft.responses, 0.0, 1


def launched_processes() -> int:
    """How many processes a launcher such as torchrun has started for this run."""
    said = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not said.isdecimal() or not int(said):
        raise UserError(f"WORLD_SIZE={said} is not a number of processes", "unset it, or let torchrun set it")
    return int(said)


def separate_tasks() -> str | None:
    """How many processes srun or mpirun has started that do not know of each other; None if it has not."""
    names = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    tasks = next((n for name in names if (n := os.environ.get(name, "")).isdecimal() and int(n) > 1), None)
    return None if "WORLD_SIZE" in os.environ else tasks


def _processes_of_launcher() -> int:
    """The number of processes for `trainer=ddp` and others that leave it to the launcher.

    Raises:
        UserError: srun or mpirun has started several processes, which do not know of each other.
    """
    if tasks := separate_tasks():
        raise UserError(
            f"{tasks} processes were started without WORLD_SIZE: each would be a run of its own",
            "experiments/slurm/train.sbatch sets RANK, LOCAL_RANK and WORLD_SIZE; or start one torchrun on each node",
        )
    return launched_processes()


_structured = functools.cache(OmegaConf.structured)
"""A schema as a node, which takes half of a validation to make; `OmegaConf.merge` copies it."""


def typed(raw: DictConfig, schema: type[Schema]) -> Schema:
    """The composed configuration as a schema's dataclass, values within their ranges.

    Raises:
        UserError: see `compose`.
    """
    missing = sorted(OmegaConf.missing_keys(raw))
    if missing:
        hints = [f"set {key}=…" for key in missing]
        raise UserError(f"the configuration lacks {', '.join(missing)}", " ".join(hints))
    try:
        plain = OmegaConf.to_container(raw, resolve=True)
        config: Schema = OmegaConf.to_object(OmegaConf.merge(_structured(schema), plain))
    except OmegaConfBaseException as error:
        raise explained(error, []) from error
    for key, spec, value in fields_of(config):
        check_range(key, spec, value)
        if value == "" and spec.type in (str, str | None) and not key.endswith(MAY_BE_EMPTY):
            or_null = "" if spec.type is str else f", or {key}=null"
            raise UserError(f"{key}= is empty", f"give a value{or_null}; is a shell variable unset?")
        refuse_secret(key, str(value))
        if isinstance(value, str) and not key.endswith(MAY_BE_EMPTY):
            refuse_home(key, value)
    return config


_SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|AKIA[0-9A-Z]{16}"
    r"|dapi[0-9a-f]{32})\b|://[^/@\s:]+:[^/@\s]+@|\$\{oc\.env:\w*(TOKEN|SECRET|PASSWORD|API_KEY)"
)
"""Tokens of hubs and clouds, a password in an address, a secret that is read from the environment."""


def refuse_secret(key: str, text: str) -> None:
    """Refuse what looks like a secret: a configuration is written to disk, to MLflow and into reports."""
    if _SECRET.search(text):
        raise UserError(
            f"{key} looks like a secret, which would be written into the run's files",
            "log in with `hf auth login`; for an MLflow server set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, for PostgreSQL PGPASSWORD or ~/.pgpass",
        )


def _check_integration(config: Config) -> None:
    reward = config.reward
    if reward.lambda_int and reward.integration is Rule.redraw and config.grpo.group_size < 3:
        raise UserError(
            "reward.integration=redraw compares with two other draws: it needs grpo.group_size of at least 3",
            f"it is {config.grpo.group_size}",
        )
    if reward.lambda_int and reward.integration in TWINS and config.generation.engine is RolloutEngine.vllm:
        raise UserError(
            f"reward.integration={reward.integration.name} compares answers of the same random numbers, and vLLM draws "
            "its own: differences would be chance",
            "generation=transformers; eval.engine=vllm may stay",
        )


def _check_together(config: Config) -> None:
    trainer = config.trainer
    if ".." in (place := Path(config.name)).parts or place.is_absolute():
        raise UserError(
            f"name={config.name} leads out of outputs/", "give a name without ..; for another place set hydra.run.dir=…"
        )
    if taken := NO_RUNS & {*place.parts}:
        raise UserError(f"name={config.name}: runs below {taken.pop()}/ are not found", "choose another name")
    known = [key for key, _, _ in fields_of(config)]
    for key in config.resume_allow:
        if key not in ("model", "data") and not any(f"{key}.".startswith(f"{one}.") for one in known):
            raise UserError(f"resume_allow: unknown key {key}", f"{known_like(key, known)} Also: model, data")
    reward = config.reward
    _check_integration(config)
    halves = config.model.dtype is Dtype.bfloat16 and config.adapter.kind is Adapter.none
    if config.trains and halves and not trainer.sharding.is_deepspeed:
        raise UserError(
            "model.dtype=bfloat16 would learn in bfloat16, where nearly all of a small update is lost",
            "model.dtype=float32 trainer.bf16=true computes in bfloat16 and learns in float32; or adapter=lora",
        )
    pays = reward.lambda_int and config.reward.integration is not Rule.need  # need only weights other rewards
    apart = ("lambda_file", "lambda_int")
    weights = [value for name, value in vars(reward).items() if name.startswith("lambda_") and name not in apart]
    weights += [reward.lambda_file] if reward.file else []
    if config.task is not Task.sft and not (any(weights) or pays or any(each.weight for each in reward.files)):
        raise UserError("reward.lambda_acc and reward.lambda_fmt are both 0", "nothing would be rewarded")
    check_reward_files(reward.file, reward.files)
    if config.adapter.kind is Adapter.qlora and trainer.sharding is Sharding.fsdp2:
        raise UserError("adapter=qlora cannot be divided by FSDP2", "trainer=ddp: 4-bit weights fit on each GPU")
    if reward.lambda_int and config.grpo.advantage is Advantage.rejection:
        raise UserError("grpo.advantage=rejection leaves reward.lambda_int without effect", "set reward.lambda_int=0")
    if config.trains and config.eval.split is Split.train:
        raise UserError("eval.split=train is for curation (task=eval)", "a training run evaluates valid or dev")
    if config.task is Task.compare and not config.checkpoint:
        raise UserError("task=compare needs checkpoint=…", "it is compared with model.path")
    if config.dry_run and not config.trains:
        raise UserError(f"dry_run plans training, not task={config.task.name}", "set task=train")
    at_once = trainer.micro_batch_prompts * trainer.processes
    if trainer.prompts_per_step % at_once:
        raise UserError(
            f"trainer.prompts_per_step={trainer.prompts_per_step} is not a multiple of trainer.micro_batch_prompts="
            f"{trainer.micro_batch_prompts} times trainer.processes={trainer.processes}",
            "every process takes whole micro-batches",
        )
    config.prompt.check()
    config.eval.direct.check("eval.direct")
    _check_caps(config.model)
    _check_learns(config.model.freeze, config.adapter.kind)
    if config.model.attention is Attention.flash_attention_2 and not (
        config.trainer.bf16 or config.model.dtype is Dtype.bfloat16
    ):
        raise UserError("model.attention=flash_attention_2 needs half precision", "set trainer.bf16=true")


def _check_caps(model: ModelConfig) -> None:
    for of in ("pixels", "video_frames", "video_pixels"):
        least, most = getattr(model, f"min_{of}"), getattr(model, f"max_{of}")
        if least > most:
            raise UserError(
                f"model.min_{of}={least} is more than model.max_{of}={most}", "lower it, or raise the other"
            )


def _check_learns(freeze: Sequence[Part], adapter: Adapter) -> None:
    if len(freeze) != len(towers := {part.name.removesuffix("_encoder") for part in freeze}):
        given = ", ".join(part.name for part in freeze)
        raise UserError(
            f"model.freeze=[{given}] names a part twice", "audio includes audio_encoder, vision includes vision_encoder"
        )
    if "language" in towers and adapter is not Adapter.none:
        raise UserError(
            f"model.freeze=[language] and adapter={adapter.name} exclude each other",
            "only the adapter learns: remove language, or set adapter=none",
        )
    if {Part.language, Part.audio, Part.vision} <= set(freeze):
        raise UserError("model.freeze names everything: nothing would learn", "remove one part")


def check_reward_files(file: str | None, files: Sequence[RewardFile]) -> None:
    """Refuse custom rewards whose files do not exist, or whose names are taken or not valid.

    Args:
        file: `reward.file`.
        files: `reward.files`.

    Raises:
        UserError: naming the key.
    """
    paths = {"reward.file": file} if file else {}
    paths |= {f"reward.files[{place}].path": each.path for place, each in enumerate(files)}
    for where, path in paths.items():
        if not Path(path).is_file():
            raise UserError(f"{where}={path}: no such file", "a Python file that defines reward(completion, sample)")
    taken = ["accuracy", "format", *ROW_FIELDS, *(["custom"] if file else [])]
    taken += [field.name.removeprefix("lambda_") for field in dataclasses.fields(RewardConfig)]
    for place, each in enumerate(files):
        for spec in dataclasses.fields(each):
            check_range(f"reward.files[{place}].{spec.name}", spec, getattr(each, spec.name))
        if each.metric_name in taken or not each.metric_name.isidentifier():
            problem = "is taken" if each.metric_name in taken else "is not valid"
            hint = "reward.files=[{path: …, name: …}] gives a name of letters, digits and _"
            raise UserError(f"reward.files[{place}]: the name {each.metric_name} {problem}", hint)
        taken.append(each.metric_name)
