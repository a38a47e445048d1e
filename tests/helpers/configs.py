"""Configurations for tests: composed once for the same choices of files, since that takes a third of a second."""

import copy
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from echoink.config.compose import compose_raw
from echoink.config.overrides import normalized
from echoink.config.paths import conf_dir
from echoink.config.schema import Config
from echoink.config.validate import validate


@cache
def _validated(words: tuple[str, ...]) -> Config:
    given = [normalized(word) for word in words]
    files = tuple(word for word in given if (conf_dir() / word.partition("=")[0]).is_dir())
    raw = copy.deepcopy(_of_files(files))
    given = [word for word in given if word not in files and not word.startswith("hydra.")]
    values = OverridesParser.create().parse_overrides(given)
    ConfigLoaderImpl._apply_overrides_to_config(values, raw)
    return validate(raw)


@cache
def _of_files(words: tuple[str, ...]) -> DictConfig:
    raw = compose_raw(words)
    return OmegaConf.masked_copy(raw, [key for key in raw if key != "hydra"])


def config_of(*words: str) -> Config:
    """What those words on the command line compose, as a copy of one's own.

    Keys without effect are not refused, and Hydra's own keys are passed over.
    """
    return copy.deepcopy(_validated(words))
