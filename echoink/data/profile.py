"""What a split holds: kinds, letters and lengths, for `dataset.json` and the first screen."""

import statistics
from collections import Counter
from collections.abc import Sequence

from echoink.common.console import counted
from echoink.data.media_check import MediaInfo
from echoink.data.samples import DataType, Dropped, Sample, answer_positions

_MEDIA = {
    DataType.text: "text alone",
    DataType.image: "a picture",
    DataType.audio: "a sound",
    DataType.image_audio: "a picture and a sound",
    DataType.video: "a video",
    DataType.video_audio: "a video and its sound",
}


MOST_OF_A_SOURCE = 20
"""More files of one source, and a third of the split, cause a warning."""


def profile(
    splits: dict[str, list[Sample]], dropped: dict[str, list[Dropped]], media_info: dict[str, MediaInfo]
) -> dict[str, dict]:
    """For each split: counts, what was dropped and why, duplicates, answer positions, sizes, media that other splits
    share, and kinds of question that only other splits have.
    """
    media = {
        split: {origins for s in samples for origins in media_info[f"{split} {s.id}"].origins(s).values()}
        for split, samples in splits.items()
    }
    seen = {split: {origin for origins in of for origin in origins} for split, of in media.items()}
    kinds = {split: {s.fields["kind"] for s in samples if "kind" in s.fields} for split, samples in splits.items()}
    everywhere = set().union(*kinds.values())
    report = {}
    for split, samples in splits.items():
        own = [media_info[f"{split} {sample.id}"] for sample in samples]
        pairs = zip(samples, own, strict=True)
        asked = Counter((s.problem, s.options, s.solution, s.data_type, f.digests) for s, f in pairs)
        heard = [(f.seconds, f.kept) for f in own if f.seconds is not None]
        pictures = [f.image for f in own if f.image]
        report[split] = {
            "samples": len(samples),
            "dropped": [each.reason for each in dropped.get(split, [])],
            "duplicates": sum(count - 1 for count in asked.values()),
            "media": dict(Counter(_MEDIA[s.data_type] for s in samples)),
            "notes": dict(Counter(note for s in samples for note in s.notes)),
            "warnings": [*dict.fromkeys(text for f in own for text in f.warnings), *_collections(samples, own)],
            "data_types": dict(Counter(s.data_type.value for s in samples)),
            "problem_types": dict(Counter(s.problem_type.value for s in samples)),
            "options": dict(Counter(len(s.options) for s in samples)),
            "missing_kinds": sorted(everywhere - kinds[split], key=str),
            "answer_positions": answer_positions(samples),
            "media_also_in": {
                other: sum(not seen[other].isdisjoint(origins) for origins in media[split])
                for other in splits
                if other != split
            },
            "audio": spread([seconds for seconds, _ in heard]),
            "audio_kept": spread([kept for _, kept in heard]),
            "audio_cut": sum(kept < seconds - 0.01 for seconds, kept in heard),
            "image_pixels": spread([width * height for width, height in pictures]),
            "video_frames": spread([f.frames for f in own if f.frames]),
            "videos_thinned": sum(f.thinned for f in own),
        }
    return report


def shortened(split: dict) -> list[str]:
    """What the caps take from the media of a split, given its profile: a sentence each."""
    said = []
    if split["audio_cut"]:
        lost, total = split["audio"]["total"] - split["audio_kept"]["total"], split["audio"]["total"]
        said.append(
            f"{counted(split['audio_cut'], 'sound')} cut at model.max_audio_seconds, {lost:,.0f} of {total:,.0f} s lost"
        )
    if split["videos_thinned"]:
        videos = counted(split["videos_thinned"], "video")
        said.append(f"{videos} with fewer frames a second than model.video_fps, because of model.max_video_frames")
    return said


def _collections(samples: Sequence[Sample], infos: Sequence[MediaInfo]) -> list[str]:
    """Warnings of a `<medium>_source` that seems to name a collection, not what a file was cut from."""
    files: dict[tuple[str, str], set[str]] = {}
    for sample, info in zip(samples, infos, strict=True):
        for kind, source in sample.sources.items():
            files.setdefault((kind, source), set()).update(info.digests)
    return [
        f"{kind}_source {source!r} stands for {len(of)} files, which count as one; rename it if it is a collection"
        for (kind, source), of in files.items()
        if len(of) > MOST_OF_A_SOURCE and 3 * len(of) > len(samples)
    ]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Least, median, most and total; None if there are no values."""
    if not values:
        return None
    return {"least": min(values), "median": statistics.median(values), "most": max(values), "total": sum(values)}
