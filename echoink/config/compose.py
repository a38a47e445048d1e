"""From the command line to a validated `Config`, or one clear error, before anything heavy is imported or written."""

import dataclasses
import difflib
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from echoink.common.errors import UserError
from echoink.common.ranges import check_range
from echoink.config.effects import refuse_without_effect
from echoink.config.foreign_names import HERE
from echoink.config.origin import chosen_files, explain, has_key, line_of, refuse_surprises
from echoink.config.paths import NO_RUNS, conf_dir
from echoink.config.schema import (
    Adapter,
    Advantage,
    Attention,
    Config,
    Dtype,
    Part,
    RewardConfig,
    RewardFile,
    RolloutEngine,
    Sharding,
    Split,
    Task,
    fields_of,
)
from echoink.rewards.types import ROW_FIELDS, Rule

VERSION_BASE = "1.3"

MAY_BE_EMPTY = (".system", ".template", ".options")
"""The texts of a prompt."""

SWEPT = "ECHOINK_SWEPT"
"""Environment variable by which a sweep tells its jobs which keys differ between them."""

Schema = TypeVar("Schema")


ConfigStore.instance().store(name="schema", node=Config)


OmegaConf.register_new_resolver("conf", lambda path: str(conf_dir() / path))


@dataclass(frozen=True)
class Composed:
    """A validated configuration and the folder that Hydra gives it."""

    config: Config
    folder: Path
    overrides: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    """Keys of the experiment's own grid (hydra.sweeper.params) that the command line leaves open."""
    is_search: bool = False
    """Whether a search, such as hydra/sweeper=optuna, draws the values."""


def compose(overrides: Sequence[str], multirun: bool = False, config_dir: str | None = None) -> list[Composed]:
    """Compose and validate what Hydra would run: one configuration, or one per job of a sweep.

    Args:
        overrides: Hydra's command-line overrides, `reward.lambda_fmt=0.5`.
        multirun: expand `a=1,2` into jobs.
        config_dir: a folder of the user's own with more files for the groups, as Hydra's --config-dir.

    Raises:
        UserError: naming the key and the closest valid one, the wrong type, or the value out of range.
    """
    overrides = [as_text(word) for word in overrides]
    for word in overrides:
        _refuse_secret(word.partition("=")[0], word)
    own = Path(config_dir).resolve() if config_dir else None
    if own and not own.is_dir():
        raise UserError(
            f"--config-dir {config_dir}: no such folder", "it holds files for the groups, such as prompt/mine.yaml"
        )
    found = [f"hydra.searchpath=[{quoted(f'file://{own}')}]"] if own else []
    jobs = _expand(overrides, found, own) if multirun else [list(overrides)]
    jobs = [[*job, *found] for job in jobs]
    for path in chosen_files(dict.fromkeys(word for job in jobs for word in job), own):
        refuse_surprises(path)
    composed = [_compose_one(job, multirun, own) for job in jobs]
    # The one job of a search lacks what is drawn, and a job of a sweep does not know the others.
    if SWEPT not in os.environ and not (multirun and len(jobs) == 1):
        given = {override.partition("=")[0] for job in composed for override in job.overrides}
        refuse_without_effect(given, [job.config for job in composed])
    return composed


_NO_TEXT = re.compile(r"[+-]?[\d.][\d._]*(e[+-]?[\d_]+)?|true|false|[+-]?(inf|nan)", re.IGNORECASE)
"""What Hydra reads as a number or as yes or no."""


@cache
def _text_keys() -> set[str]:
    keys = {key for key, spec, _ in fields_of(Config()) if spec.type in (str, str | None)}
    return keys | {"hydra.run.dir", "hydra.sweep.dir"}


def as_text(override: str) -> str:
    """An override with its value quoted where its key takes a text and Hydra would read another: name=2026_11_29."""
    key, _, value = override.partition("=")
    if key.lstrip("+") not in _text_keys() or not any(map(_NO_TEXT.fullmatch, values := value.split(","))):
        return override
    return f"{key}=" + ",".join(quoted(one) if _NO_TEXT.fullmatch(one) else one for one in values)


def quoted(text: object) -> str:
    """A text, such as a path, as a value in Hydra's grammar of overrides, quoted where it must be."""
    # Outside of quotes Hydra's grammar knows the letters of ASCII alone.
    plain = re.fullmatch(r"(?:[A-Za-z_/]|\.\.?/)[\w./-]*", str(text), re.ASCII)
    if plain and str(text).lower() not in ("null", "true", "false", "inf", "nan"):
        return str(text)
    # Within quotes a backslash stands for itself, but before a quote it escapes it.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(text)) + "'"


