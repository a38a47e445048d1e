"""From the command line to a validated `Config`, or one clear error, before anything heavy is imported or written."""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from echoink.common.errors import UserError
from echoink.common.keys import refuse_home
from echoink.config.effects import refuse_without_effect
from echoink.config.mistakes import explained
from echoink.config.origin import chosen_files, keys_of, line_of, refuse_surprises
from echoink.config.overrides import normalized, quoted
from echoink.config.paths import conf_dir
from echoink.config.schema import Config
from echoink.config.validate import refuse_secret, validate

VERSION_BASE = "1.3"

SWEPT = "ECHOINK_SWEPT"
"""Environment variable by which a sweep tells its jobs which keys differ between them."""

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
    direction: str | None = None
    """What a search looks for, `minimize` or `maximize`; None where its sweeper does not say."""


def compose(overrides: Sequence[str], multirun: bool = False, config_dir: str | None = None) -> list[Composed]:
    """Compose and validate what Hydra would run: one configuration, or one per job of a sweep.

    Args:
        overrides: Hydra's command-line overrides, `reward.lambda_fmt=0.5`.
        multirun: expand `a=1,2` into jobs.
        config_dir: the user's folder with more files for the groups, as with Hydra's --config-dir.

    Raises:
        UserError: naming the key and the closest valid one, the wrong type, or the value out of range.
    """
    overrides = [normalized(word) for word in overrides]
    for word in overrides:
        refuse_secret(word.partition("=")[0], word)
    own = Path(config_dir).resolve() if config_dir else None
    if own and not own.is_dir():
        raise UserError(
            f"--config-dir {config_dir}: no such folder", "it holds files for the groups, such as prompt/mine.yaml"
        )
    if own:
        _refuse_hidden(own)
    found = [f"hydra.searchpath=[{quoted(f'file://{own}')}]"] if own else []
    jobs = _expand(overrides, found, own) if multirun else [list(overrides)]
    jobs = [[*job, *found] for job in jobs]
    for path in chosen_files(dict.fromkeys(word for job in jobs for word in job), own):
        refuse_surprises(path)
    composed = [_compose_one(job, multirun, own) for job in jobs]
    # The one job of a search lacks the drawn values, and a job of a sweep does not know the others.
    if SWEPT not in os.environ and not (multirun and len(jobs) == 1):
        given = {override.partition("=")[0] for job in composed for override in job.overrides}
        refuse_without_effect(given, [job.config for job in composed])
        for path in chosen_files(dict.fromkeys(word for job in composed for word in job.overrides), own):
            if path.parent.name == "experiment":
                _warn_without_effect(path, given, [job.config for job in composed])
    return composed


def _refuse_hidden(own: Path) -> None:
    """Refuse a user's file that has the name of another, shipped file: Hydra would read that one."""
    for shipped in conf_dir().glob("*/**/*.yaml"):
        path = own / shipped.relative_to(conf_dir())
        if path.is_file() and shipped.read_bytes() != path.read_bytes():
            raise UserError(f"{path} would not be read: a shipped file has its name", "give it another name")


def _warn_without_effect(path: Path, given: set[str], configs: Sequence[Config]) -> None:
    """Warn of keys in a user's experiment that change nothing; the file may serve other tasks too."""
    for key in keys_of(path):
        try:
            refuse_without_effect({key} - given, configs)
        except UserError as error:
            warnings.warn(f"{path}: {error.problem} ({error.hint})", stacklevel=2)


