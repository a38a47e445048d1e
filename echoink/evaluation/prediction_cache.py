"""Caches the base's answers for other runs of the same base: a sweep over rewards evaluates its base once.

The key is a digest of everything that an answer depends on: weights, device, samples with their media, prompt, draws,
sampling, seed, this package's code, the versions of torch and transformers, and so on. How an answer is judged is not
part of it: cached answers are judged again.
"""

import hashlib
from functools import cache as once
from importlib import metadata
from pathlib import Path
from typing import Any


def key(**depends_on: Any) -> str:
    """The name under which answers that depend on these values are cached; each `repr` must be complete."""
    versions = [metadata.version(library) for library in ("torch", "transformers")]
    parts = [code(), *versions, *(f"{k}={v!r}" for k, v in depends_on.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


@once
def code() -> str:
    """Digest of this package's sources."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