def _expand(overrides: Sequence[str], searchpath: Sequence[str], own: Path | None = None) -> list[list[str]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    def parse(words: Sequence[str]) -> list:
        try:
            return OverridesParser.create().parse_overrides(list(words))
        except OverrideParseException as error:
            raise _explained(error, words) from error

    parsed = parse(overrides)
    # An experiment may say what it sweeps over (hydra.sweeper.params); the command line goes before it.
    plain = [override.input_line for override in parsed if not override.is_sweep_override()]
    params = _raw([*plain, *searchpath], own).hydra.sweeper.get("params") or {}
    given = {override.key_or_group for override in parsed}
    parsed = [*parse([f"{key}={value}" for key, value in params.items() if key not in given]), *parsed]
    # An interval gives no list of jobs: a search draws from it. Only the fixed settings can be checked here.
    if any(override.is_sweep_override() and override.is_discrete_sweep() is False for override in parsed):
        return [[o.input_line for o in parsed if not o.is_sweep_override()]]
    # Hydra's own expansion, so that what is validated here is what will run.
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException:  # glob(*) is expanded by Hydra itself, later
        return [[o.input_line for o in parsed if not o.is_sweep_override()]]
    return [list(job) for batch in batches for job in batch]


def _raw(overrides: Sequence[str], own: Path | None) -> DictConfig:
    """What Hydra composes, its own configuration with it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE, job_name="train"):
        try:
            return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        except YAMLError as error:
            raise UserError(f"a configuration file cannot be read: {' '.join(str(error).split())}") from error
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: group=null
            raise _explained(error, overrides, own) from error


def _compose_one(overrides: Sequence[str], multirun: bool, own: Path | None) -> Composed:
    raw = _raw(overrides, own)
    try:
        # Only what names the folder is resolved: the rest of Hydra's configuration wants a job that runs.
        OmegaConf.set_struct(raw.hydra, False)
        raw.hydra.mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        OmegaConf.resolve(raw.hydra.sweep if multirun else raw.hydra.run)
        folder = Path(raw.hydra.sweep.dir if multirun else raw.hydra.run.dir)
        config = validate(OmegaConf.masked_copy(raw, [key for key in raw if key != "hydra"]))
        given = {override.partition("=")[0] for override in overrides}
        grid = tuple(str(key) for key in raw.hydra.sweeper.get("params") or {} if key not in given)
        is_search = raw.hydra.runtime.choices["hydra/sweeper"] != "basic"
        return Composed(config, folder, tuple(overrides), grid=grid, is_search=is_search)
    except UserError as error:
        raise _with_place(error, overrides, own) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explained(error, overrides, own) from error


def _with_place(error: UserError, overrides: Sequence[str], own: Path | None) -> UserError:
    """An error about a key with the file and the line of the user's own that give it its value."""
    key = named.group(1) if (named := re.match(r"([\w.]+)=", error.problem)) else ""
    if key in {override.partition("=")[0] for override in overrides}:
        return error
    for path in chosen_files(overrides, own):
        if has_key(path, key):
            return UserError(f"{path}, line {line_of(path, key)}: {error.problem}", error.hint)
    return error


def validate(raw: DictConfig) -> Config:
    """Turn a composed configuration into a `Config`, refusing unknown keys (with `+` too), wrong types and bad values.

    Raises:
        UserError: see `compose`.
    """
    if raw.model.get("figures"):
        says = "model.figures is called model.architecture now; the old name goes with the next release"
        warnings.warn(says, stacklevel=2)
        raw.model.architecture = OmegaConf.merge(raw.model.architecture, raw.model.figures)
        raw.model.figures = {}
    config = typed(raw, Config)
    config.trainer.processes = config.trainer.processes or launched_processes()
    _check_together(config)
    if config.task is Task.sft:
        _supervise(config)
    return config


def _supervise(config: Config) -> None:
    """Set what a supervised run takes over from GRPO: its responses are a rollout that is given.

    Raises:
        UserError: something is asked for that only GRPO does.
    """
    if config.generation.engine is RolloutEngine.vllm:
        raise UserError("task=sft generates no rollouts", "generation=transformers; eval.engine=vllm for evaluations")
    if config.reward.lambda_int:
        raise UserError("task=sft learns responses, whatever reward.lambda_int is", "reward=accuracy_format")
    config.grpo.group_size, config.grpo.beta, config.grpo.updates_per_rollout = max(2, config.sft.responses), 0.0, 1
    config.generation.engine, config.reward.lambda_int = RolloutEngine.transformers, 0.0


def launched_processes() -> int:
    """How many processes a launcher such as torchrun has started for this run."""
    said = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not said.isdecimal() or not int(said):
        raise UserError(f"WORLD_SIZE={said} is no number of processes", "unset it, or start by torchrun, which sets it")
    return int(said)


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
        config: Schema = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except OmegaConfBaseException as error:
        raise _explained(error, []) from error
    for key, spec, value in fields_of(config):
        check_range(key, spec, value)
        if value == "" and spec.type in (str, str | None) and not key.endswith(MAY_BE_EMPTY):
            or_null = "" if spec.type is str else f", or {key}=null"
            raise UserError(f"{key}= is empty", f"give a value{or_null}; is a variable of the shell not set?")
        _refuse_secret(key, str(value))
    return config


_SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|AKIA[0-9A-Z]{16}"
    r"|dapi[0-9a-f]{32})\b|://[^/@\s:]+:[^/@\s]+@|\$\{oc\.env:\w*(TOKEN|SECRET|PASSWORD|API_KEY)"
)
"""Tokens of hubs and clouds, a password in an address, a secret that is read from the environment."""


