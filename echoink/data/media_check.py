"""Opens every picture, sound and video once before a run, in processes that a broken file may crash."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from echoink.common import processors
from echoink.common.errors import UserError
from echoink.data import fingerprints
from echoink.data.samples import Dropped, Sample, load_sound, with_soundtrack
from echoink.media import loaders
from echoink.media.worker_pool import Died, isolated

_WORTH_A_PROCESS = 50
"""Samples for each further process; fewer are checked before it has started."""


@dataclass(frozen=True)
class MediaInfo:
    """What a sample's files hold."""

    digests: tuple[str, ...]
    """Of the files' bytes; they identify the same picture or sound."""
    image: tuple[int, int] | None = None
    """Width and height in pixels, upright."""
    seconds: float | None = None
    """Of the whole sound."""
    kept: float | None = None
    """Seconds of the sound that the model gets."""
    frames: int = 0
    """Number of the video's frames that the model gets."""
    frame: tuple[int, int] | None = None
    """Width and height of such a frame."""
    thinned: bool = False
    """Whether these are fewer frames a second than `model.video_fps`, for the sake of `model.max_video_frames`."""
    warnings: tuple[str, ...] = ()
    """What is odd about the sound, with the file's name."""
    soundtrack: bool = False
    """Whether its video has a sound track, used or not."""
    fingerprints: dict[str, bytes] = field(default_factory=dict)
    """If asked for: of its files `image` and `audio`, if they have one, see `fingerprints`."""

    def origins(self, sample: Sample) -> dict[str, tuple[str, ...]]:
        """What identifies each medium of the sample: its digest, and the source that its row names for it.

        A source of a kind that the sample lacks, such as the video that a picture and a sound were cut from, counts for
        each medium. A question without media is identified by its own text, as `text`. Two media count as the same if
        they have one of these in common.
        """
        of_all = [f"source {source}" for kind, source in sample.sources.items() if kind not in sample.media]
        if not sample.media:
            asked = hashlib.sha256(f"{sample.problem}\t{sample.options}".encode()).hexdigest()[:16]
            return {"text": (f"question {asked}", *of_all)}
        own = {kind: (f"source {source}",) for kind, source in sample.sources.items()}
        return {
            name: (digest, *own.get(name, ()), *of_all) for name, digest in zip(sample.media, self.digests, strict=True)
        }


def inspect(
    sample: Sample, max_seconds: float, caps: loaders.VideoCaps, soundtrack: bool = True, prints: bool = False
) -> MediaInfo | Dropped:
    """Decode a sample's media once, or say why that fails; `prints` also takes fingerprints of picture and sound."""
    try:
        digests = tuple(loaders.digest(medium) for medium in sample.media.values())
        image = loaders.load_image(sample.image) if sample.image else None
        video = loaders.load_video(sample.video, caps) if sample.video else None
        has_sound = sample.video is not None and loaders.has_soundtrack(sample.video)
        sample = with_soundtrack(sample, has_sound, soundtrack)
        sound = load_sound(sample, max_seconds)
    except UserError as error:
        return Dropped(f"sample {sample.id}: {error.problem}", error.hint)
    taken: dict[str, bytes | None] = {}
    if prints:
        taken["image"] = fingerprints.of_picture(image) if image else None
        taken["audio"] = fingerprints.of_sound(sound.samples) if sample.audio else None
    return MediaInfo(
        digests=digests,
        image=image.size if image else None,
        seconds=sound.seconds if sound else None,
        kept=len(sound.samples) / loaders.SAMPLING_RATE if sound else None,
        frames=len(video.frames) if video else 0,
        frame=(video.frames.shape[3], video.frames.shape[2]) if video else None,
        thinned=_is_thinned(video, caps) if video else False,
        warnings=sound.warnings if sound else (),
        soundtrack=has_sound,
        fingerprints={name: print_ for name, print_ in taken.items() if print_},
    )


def _is_thinned(video: loaders.Video, caps: loaders.VideoCaps) -> bool:
    return int(video.seconds * caps.fps) > caps.max_frames and len(video.frames) >= caps.max_frames // 2 * 2


def check_media(
    samples: Sequence[Sample],
    max_seconds: float,
    caps: loaders.VideoCaps,
    progress: Callable[[Iterable], Iterable] = iter,
    soundtrack: bool = True,
    prints: bool = False,
) -> list[MediaInfo | Dropped]:
    """Decode every file once, in other processes, so that even a file that crashes its decoder is named early.

    Args:
        samples: their files are decoded.
        max_seconds: the cap on a sound.
        caps: the caps on a video.
        progress: wraps the iteration.
        soundtrack: `dataset.soundtrack`.
        prints: also take fingerprints.

    Returns:
        For each sample what its files hold, or why they cannot be used.
    """
    check = partial(inspect, max_seconds=max_seconds, caps=caps, soundtrack=soundtrack, prints=prints)
    first: dict[tuple, Sample] = {}  # of the questions about the same files; these are decoded once
    for sample in samples:
        first.setdefault(_asked(sample), sample)
    several = min(processors.available(), 1 + len(first) // _WORTH_A_PROCESS)
    found = isolated(check, list(first.values()), processes=several)
    known: dict[tuple, MediaInfo | Died | Dropped] = {}
    results = []
    for sample in progress(samples):
        if (key := _asked(sample)) not in known:
            known[key] = next(found)
        results.append(_of(sample, first[key], known[key]))
    return results


def _asked(sample: Sample) -> tuple:
    """What `inspect` depends on."""
    return (*sample.media.items(), sample.data_type, sample.asks_for_soundtrack)


def _of(sample: Sample, first: Sample, found: MediaInfo | Died | Dropped) -> MediaInfo | Dropped:
    """A sample's result, from that of the first sample with its files."""
    if isinstance(found, Died):
        what = f"sample {sample.id}: reading {' or '.join(sample.places.values())} crashes ({found.signal})"
        return Dropped(what, "replace the file or drop the sample")
    if isinstance(found, Dropped):
        return replace(found, reason=found.reason.replace(f"sample {first.id}:", f"sample {sample.id}:", 1))
    return found