def _expand(overrides: Sequence[str], searchpath: Sequence[str], own: Path | None = None) -> list[list[str]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    def parse(words: Sequence[str]) -> list:
        try:
            return OverridesParser.create().parse_overrides(list(words))
        except OverrideParseException as error:
            raise explained(error, words) from error

    parsed = parse(overrides)
    # An experiment may say what it sweeps over (hydra.sweeper.params); the command line overrides it.
    plain = [override.input_line for override in parsed if not override.is_sweep_override()]
    params = compose_raw([*plain, *searchpath], own).hydra.sweeper.get("params") or {}
    given = {override.key_or_group for override in parsed}
    parsed = [*parse([f"{key}={value}" for key, value in params.items() if key not in given]), *parsed]
    # An interval gives no list of jobs: a search draws from it. Only the fixed settings can be checked here.
    if any(override.is_sweep_override() and override.is_discrete_sweep() is False for override in parsed):
        return [[o.input_line for o in parsed if not o.is_sweep_override()]]
    # Hydra's own expansion, so that what is validated here is what will run.
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    globs = {place: one for place, one in enumerate(parsed) if isinstance(one.value(), Glob)}
    for place, one in globs.items():
        (parsed[place],) = parse([f"{one.get_key_element()}={','.join(_matching(one.value(), one.key_or_group, own))}"])
    try:
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise explained(error, overrides, own) from error
    return [list(job) for batch in batches for job in batch]


def _matching(glob: Glob, group: str, own: Path | None) -> list[str]:
    """The files of a group that a glob(…) of Hydra's matches."""
    places = [folder / group for folder in (conf_dir(), own) if folder]
    files = sorted({path.stem for place in places for path in place.glob("*.yaml")})
    if not (found := glob.filter(files)):
        raise UserError(f"{group}=glob({', '.join(glob.include)}) matches nothing", f"there are {', '.join(files)}")
    return found


def compose_raw(overrides: Sequence[str], own: Path | None = None) -> DictConfig:
    """What Hydra composes, including its own configuration; nothing is validated.

    Args:
        overrides: Hydra's command-line overrides.
        own: the user's folder with more files; it only serves errors, Hydra reads its search path.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE, job_name="train"):
        try:
            return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        except YAMLError as error:
            raise UserError(f"a configuration file cannot be read: {' '.join(str(error).split())}") from error
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: group=null
            raise explained(error, overrides, own) from error


def _compose_one(overrides: Sequence[str], multirun: bool, own: Path | None) -> Composed:
    raw = compose_raw(overrides, own)
    try:
        # Only the keys that name the folder are resolved: the rest of Hydra's configuration needs a running job.
        OmegaConf.set_struct(raw.hydra, False)
        raw.hydra.mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        OmegaConf.resolve(raw.hydra.sweep if multirun else raw.hydra.run)
        folder = Path(raw.hydra.sweep.dir if multirun else raw.hydra.run.dir)
        refuse_home(f"hydra.{'sweep' if multirun else 'run'}.dir", str(folder))
        config = validate(OmegaConf.masked_copy(raw, [key for key in raw if key != "hydra"]))
        given = {override.partition("=")[0] for override in overrides}
        grid = tuple(str(key) for key in raw.hydra.sweeper.get("params") or {} if key not in given)
        is_search = raw.hydra.runtime.choices["hydra/sweeper"] != "basic"
        direction = raw.hydra.sweeper.get("direction")
        said = None if direction is None else getattr(direction, "name", str(direction))
        return Composed(config, folder, tuple(overrides), grid=grid, is_search=is_search, direction=said)
    except UserError as error:
        raise _with_place(error, overrides, own) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explained(error, overrides, own) from error


def _with_place(error: UserError, overrides: Sequence[str], own: Path | None) -> UserError:
    """An error about a key, with the file and line in the user's folder that set it."""
    key = named.group(1) if (named := re.match(r"([\w.]+)=", error.problem)) else ""
    if key in {override.partition("=")[0] for override in overrides}:
        return error
    for path in chosen_files(overrides, own):
        if key in keys_of(path):
            return UserError(f"{path}, line {line_of(path, key)}: {error.problem}", error.hint)
    return error


def shipped_models() -> dict[str, DictConfig]:
    """What the files of `conf/model` say, by their names."""
    return {path.stem: OmegaConf.load(path) for path in sorted((conf_dir() / "model").glob("*.yaml"))}
