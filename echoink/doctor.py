"""Finds what is wrong here, and shows what a bug report needs: `python -m echoink.doctor [key=value …]`.

Checks the installed versions against the tested ones, GPUs and attention kernels, the decoders of pictures, sounds and
videos, the disk, the tracking store, the hub, and the model and data that the configuration names. The exit status is 1
if something is wrong.

    engine=true   compare vLLM's log-probabilities with the model's for each kind of medium; name where they diverge
    canary=true   check that updates reach vLLM: short runs that reward only length must write longer

Both need vLLM, here or in generation.vllm.python=<its interpreter>; other keys, such as model=, are the run's.
"""

import gc
import io
import itertools
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from importlib import metadata
from pathlib import Path

from echoink.common import cli
from echoink.common.console import console, quiet_libraries
from echoink.common.errors import UserError, first_line
from echoink.config.compose import compose
from echoink.config.overrides import quoted
from echoink.config.paths import conf_dir, resolve
from echoink.config.schema import Config, Dtype, Source, Task, flatten
from echoink.run_folder import checkpoint
from echoink.run_folder.environment import version

PATHS = ("model.path", "checkpoint", "dataset.path", "generation.vllm.python")
"""Keys whose values may be paths."""


class Verdict(Enum):
    """The verdict of one finding."""

    good = "ok"
    note = "–"
    bad = "!!"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    verdict: Verdict
    text: str


def examine(config: Config) -> Iterator[Finding]:
    """Yield every finding; a check that fails does not stop the others."""
    yield Finding("system", Verdict.note, f"Python {platform.python_version()} on {platform.platform()}")
    yield from versions()
    for what, check in (
        ("gpu", lambda: gpu(config)),
        ("picture", _picture),
        ("sound", _sound),
        ("video", _video),
        ("disk", _disk),
        ("tracking", lambda: _tracking(config)),
        ("hub", _hub),
        *((("engine", lambda: _engine(config)),) if config.uses_vllm else ()),
        ("model", lambda: _model(config)),
        ("data", lambda: _data(config)),
    ):
        try:
            finding = Finding(what, *check())
        except Exception as error:  # a check that fails is a finding
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            finding = Finding(what, Verdict.bad, text)
        yield finding


def versions() -> Iterator[Finding]:
    """Compare installed packages with this package's bounds and, in a checkout, with constraints.txt."""
    from packaging.requirements import Requirement

    pins = {}
    constraints = conf_dir().parent / "constraints.txt"
    if constraints.is_file():
        lines = (line.partition("==") for line in constraints.read_text("utf-8").splitlines())
        pins = {name.strip().lower(): pin.strip() for name, _, pin in lines if pin}
    for line in metadata.requires("echoink") or []:
        requirement = Requirement(line)
        optional = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        if (found := version(requirement.name)) is None:
            if not optional:
                yield Finding(requirement.name, Verdict.bad, f"not installed, {requirement.specifier} is needed")
            continue
        pinned = pins.get(requirement.name.lower())
        if not requirement.specifier.contains(found, prereleases=True):
            yield Finding(requirement.name, Verdict.bad, f"{found}, but {requirement.specifier} is needed")
        elif pinned and found.partition("+")[0] != pinned:
            yield Finding(requirement.name, Verdict.note, f"{found}; {pinned} was tested")
        elif not optional:
            yield Finding(requirement.name, Verdict.good, found)


def gpu(config: Config) -> tuple[Verdict, str]:
    """List GPUs with their memory, and check that the configured attention kernel is installed."""
    import torch

    from echoink.planning import preflight

    preflight.check_attention(config.model.attention)
    flash = version("flash-attn")
    kernels = "attention: sdpa" + (f", flash-attn {flash}" if flash else "")
    if unused := preflight.check_gpus(config.trainer.bf16):
        return Verdict.bad, unused
    if not torch.cuda.is_available():
        return Verdict.note, f"none, everything runs on the CPU · {kernels}"
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found.append(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)")
    return Verdict.good, f"{', '.join(found)} · CUDA {torch.version.cuda} · {kernels}, flex_attention"


