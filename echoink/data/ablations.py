"""Makes the same question with a sense taken away: a model that fuses sound and sight needs both, a shortcut does not.

A variant is a `Sample` with the same id, question, options and answer, so that its draws and noise are those of the
full sample. Removal is out of distribution for a model that never saw such prompts; silence, a blank picture and swaps
are less so. See `Variant` for what the model gets.
"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import soundfile
from PIL import Image

from echoink.common.clusters import Clusters, names
from echoink.config.schema import Variant
from echoink.data.samples import DataType, Sample, load_sound
from echoink.media import loaders
from echoink.media.loaders import SAMPLING_RATE, Embedded, Medium
from echoink.rewards.accuracy import canonical
from echoink.rewards.parsing import option_letter, option_text
from echoink.rewards.text import comparable
from echoink.rewards.types import ProblemType

MAX_SECONDS = 300.0
"""Of a soundtrack or a silence that is written as a file; the caps of the model apply afterwards."""

SWAPS = (Variant.swapped_audio, Variant.swapped_image)
"""The variants that need another sample."""

SENSES = (Variant.no_audio, Variant.no_image)
"""The variants that remove one sense."""

_WITHOUT_SOUND = {
    DataType.audio: DataType.text,
    DataType.image_audio: DataType.image,
    DataType.video_audio: DataType.video,
}
_WITHOUT_SIGHT = {
    DataType.image: DataType.text,
    DataType.video: DataType.text,
    DataType.image_audio: DataType.audio,
    DataType.video_audio: DataType.audio,
}


def senses(kind: DataType) -> list[str]:
    """Which of `audio` and `image` a data type has; a video counts as `image`."""
    return [name for name, table in (("audio", _WITHOUT_SOUND), ("image", _WITHOUT_SIGHT)) if kind in table]


def applies(variant: Variant, sample: Sample) -> bool:
    """Whether a sample has what the variant takes away; only pictures can be blank, not videos."""
    heard, seen = (name in senses(sample.data_type) for name in ("audio", "image"))
    return {
        Variant.full: True,
        Variant.text_only: heard or seen,
        Variant.no_audio: heard,
        Variant.silent_audio: heard,
        Variant.swapped_audio: heard,
        Variant.no_image: seen,
        Variant.blank_image: sample.image is not None,
        Variant.swapped_image: seen,
    }[variant]


def has_both(sample: Sample) -> bool:
    """Whether a sample has both senses to take away."""
    return len(senses(sample.data_type)) == 2


def make(
    samples: Sequence[Sample], variant: Variant, seed: int, clusters: Mapping[str, Clusters] | None = None
) -> list[Sample]:
    """A variant of each sample that it applies to; a swap leaves out those without a donor.

    Args:
        samples: the full samples.
        variant: what is taken away.
        seed: of the choice of donors.
        clusters: by id; samples that share media share a name and are no donors for each other.
    """
    chosen = [sample for sample in samples if applies(variant, sample)]
    if variant not in SWAPS:
        return [without(sample, variant) for sample in chosen]
    donors = _donors(chosen, seed, clusters or {})
    return [_swapped(sample, donors[sample.id], variant) for sample in chosen if sample.id in donors]


def without(sample: Sample, variant: Variant) -> Sample:
    """A variant of one sample that needs no donor: any but the swaps."""
    match variant:
        case Variant.full:
            return sample
        case Variant.text_only:
            return replace(sample, data_type=DataType.text, image=None, audio=None, video=None)
        case Variant.no_audio:
            return replace(sample, data_type=_WITHOUT_SOUND[sample.data_type], audio=None)
        case Variant.no_image:
            kind = _WITHOUT_SIGHT[sample.data_type]
            sound = _sound(sample) if kind is DataType.audio else None
            return replace(sample, data_type=kind, image=None, video=None, audio=sound)
        case Variant.silent_audio:
            silence = partial(_wave, sample, silent=True)
            return replace(sample, audio=Embedded(f"silence for {_sound(sample)}", silence))
        case Variant.blank_image:
            return replace(sample, image=Embedded(f"blank for {sample.image}", partial(_blank, sample.image)))
    raise AssertionError(variant)


def _sound(sample: Sample) -> Medium:
    """A sample's sound: its file, or its video's soundtrack as a file."""
    return sample.audio or Embedded(f"soundtrack of {sample.video}", partial(_wave, sample))


def _wave(sample: Sample, silent: bool = False) -> bytes:
    file, samples = io.BytesIO(), load_sound(sample, MAX_SECONDS).samples
    samples = np.zeros_like(samples) if silent else samples
    soundfile.write(file, samples, SAMPLING_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _blank(picture: Medium) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", loaders.load_image(picture).size, (128, 128, 128)).save(file, format="PNG")
    return file.getvalue()


def _swapped(sample: Sample, donor: Sample, variant: Variant) -> Sample:
    if variant is Variant.swapped_audio:
        return replace(sample, audio=_sound(donor))
    keeps_sound = sample.data_type is DataType.video_audio  # the soundtrack stays when the video is replaced
    return replace(sample, image=donor.image, video=donor.video, audio=_sound(sample) if keeps_sound else sample.audio)


def _donors(samples: Sequence[Sample], seed: int, clusters: Mapping[str, Clusters]) -> dict[str, Sample]:
    """For each sample a donor of media: one with another answer, to the same question if there is one, and always of
    the same data type, problem type and `kind` (if the data have such a field).
    """
    found: dict[str, Sample] = {}
    for kind in (lambda s: (s.problem, *_type(s)), _type):
        groups: dict[tuple, list[Sample]] = defaultdict(list)
        for sample in samples:
            groups[kind(sample)].append(sample)
        for group in groups.values():
            group.sort(key=lambda s: hashlib.sha256(f"{seed} {s.id}".encode()).digest())
            for place, sample in enumerate(group):
                if sample.id not in found and (donor := _next(group, place, clusters)):
                    found[sample.id] = donor
    return found


def _type(sample: Sample) -> tuple:
    return sample.data_type, sample.problem_type, sample.fields.get("kind")


def _next(group: Sequence[Sample], place: int, clusters: Mapping[str, Clusters]) -> Sample | None:
    sample = group[place]
    for donor in (*group[place + 1 :], *group[:place]):
        theirs, own = (names(clusters.get(each.id, each.id)) for each in (donor, sample))
        apart = not {*theirs} & {*own}
        if apart and _answer(donor) != _answer(sample):
            return donor
    return None


def _answer(sample: Sample) -> frozenset[str]:
    """The right answer in words: its letter may differ from question to question. The letter, if it has no words."""
    if sample.problem_type is not ProblemType.multiple_choice:
        return frozenset([str(canonical(sample.solution, sample.problem_type, ()))])
    right = (option for option in sample.options if option_letter(option) in sample.gold)
    return frozenset(comparable(option_text(option) or option) for option in right)
