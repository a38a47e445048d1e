"""Checks a dataset before anything is trained on it: every bad row, and a description of the others."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from echoink.common.console import counted, percent, progress
from echoink.common.errors import UserError
from echoink.config.schema import Config, DatasetConfig
from echoink.data import fingerprints, splits
from echoink.data.media_check import MediaInfo, check_media
from echoink.data.profile import profile, shortened
from echoink.data.samples import Dropped, Sample

SPLITS = ("train", "dev", "valid")
MOST_COMPARED = 50_000
"""More pictures, or more sounds, are not compared with each other; so many take some minutes."""
NAMES = 5
"""How many shared files, repeated questions or similar pairs a line names."""


@dataclass(frozen=True)
class Found:
    """What a dataset holds, by split."""

    samples: dict[str, list[Sample]]
    bad: dict[str, list[Dropped]]
    """Invalid rows, and samples whose media cannot be read."""
    media: dict[str, MediaInfo]
    """By split and id."""
    unread: list[str]
    """What is wrong with splits beside `valid` that cannot be read."""
    one_split: bool
    """Whether the dataset is a benchmark or a single table: then no other split is missing."""

    @property
    def is_sound(self) -> bool:
        """Whether there are rows, and every one can be used; a test split beside `valid` may have no answers."""
        return any(self.samples.values()) and not any(self.bad.get(split) for split in SPLITS)


def look_through(config: Config) -> Found:
    """Read all rows of all splits and decode every file once; of the configuration `dataset` and `model` are used.

    Raises:
        UserError: there is no such dataset, none of its splits, or one that cannot be read.
    """
    rows, unread = _rows(config.dataset)
    found, model = Found({}, {}, {}, unread, one_split=splits.has_one_split(config.dataset)), config.model
    for split, (samples, bad) in rows.items():
        check, caps = progress(f"check {split}", len(samples)), splits.video_caps(model)
        infos = check_media(
            samples, model.max_audio_seconds, caps, progress=check, soundtrack=config.dataset.soundtrack, prints=True
        )
        checked = list(zip(samples, infos, strict=True))
        usable, broken, media = splits.sorted_out(checked, split, config.dataset.soundtrack)
        found.samples[split], found.bad[split] = usable, bad + broken
        found.media.update(media)
    if not found.samples:
        folder = Path(config.dataset.path)
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:6]) if folder.is_dir() else ""
        raise UserError(
            f"no split in {folder}" + (f", which holds {there}" if there else ""),
            "train.jsonl and valid.jsonl, a question a line, or .json or Parquet files; docs/data.md has all",
        )
    return found


def _rows(dataset: DatasetConfig) -> tuple[dict[str, tuple[list[Sample], list[Dropped]]], list[str]]:
    """The rows of all splits, before any file is decoded, and what is wrong with further splits that cannot be read;
    one error names all others that cannot.
    """
    found, wrong, unread = {}, {}, []
    for split in SPLITS:
        try:
            found[split] = splits.all_rows(dataset, split)
        except UserError as error:
            wrong[error.problem] = error
    if not wrong and not dataset.split:
        for split in splits.further_splits(dataset):
            try:
                found[split] = splits.all_rows(replace(dataset, split=split), "valid")
            except UserError as error:
                unread.append(f"{error.problem} → {error.hint}")
    if len(wrong) == 1:
        raise next(iter(wrong.values()))
    if wrong:
        raise UserError("\n".join(wrong), next(iter(wrong.values())).hint)
    return {split: rows for split, rows in found.items() if rows is not None}, unread


def bad_row(each: Dropped) -> str:
    """What is wrong with a row, and what to do."""
    return each.reason + (f" → {each.hint}" if each.hint else "")


def lines(found: Found) -> Iterator[tuple[str, str]]:
    """Label and text of each line of the report."""
    yield from (("warning", text) for text in found.unread)
    for split, bad in found.bad.items():
        yield from (("bad row" if split in SPLITS else "warning", bad_row(each)) for each in bad)
    profiles = profile(found.samples, found.bad, found.media)
    for split in () if found.one_split else ("train", "valid"):
        if not found.samples.get(split) and not found.bad.get(split):
            yield "warning", f"there is no row of {split}"
    for split, about in profiles.items():
        if not about["samples"] and not found.bad[split]:
            continue
        total = about["samples"] + len(found.bad[split])
        yield split, f"{about['samples']:,} of {counted(total, 'row')} can be used"
        yield "", " · ".join(f"{number:,} with {kind}" for kind, number in about["media"].items())
        types = {**about["problem_types"], **_kinds(found.samples[split])}
        yield "", " · ".join(f"{number:,} {name}" for name, number in types.items())
        if letters := about["answer_positions"]:
            yield "", "right answers " + " · ".join(f"{name} {percent(share)}" for name, share in letters.items())
        for note, number in about["notes"].items():
            yield "", f"{note}: {counted(number, 'row')}"
        for warning in about["warnings"]:
            yield "warning", warning
        if about["missing_kinds"]:
            yield "warning", f"{split} has no question of kind {', '.join(map(str, about['missing_kinds']))}"
        if about["duplicates"]:
            repeated = "; ".join(_repeated(found.samples[split], found.media, split)[:NAMES])
            yield "warning", f"{counted(about['duplicates'], 'row')} of {split} repeat another: {repeated}"
        yield from (("", text) for text in shortened(about))
    yield from _shared(found)
    yield from _near(found)


def _repeated(samples: Sequence[Sample], media: dict[str, MediaInfo], split: str) -> list[str]:
    """Ids of questions that differ in nothing but their ids."""
    groups: dict[tuple, list[str]] = {}
    for s in samples:
        key = (s.problem, s.options, s.solution, s.data_type, media[f"{split} {s.id}"].digests)
        groups.setdefault(key, []).append(s.id)
    return [" = ".join(ids) for ids in groups.values() if len(ids) > 1]


def _kinds(samples: Sequence[Sample]) -> dict[str, int]:
    counts = Counter(sample.fields["kind"] for sample in samples if "kind" in sample.fields)
    return {f"of kind {kind}": number for kind, number in sorted(counts.items())}


def _shared(found: Found) -> Iterator[tuple[str, str]]:
    """Files, sources and questions without media that two splits share."""
    where: dict[str, dict[str, str]] = {split: {} for split in found.samples}
    questions: set[str] = set()
    for split, samples in found.samples.items():
        for sample in samples:
            origins = found.media[f"{split} {sample.id}"].origins(sample)
            if not sample.media:
                questions.add(f"question {sample.id}")
            places = {**sample.places, "text": f"question {sample.id}"}
            where[split].update((one, places[name]) for name, of in origins.items() for one in of)
    there = sorted(where, key=[*SPLITS, *where].index)
    for one, other in itertools.combinations(there, 2):
        both: dict[str, str] = {}  # files of one split, and what they are in the other
        for origin, place in where.get(one, {}).items():
            if origin in where.get(other, {}):
                same = f" = {where[other][origin]} ({origin})" if origin.startswith("source ") else ""
                both.setdefault(place, f"{place}{same}")
        if both:
            names = ", ".join(list(both.values())[:NAMES])
            more = f" and {len(both) - NAMES:,} more" if len(both) > NAMES else ""
            files = sum(place not in questions for place in both)
            counts = [counted(files, "file")] if files else []
            counts += [counted(len(both) - files, "question") + " without media"] if files < len(both) else []
            shared = f"{one} and {other} share {' and '.join(counts)}, so accuracy on {other} may be too high"
            yield "warning", f"{shared}: {names}{more}"


def _near(found: Found) -> Iterator[tuple[str, str]]:
    """Different files that look or sound nearly the same; only pairs across splits are named, if there are any."""
    for medium, kind in (("image", "picture"), ("audio", "sound")):
        first: dict[str, tuple[str, str, bytes]] = {}  # by digest: split, file, fingerprint
        for split, samples in found.samples.items():
            for sample in samples:
                info = found.media[f"{split} {sample.id}"]
                if taken := info.fingerprints.get(medium):
                    digest = info.digests[list(sample.media).index(medium)]
                    first.setdefault(digest, (split, sample.places[medium], taken))
        rows = list(first.values())
        if len(rows) > MOST_COMPARED:
            yield "", f"{len(rows):,} {kind}s are not compared for near-duplicates: at most {MOST_COMPARED:,} are"
            continue
        compare = progress(f"compare {kind}s", len(rows) - 1)
        pairs = fingerprints.near([row[2] for row in rows], fingerprints.NEAR[kind], compare)
        across = [pair for pair in pairs if rows[pair[0]][0] != rows[pair[1]][0]]
        if pairs:
            files = [f"{split} {Path(place).name}" for split, place, _ in rows]
            shown = [f"{files[one]} ≈ {files[other]}" for one, other in (across or pairs)[:NAMES]]
            more = f", {len(across):,} of them across splits" if across else ""
            listed = "; ".join(shown) + (" …" if len(across or pairs) > NAMES else "")
            yield "warning", f"{counted(len(pairs), 'pair')} of nearly the same {kind}s{more}: {listed}"