def _picture() -> tuple[Verdict, str]:
    from PIL import Image

    from echoink.media import loaders

    for kind in ("JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(file, kind)
        loaders.load_image(loaders.Embedded(kind, file.getvalue))
    return Verdict.good, f"Pillow {version('pillow')} decodes JPEG, PNG, WEBP"


def _sound() -> tuple[Verdict, str]:
    import numpy as np
    import soundfile

    from echoink.media import loaders

    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        file = io.BytesIO()
        soundfile.write(file, np.zeros(44_100), 44_100, format=kind)
        loaders.load_sound(loaders.Embedded(kind, file.getvalue), 1)
    return Verdict.good, f"soundfile {soundfile.__version__} decodes WAV, FLAC, OGG, MP3"


def _video() -> tuple[Verdict, str]:
    import av

    needed = ("h264", "hevc", "vp9", "av1", "aac", "mp3", "opus")
    missing = [name for name in needed if name not in av.codecs_available]
    if missing:
        return Verdict.note, f"PyAV {av.__version__} cannot decode {', '.join(missing)}"
    return Verdict.good, f"PyAV {av.__version__} decodes {', '.join(needed)}"


def _disk() -> tuple[Verdict, str]:
    usage = shutil.disk_usage(Path.cwd())
    free = usage.free / 2**30
    return (Verdict.good if free > 5 else Verdict.bad), f"{free:.0f} GiB free in {Path.cwd()}"


def _tracking(config: Config) -> tuple[Verdict, str]:
    from echoink.planning import preflight
    from echoink.tracking import client

    if not config.tracking.enabled:
        return Verdict.note, "off"
    uri = client.absolute_uri(config.tracking.uri, Path.cwd())
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return _to_be_made(Path(uri.removeprefix("sqlite:///")), uri)
    preflight.check_store(uri, config.tracking.experiment)
    return Verdict.good, uri


def _to_be_made(path: Path, name: str) -> tuple[Verdict, str]:
    """Whether a path that does not exist can be written: the nearest folder above it decides."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return Verdict.bad, f"{name} cannot be made: {above} cannot be written to"
    return Verdict.good, f"{name} will be made"


def _hub() -> tuple[Verdict, str]:
    from huggingface_hub import HfApi, constants, get_token

    who = "a token is there" if get_token() else "no token"
    if constants.HF_HUB_OFFLINE:
        return Verdict.note, f"off (HF_HUB_OFFLINE) · {who} · cache {constants.HF_HUB_CACHE}"
    try:
        HfApi().dataset_info("harryhsing/AVQA-R1-6K", timeout=10)
    except Exception as error:  # the hub's client raises many types
        reason = first_line(error)
        return Verdict.note, f"cannot be reached ({reason}) · {who} · files must be here before a run"
    return Verdict.good, f"can be reached · {who}"


def _model(config: Config) -> tuple[Verdict, str]:
    paths = [config.checkpoint or config.model.path]
    paths += [config.model.path] if config.task is Task.compare else []
    found = [_is_there(path) for path in paths]
    worst = max((verdict for verdict, _ in found), key=[Verdict.good, Verdict.note, Verdict.bad].index)
    return worst, " · ".join(text for verdict, text in found if verdict is worst)


def _is_there(path: str) -> tuple[Verdict, str]:
    """Whether a run can load a model: a folder, the name of the embedded one, or a hub id."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from echoink.models.loading import check_is_there

    path = resolve(path)
    if Path(path).is_dir():
        return _whole(Path(path), path)
    try:
        check_is_there(path)
    except UserError as error:
        return Verdict.bad, f"{error.problem} → {error.hint}"
    try:
        folder = snapshot_download(path, local_files_only=True)
        return _whole(Path(folder), f"{path} is in the cache: {folder}")
    except LocalEntryNotFoundError:
        pass
    try:
        HfApi().model_info(path, timeout=10)
    except Exception as error:  # the hub's client raises many types
        reason = first_line(error)
        what = "does not give it" if isinstance(error, HfHubHTTPError) else "cannot be reached"
        return Verdict.bad, f"{path} is not in the cache, the hub {what} ({reason}); give model.path=<folder>"
    return Verdict.note, f"{path} is not in the cache and will be downloaded"


def _whole(folder: Path, said: str) -> tuple[Verdict, str]:
    """Check that a model's folder has every file that a run opens, while the network can still be used."""
    if (folder / "summary.json").is_file() or (folder / "checkpoints").is_dir():
        try:
            return _whole(Path(checkpoint.resolve(str(folder))), f"{said} (a run)")
        except UserError as error:
            return Verdict.bad, error.problem
    index = folder / "model.safetensors.index.json"
    adapter = (folder / "adapter_config.json").is_file()
    weights = {"adapter_model.safetensors" if adapter else "model.safetensors"}
    if index.is_file():
        weights = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    sharded = any(folder.glob("shard-*.safetensors"))
    needed = [
        ("adapter_config.json" if adapter else "config.json",),
        *((name,) for name in (() if sharded else sorted(weights))),
        ("tokenizer.json", "vocab.json"),
        ("processor_config.json", "preprocessor_config.json"),
    ]
    if not _has_chat_template(folder):
        needed.append(("chat_template.jinja", "chat_template.json"))
    lacking = [" or ".join(names) for names in needed if not any((folder / name).is_file() for name in names)]
    if not lacking and adapter:
        base = json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
        verdict, text = _is_there(base)
        return verdict, f"{said} · its base: {text}"
    if not lacking:
        return Verdict.good, said
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return Verdict.bad, f"{folder} lacks {', '.join(lacking[:3])}{more}"


def _has_chat_template(folder: Path) -> bool:
    """Whether a file of the processor or of the tokenizer holds one."""
    files = (folder / name for name in ("processor_config.json", "tokenizer_config.json"))
    return any("chat_template" in json.loads(file.read_text("utf-8")) for file in files if file.is_file())


def _engine(config: Config) -> tuple[Verdict, str]:
    from echoink.rollout import vllm_environment

    python = config.generation.vllm.python
    return Verdict.good, f"vLLM {vllm_environment.check(python)} in {python or 'this environment'}"


def _data(config: Config) -> tuple[Verdict, str]:
    from echoink.data.splits import first_samples

    dataset = config.dataset
    if dataset.source is Source.synthetic and not Path(dataset.path).exists():
        return _to_be_made(Path(dataset.path), dataset.path)
    trains = config.trains and dataset.source in (Source.synthetic, Source.rows)
    counts, worst = [], 0.0
    for split, limit in ((("train", dataset.train),) if trains else ()) + (("valid", dataset.valid),):
        samples, dropped = first_samples(dataset, split, limit)
        if not samples and not dropped:
            return Verdict.bad, f"{dataset.path}: {split} has no rows"
        wrong = [row.reason for row in dropped]
        for sample in samples:
            gone = [medium for medium in sample.media.values() if isinstance(medium, Path) and not medium.is_file()]
            wrong += [f"{gone[0]} is not there"] if gone else []
        worst = max(worst, len(wrong) / (len(samples) + len(dropped)))
        counts.append(f"{len(samples):,} {split}" + (f", {len(wrong)} cannot be used ({wrong[0]})" if wrong else ""))
    return (Verdict.bad if worst > dataset.max_skipped else Verdict.good), f"{dataset.path}: {' · '.join(counts)}"


def parity(config: Config) -> Iterator[Finding]:
    """Compare vLLM's log-probabilities with the model's, one line for each kind of prompt."""
    import torch

    from echoink.distributed.process_group import processes
    from echoink.rollout.parity import measure
    from echoink.rollout.vllm_engine import EngineSetup, adapter_rank
    from echoink.training.setup import load_for_inference

    with quiet_libraries(), tempfile.TemporaryDirectory() as folder:
        loaded = load_for_inference(config, checkpoint.resolve(config.checkpoint or config.model.path))
        setup = EngineSetup(
            python=config.generation.vllm.python,
            sampling=replace(loaded.sampling, max_new_tokens=min(24, loaded.sampling.max_new_tokens)),
            rows=1,
            longest=1,
            bf16=config.trainer.bf16 or config.model.dtype is Dtype.bfloat16,
            device=processes().device,
            sleeps=False,
            adapter_rank=adapter_rank(loaded.model),
        )
        yield Finding("", Verdict.note, f"{'':<18} {'prefix cache':<13} {'largest':>9} {'mean':>9}  nats, diverges at")
        for row in measure(loaded.model, loaded.processor, setup, Path(folder)):
            cached = "on" if row.prefix_cache else "off"
            text = f"{row.kind:<18} {cached:<13} {row.largest:9.1e} {row.mean:9.1e}  {row.layer or 'no layer'}"
            yield Finding("parity", Verdict.good if row.good else Verdict.bad, text)
        del loaded
    gc.collect()  # a model has reference cycles; the canary's runs need its memory
    torch.cuda.empty_cache()


def canary(config: Config, overrides: Sequence[str], config_dir: str | None = None) -> Iterator[Finding]:
    """Check that updates reach vLLM, one line for each way of passing weights."""
    import torch

    from echoink.pipeline.canary import run_all

    # The runs start in another folder: relative paths of the command line or of conf are made absolute.
    values = flatten(config)
    places = {key: Path(values[key]) for key in PATHS if isinstance(values.get(key), str)}
    if config.checkpoint:
        places.pop("model.path")  # the checkpoint gives the weights
    flags = ["--config-dir", str(Path(config_dir).absolute())] if config_dir else []
    words = [*flags, *overrides, *(f"{key}={quoted(path.absolute())}" for key, path in places.items() if path.exists())]
    with tempfile.TemporaryDirectory() as folder:
        tiny, halves = config.model.path == "tiny", config.model.dtype is Dtype.bfloat16
        for row in run_all(words, tiny, torch.cuda.is_available(), Path(folder), halves=halves):
            grew = f"{row.first:.0f} → {row.last:.0f} tokens"
            text = f"{row.mode}: {row.failed or grew}" + ("" if row.good or row.failed else ": updates do not arrive")
            yield Finding("canary", Verdict.good if row.good else Verdict.bad, text)


def main(words: Sequence[str]) -> int:
    """Print the findings; 1 where one is bad."""
    overrides, config_dir = cli.without_config_dir(words)
    overrides = [word for word in overrides if word not in ("engine=true", "canary=true")]
    if wrong := [word for word in overrides if word.partition("=")[0] in ("engine", "canary")]:
        raise UserError(f"cannot read {wrong[0]}", "engine=true, canary=true, or leave it out")
    starts = bool({"engine=true", "canary=true"} & {*words})
    chosen = any(word.startswith(("generation=", "eval.engine=")) for word in overrides)
    asked = [*overrides, *(["eval.engine=vllm"] if starts and not chosen else [])]
    config = compose(asked, config_dir=config_dir)[0].config
    found = itertools.chain(
        examine(config),
        parity(config) if "engine=true" in words else (),
        canary(config, overrides, config_dir) if "canary=true" in words else (),
    )
    colours = {Verdict.good: "green", Verdict.note: "dim", Verdict.bad: "bold red"}
    bad = 0
    for finding in found:
        console.print(f"[{colours[finding.verdict]}]{finding.verdict.value:<2}[/] {finding.what:<14}", end=" ")
        console.print(finding.text, markup=False)
        bad += finding.verdict is Verdict.bad
    console.print(f"\n{bad} wrong" if bad else "\nnothing wrong")
    return int(bad > 0)


if __name__ == "__main__":
    cli.run(main, __doc__, needs_words=False)
