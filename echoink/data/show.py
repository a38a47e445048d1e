"""Samples as the model gets them: the rendered prompt, its tokens, and the media after every cap."""

import io
from collections.abc import Iterator, Sequence
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
from echoink.data.processor import chat_text, text_tokens
from echoink.data.prompts import build_messages
from echoink.data.samples import Sample, load_sound
from echoink.data.token_counts import prompt_tokens
from echoink.media import loaders
from echoink.media.previews import encoded
from echoink.models import media_tokens
from echoink.models.loading import load_processor

TYPES = {".png": "image/png", ".wav": "audio/wav"}


def first_shown(config: Config, split: str, n: int) -> tuple[Iterator[dict[str, Any]], list[str]]:
    """The first n samples of a split, and what is wrong with the bad rows among them.

    A sample has `id`, `title`, `notes`, `prompt` as text, `tokens` by modality, and `media`: each with `kind`, `change`
    (its size or length, before and after the caps), `data` and `suffix`: .png (a video's frames in a row) or .wav.

    Raises:
        UserError: there is no such split.
    """
    samples, bad = splits.first_samples(config.dataset, split, n)
    caps, soundtrack = splits.video_caps(config.model), config.dataset.soundtrack
    infos = check_media(samples, config.model.max_audio_seconds, caps, soundtrack=soundtrack)
    usable, broken, by_id = splits.sorted_out(list(zip(samples, infos, strict=True)), split, soundtrack)
    bad += broken
    with quiet_libraries():
        processor = load_processor(config.model.path, config.model.min_pixels, config.model.max_pixels)
    shown = (_shown(sample, by_id[f"{split} {sample.id}"], config, processor) for sample in usable)
    return shown, [bad_row(each) for each in bad]


def _shown(sample: Sample, info: MediaInfo, config: Config, processor: Any) -> dict[str, Any]:
    text, model = chat_text(processor, build_messages(sample, config.prompt)), config.model
    tokens = prompt_tokens(info, text_tokens(processor, sample, config.prompt), model)
    named = {"text": tokens.text, "picture": tokens.image, "sound": tokens.audio, "video": tokens.video}
    return {
        "id": sample.id,
        "title": f"{sample.id} · {sample.data_type.value} · {sample.problem_type.value} · gold {sample.solution}",
        "notes": sample.notes,
        "prompt": text,
        "tokens": f"{tokens.total:,} tokens: " + " · ".join(f"{n:,} {name}" for name, n in named.items() if n),
        "media": [dict(zip(("kind", "change", "data", "suffix"), one, strict=True)) for one in _given(sample, model)],
    }


def _given(sample: Sample, model: ModelConfig) -> Iterator[tuple[str, str, bytes, str]]:
    if sample.image:
        image = loaders.load_image(sample.image)
        count = media_tokens.arithmetic_of(model.architecture.family)
        width, height = count.image_size(*image.size, model.min_pixels, model.max_pixels)
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        yield "picture", f"{image.width}x{image.height} → {width}x{height}", _png(scaled), ".png"
    if sample.video:
        video = loaders.load_video(sample.video, splits.video_caps(model))
        row = np.concatenate(list(video.frames), axis=2).transpose(1, 2, 0)
        kept = f"{len(video.frames)} frames of {video.frames.shape[3]}x{video.frames.shape[2]}"
        yield "video", f"{video.seconds:.1f} s → {kept}", _png(Image.fromarray(row)), ".png"
    if sound := load_sound(sample, model.max_audio_seconds):
        kept = len(sound.samples) / loaders.SAMPLING_RATE
        buffer = io.BytesIO()
        soundfile.write(buffer, sound.samples, loaders.SAMPLING_RATE, format="WAV")
        yield "sound", f"{sound.seconds:.2f} s → {kept:.2f} s", buffer.getvalue(), ".wav"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def page(shown: Sequence[dict[str, Any]], bad: Sequence[str], title: str, file: Path) -> None:
    """Write the samples and the bad rows as one self-contained HTML file."""
    templates = Environment(
        loader=PackageLoader("echoink.data", "templates"), autoescape=True, undefined=StrictUndefined
    )
    templates.filters["uri"] = lambda medium: f"data:{TYPES[medium['suffix']]};base64,{encoded(medium['data'])}"
    text = templates.get_template("show.html.jinja").render(title=title, samples=shown, bad=bad)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
