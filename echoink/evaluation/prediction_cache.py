"""Caches the base's answers for other runs of the same base: a sweep over rewards evaluates its base once.

The key is a digest of everything that an answer depends on: weights, device, samples with their media, prompt, draws,
sampling, seed, this package's code, the versions of torch and transformers, and so on. How an answer is judged is not
part of it: cached answers are judged again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache as once
from importlib import metadata
from pathlib import Path
from typing import Any

from echoink.common.files import as_lines, read_rows, write_atomic
from echoink.evaluation.prediction import Prediction, of_row


def key(weights: str, device: str, **depends_on: Any) -> str:
    """The name under which the answers of a model are cached.

    Args:
        weights: digest of the model's weights.
        device: the type of its device.
        depends_on: whatever else the answers depend on; each `repr` must be complete.
    """
    versions = [metadata.version(library) for library in ("torch", "transformers")]
    parts = [
        weights,
        device,
        code(),
        *versions,
        *(f"{k}={v!r}" for k, v in depends_on.items()),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


@once
def code() -> str:
    """Digest of this package's sources."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()


def take(file: Path) -> list[Prediction]:
    """The answers in a cache file; none if there is no such file."""
    return [of_row(row) for row in read_rows(file)]


def keep(file: Path, predictions: Sequence[Prediction]) -> None:
    """Write answers to a cache file; several runs may write the same file at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, as_lines(map(asdict, predictions)))
