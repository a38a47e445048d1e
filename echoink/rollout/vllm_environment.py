"""vLLM's environment: whether vLLM is installed, and which environment variables its process gets."""

import os
import subprocess
import sys

from echoink.common.errors import UserError

INSTALL = (
    "vLLM needs an environment of its own: python3.11 -m venv engine && engine/bin/pip install vllm==0.31.0, then "
    "generation.vllm.python=engine/bin/python"
)


_OF_THE_RUN = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")
"""Prefixes of the variables by which the processes of a run find each other."""


def alone() -> dict[str, str]:
    """Environment variables of a process that is not one of the run's."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_RUN)}


def check(python: str | None) -> str:
    """The version of vLLM that an interpreter has, without starting it.

    Raises:
        UserError: `python` is not an interpreter, or has no vLLM.
    """
    python = python or sys.executable
    asks = "from importlib.metadata import packages_distributions as d, version; print(version(d()['vllm'][0]))"
    try:
        done = subprocess.run([python, "-c", asks], capture_output=True, text=True, env=variables(python))
    except OSError as error:
        raise UserError(f"generation.vllm.python={python}: {error.strerror}", INSTALL) from error
    if done.returncode:
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), "it said nothing")
        raise UserError(f"{python} has no vLLM ({reason})", INSTALL)
    return done.stdout.strip()


def variables(python: str) -> dict[str, str]:
    """Environment variables of the engine's process: ours, without those by which the run's processes find each other.

    Another interpreter does not get `PYTHONPATH`; variables for vLLM and the hub are added. On a GPU vLLM would choose
    its second model runner. The first is the one that was tested; a variable of the user's decides otherwise.
    """
    kept = alone()
    if python != sys.executable:
        kept.pop("PYTHONPATH", None)
    kept = {"VLLM_USE_V2_MODEL_RUNNER": "0", "PYTHONSAFEPATH": "1"} | kept
    return kept | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
