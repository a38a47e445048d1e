"""Where the shipped configuration and the embedded model are."""

from pathlib import Path

from echoink.common.errors import UserError


def conf_dir() -> Path:
    """The folder `conf/`: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(f"no conf/config.yaml in or beside {package}", "reinstall echoink")


NO_RUNS = {"unfinished", "mlartifacts"}
"""Folders with copies of runs' files: what a sweep has set aside, what MLflow keeps."""

ASSETS = Path(__file__).parent.parent / "assets"
"""What comes with the package."""
TINY = ASSETS / "tiny"
"""The embedded model: `model.path=tiny`."""


def resolve(path: str) -> str:
    """The folder or hub id to load: `tiny` is the embedded model."""
    return str(TINY) if path == "tiny" else path
