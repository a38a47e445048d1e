"""Samples as the model gets them: the rendered prompt, its tokens, and the media after every cap."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from echoink.common.console import quiet_libraries
from echoink.config.schema import Config, ModelConfig
from echoink.data import splits
from echoink.data.check import bad_row
from echoink.data.media_check import MediaInfo, check_media
from echoink.data.processor import chat_text
from echoink.data.prompts import build_messages
from echoink.data.samples import Dropped, Sample, load_sound
from echoink.data.token_counts import Tokens, prompt_tokens
from echoink.media import loaders
from echoink.media.previews import encoded
from echoink.models import media_tokens
from echoink.models.loading import load_processor

TYPES = {".png": "image/png", ".wav": "audio/wav"}


@dataclass(frozen=True)
class Given:
    """A medium as the model gets it."""

    kind: str
    """picture, video or sound."""
    change: str
    """What the caps and the processor made of it."""
    data: bytes
    suffix: str
    """.png (of a video the row of its frames) or .wav."""


@dataclass(frozen=True)
class Shown:
    """A sample, its prompt as text, its tokens and its media."""

    sample: Sample
    prompt: str
    tokens: Tokens
    media: list[Given]

    @property
    def title(self) -> str:
        """Its id, type and right answer."""
        sample = self.sample
        return f"{sample.id} · {sample.data_type.value} · {sample.problem_type.value} · gold {sample.solution}"

    @property
    def lengths(self) -> str:
        """Its tokens by modality."""
        named = {"text": self.tokens.text, "picture": self.tokens.image, "sound": self.tokens.audio}
        named["video"] = self.tokens.video
        return f"{self.tokens.total:,} tokens: " + " · ".join(f"{n:,} {name}" for name, n in named.items() if n)


def first_shown(config: Config, split: str, n: int) -> tuple[Iterator[Shown], list[str]]:
    """The first n samples of a split, and what is wrong with the bad rows among them.

    Raises:
        UserError: there is no such split.
    """
    samples, bad = splits.first_samples(config.dataset, split, n)
    infos = check_media(samples, config.model.max_audio_seconds, splits.video_caps(config.model))
    bad += [info for info in infos if isinstance(info, Dropped)]
    usable = [(s, info) for s, info in zip(samples, infos, strict=True) if not isinstance(info, Dropped)]
    with quiet_libraries():
        processor = load_processor(config.model.path, config.model.min_pixels, config.model.max_pixels)
    return (_shown(sample, info, config, processor) for sample, info in usable), [bad_row(each) for each in bad]


def _shown(sample: Sample, info: MediaInfo, config: Config, processor: Any) -> Shown:
    text, model = chat_text(processor, build_messages(sample, config.prompt)), config.model
    written = len(processor.tokenizer(text)["input_ids"])
    tokens = prompt_tokens(info, written, model)
    return Shown(sample, text, tokens, list(_given(sample, model)))


def _given(sample: Sample, model: ModelConfig) -> Iterator[Given]:
    if sample.image:
        image = loaders.load_image(sample.image)
        count = media_tokens.arithmetic_of(model.architecture.family)
        width, height = count.image_size(*image.size, model.min_pixels, model.max_pixels)
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        yield Given("picture", f"{image.width}x{image.height} → {width}x{height}", _png(scaled), ".png")
    if sample.video:
        video = loaders.load_video(sample.video, splits.video_caps(model))
        row = np.concatenate(list(video.frames), axis=2).transpose(1, 2, 0)
        kept = f"{len(video.frames)} frames of {video.frames.shape[3]}x{video.frames.shape[2]}"
        yield Given("video", f"{video.seconds:.1f} s → {kept}", _png(Image.fromarray(row)), ".png")
    if sound := load_sound(sample, model.max_audio_seconds):
        kept = len(sound.samples) / loaders.SAMPLING_RATE
        buffer = io.BytesIO()
        soundfile.write(buffer, sound.samples, loaders.SAMPLING_RATE, format="WAV")
        yield Given("sound", f"{sound.seconds:.2f} s → {kept:.2f} s", buffer.getvalue(), ".wav")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def page(shown: Sequence[Shown], bad: Sequence[str], title: str, file: Path) -> None:
    """Write all of it as one HTML file that needs nothing beside it."""
    templates = Environment(
        loader=PackageLoader("echoink.data", "templates"), autoescape=True, undefined=StrictUndefined
    )
    samples = [
        {
            "title": each.title,
            "notes": each.sample.notes,
            "prompt": each.prompt,
            "tokens": each.lengths,
            "media": [
                {**vars(one), "uri": f"data:{TYPES[one.suffix]};base64,{encoded(one.data)}"} for one in each.media
            ],
        }
        for each in shown
    ]
    text = templates.get_template("show.html.jinja").render(title=title, samples=samples, bad=bad)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
