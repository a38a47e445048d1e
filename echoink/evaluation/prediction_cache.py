"""The base's answers, kept for every run of the same base: a sweep over rewards evaluates its base once.

The key is a digest of all that an answer depends on: weights, samples with their media, prompt, draws, sampling, seed,
this package's code and the versions of torch and transformers. How an answer is judged is not part of it: answers that
are taken are judged again.
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
    """The name under which the answers of a model are kept.

    Args:
        weights: the digest of the model's.
        device: the kind of its device.
        depends_on: whatever else the answers depend on, with a `repr` that says all of it.
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
    """The answers that are kept in a file; none where there is no such file."""
    return [of_row(row) for row in read_rows(file)]


def keep(file: Path, predictions: Sequence[Prediction]) -> None:
    """Keep answers; several runs may keep the same at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, as_lines(map(asdict, predictions)))