def _refuse_secret(key: str, text: str) -> None:
    """A configuration is written to disk, to MLflow and into reports: what looks like a secret is not taken."""
    if _SECRET.search(text):
        raise UserError(
            f"{key} looks like a secret, which would be written into the run's files",
            "log in with `hf auth login`; for MLflow set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )


def _check_together(config: Config) -> None:
    trainer = config.trainer
    if ".." in (place := Path(config.name)).parts or place.is_absolute():
        raise UserError(
            f"name={config.name} leads out of outputs/", "a name without ..; hydra.run.dir=… is for another place"
        )
    if taken := NO_RUNS & {*place.parts}:
        raise UserError(f"name={config.name}: runs below {taken.pop()}/ are not looked for", "choose another name")
    known = [key for key, _, _ in fields_of(config)]
    for key in config.resume_allow:
        if key not in ("model", "data") and not any(f"{key}.".startswith(f"{one}.") for one in known):
            raise UserError(f"resume_allow: unknown key {key}", f"{_known(key, known)} Also: model, data")
    reward = config.reward
    if reward.lambda_int and reward.integration is Rule.redraw and config.grpo.group_size < 3:
        raise UserError(
            "reward.integration=redraw compares with two other draws: grpo.group_size is at least 3",
            f"it is {config.grpo.group_size}",
        )
    halves = config.model.dtype is Dtype.bfloat16 and config.adapter.kind is Adapter.none
    if config.trains and halves and not trainer.sharding.is_deepspeed:
        raise UserError(
            "model.dtype=bfloat16 would learn in bfloat16, where nearly all of a small update is lost",
            "model.dtype=float32 trainer.bf16=true computes in bfloat16 and learns in float32; or adapter=lora",
        )
    pays = reward.lambda_int and config.reward.integration is not Rule.need  # which weighs what others pay
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
        raise UserError("eval.split=train is for curation (task=eval)", "a run reports valid, or dev")
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
    for prompt in (config.prompt, config.eval.direct):
        prompt.check()
    _check_learns(config.model.freeze, config.adapter.kind)
    if config.model.attention is Attention.flash_attention_2 and not (
        config.trainer.bf16 or config.model.dtype is Dtype.bfloat16
    ):
        raise UserError("model.attention=flash_attention_2 needs half precision", "set trainer.bf16=true")


def _check_learns(freeze: Sequence[Part], adapter: Adapter) -> None:
    if len(freeze) != len(towers := {part.name.removesuffix("_encoder") for part in freeze}):
        given = ", ".join(part.name for part in freeze)
        raise UserError(
            f"model.freeze=[{given}] names a part twice", "audio holds audio_encoder, and vision vision_encoder"
        )
    if "language" in towers and adapter is not Adapter.none:
        raise UserError(
            f"model.freeze=[language] and adapter={adapter.name} exclude each other",
            "an adapter is all that learns: remove language, or take adapter=none",
        )
    if {Part.language, Part.audio, Part.vision} <= set(freeze):
        raise UserError("model.freeze names everything: nothing would learn", "remove one part")


def check_reward_files(file: str | None, files: Sequence[RewardFile]) -> None:
    """Refuse rewards of the user's own that are not there, or whose names are taken.

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
            problem = "is taken" if each.metric_name in taken else "is no name"
            hint = "reward.files=[{path: …, name: …}] gives a name of letters, digits and _"
            raise UserError(f"reward.files[{place}]: the name {each.metric_name} {problem}", hint)
        taken.append(each.metric_name)


_PLACES = {
    "model": "; for one of your own: model=<one of these> model.path=<folder or hub id>",
    "dataset": "; for one of your own: dataset=rows dataset.path=<folder>",
}
"""Of groups whose place may be taken for their file."""


def hint_for(name: str) -> str:
    """What to write in the place of a name that is no key."""
    return _known(name, _keys())


def _known(tried: str, keys: Sequence[str]) -> str:
    """A hint: the same key in its group, else the closest one and those of its group."""
    if there := [key for key in keys if key.rpartition(".")[2] == tried.rpartition(".")[2]]:
        return f"did you mean {' or '.join(there)}?"
    if here := HERE.get(tried.rpartition(".")[2]):
        return f"here it is {here}"
    same_depth = [key for key in keys if key.count(".") == tried.count(".")]
    siblings = [key for key in same_depth if key.rpartition(".")[0] == tried.rpartition(".")[0]]
    return f"{closest(tried, same_depth)}known: {', '.join(siblings or same_depth)}"


def _keys() -> list[str]:
    """Dotted keys of groups and values."""
    paths = [key.split(".") for key, _, _ in fields_of(Config())]
    return list(dict.fromkeys(".".join(path[: place + 1]) for path in paths for place in range(len(path))))


def _explained(error: Exception, overrides: Sequence[str], own: Path | None = None) -> UserError:
    """What Hydra or OmegaConf found, in one line, with the closest valid name; `own` is the user's --config-dir."""
    # Hydra and OmegaConf say what they found in their texts alone, so these are read, the most telling ones first.
    text = str(error)
    cause = error.__cause__ or error
    if inside := explain(text, own, conf_dir()):
        return _explained_inside(error, *inside)
    if isinstance(error, MissingConfigException) and "Available options" in text:
        what, _, listing = text.partition("Available options")
        names = listing.partition("Config search path")[0].split("\n")[1:]
        names = [name.strip() for name in names if name.strip()]
        tried = what.split("'")[-2].split("/")[-1]
        hint = f"{closest(tried, names)}available: {', '.join(names)}"
        group = what.split("'")[-2].split("/")[0]
        return UserError(what.strip().splitlines()[-1], hint + _PLACES.get(group, ""))
    if isinstance(error, OverrideParseException):
        key, sign, value = error.override.partition("=")
        if sign and value.strip() and key == key.strip() and not value.startswith(("'", '"', " ")):
            hint = f'quote the value for Hydra and for the shell: "{key}={quoted(value)}"'
        else:
            hint = "overrides read key=value, without spaces around ="
        return UserError(f"cannot read the override {error.override!r}", hint)
    if "Ambiguous value for argument" in text:
        return UserError(text.splitlines()[0], "add --multirun for a sweep, or quote the value")
    given = [override.partition("=")[0] for override in overrides]
    for key in given:
        if key.lstrip("+").partition("@")[0] in [group.name for group in groups()] and key.startswith("+"):
            return UserError(f"{key} adds a group that is already there", f"write {key.lstrip('+')}=… without +")
    keys = _keys()
    tried = getattr(cause, "full_key", None) or next((key for key in given if key.lstrip("+~") in text), "")
    tried = tried.lstrip("+~")
    if "reward.files" in given and tried and tried not in keys and "." not in tried:
        return UserError(f"reward.files: unknown key {tried}", "known: path, weight, name")
    if tried and re.sub(r"\[\d+\]$", "", tried) not in keys:
        return UserError(f"unknown key {tried}", _known(tried, keys))
    if tried and "is not a ListConfig" in str(cause):
        return UserError(f"{tried} takes a list", f"{tried}=[…], its items separated by commas")
    detail = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    return UserError(f"{tried}: {detail}" if tried else detail, "python -m echoink.train --help explains every key")


def _explained_inside(error: Exception, where: str, key: str, detail: str) -> UserError:
    """A mistake inside a configuration file."""
    if isinstance(error, MissingConfigException):
        tried = re.search(r"Could not find '([^']+)'", str(error))
        hint = "in a file of a group, another group is named from the root: - override /adapter: lora"
        return UserError(
            f"{where}: its defaults name {tried.group(1) if tried else 'a file'}, which is not there", hint
        )
    if detail.startswith("Key ") and key in ("experiment", *(group.name for group in groups())):
        return UserError(f"{where} lands under the key {key}", "its first line must be: # @package _global_")
    if detail.startswith("Key "):
        keys = _keys()
        return UserError(f"{where}: unknown key {key}", _known(key, keys))
    return UserError(
        f"{where}: {key + ': ' if key else ''}{detail}", "python -m echoink.train --help explains every key"
    )


def closest(tried: str, names: Sequence[str]) -> str:
    """The beginning of a hint: the name that is most like what was tried; empty where none is."""
    close = difflib.get_close_matches(tried, names, 1, 0.75)
    return f"did you mean {close[0]}? " if close else ""


def groups() -> list[Path]:
    """The folders of `conf/` from which the command line chooses files."""
    names = {spec.name for spec in dataclasses.fields(Config)} | {"experiment"}
    return sorted(path for path in conf_dir().iterdir() if path.is_dir() and path.name in names)
