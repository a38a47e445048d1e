"""Divides a file of questions into train, dev and valid: `python -m echoink.data split mine/all.jsonl valid=0.2`.

Questions about the same picture, sound or video stay together, so that no two splits share a file; kinds of question
are spread evenly. The new files are beside the old one, so that the paths of its rows stay valid.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from echoink.common.console import counted, progress
from echoink.common.errors import UserError
from echoink.common.files import write_atomic
from echoink.common.keys import key
from echoink.config.schema import ModelConfig
from echoink.data.media_check import check_media
from echoink.data.readers import open_split
from echoink.data.samples import HALF, Dropped, Sample, parse_rows
from echoink.data.splits import joined, sharing, video_caps


@dataclass
class DivideConfig:
    """Shares of the questions for valid and dev; the rest is for training."""

    valid: float = key("share of the questions for valid", 0.2)
    dev: float = key("share of the questions for dev", 0.0)
    overwrite: bool = key("replace existing files; the input file is never replaced", False)
    by: str = key("field to spread evenly; rows without it are one value (without `kind`: by problem_type)", "kind")
    seed: int = key("seed of the division", 0)
    outside: list[str] = key("further folders that hold media", list)


@dataclass(frozen=True)
class Divided:
    """What was written."""

    files: dict[str, Path]
    kinds: dict[str, Counter] = field(default_factory=dict)
    """For each split, the number of rows with each value of `by`."""
    removed: list[Path] = field(default_factory=list)
    """Files of earlier splits, which were deleted."""


def divide(file: Path, wanted: DivideConfig, model: ModelConfig) -> Divided:
    """Write train.jsonl, valid.jsonl and, if asked for, dev.jsonl beside a file of rows.

    Args:
        file: .jsonl or .json; every row must be a valid question.
        wanted: the shares.
        model: the caps on media.

    Raises:
        UserError: a row or a share is invalid, a file exists already, or a split would be empty.
    """
    shares = {"valid": wanted.valid, "dev": wanted.dev}
    if wanted.valid <= 0 or wanted.dev < 0 or wanted.valid + wanted.dev >= 1:
        raise UserError(f"valid={wanted.valid} dev={wanted.dev} leave nothing", "shares of the questions, such as 0.2")
    if file.suffix not in (".jsonl", ".json") or not file.is_file():
        if not file.exists():
            raise UserError(f"no such file: {file}", "give one file of rows, .jsonl or .json")
        raise UserError(f"{file} is not a .jsonl or .json file", "give one file of rows")
    targets = {split: file.parent / f"{split}.jsonl" for split in ("train", *(name for name in shares if shares[name]))}
    possible = [file.parent / f"{split}.jsonl" for split in ("train", *shares)]
    there = [str(target) for target in possible if target.exists() and target != file]
    if file in targets.values():
        raise UserError(f"{file} would be overwritten", "rename it, for example to all.jsonl")
    if there and not wanted.overwrite:
        raise UserError(f"there already: {', '.join(there)}", "move them away, or overwrite=true")
    rows = open_split(str(file), "train")
    raw = list(rows.rows)
    samples, bad = parse_rows(raw, rows.folder, rows.where, outside=wanted.outside)
    texts = [json.dumps(row, ensure_ascii=False) + "\n" for row in raw if isinstance(row, dict)]
    if not bad and (half := next((n for n, text in enumerate(texts) if HALF.search(text)), None)) is not None:
        raise UserError(f"{rows.where}, row {half + 1} holds half a character", "rewrite the text in UTF-8")
    infos = [] if bad else check_media(samples, model.max_audio_seconds, video_caps(model), progress("check", None))
    bad += [info for info in infos if isinstance(info, Dropped)]
    if bad:
        more = f" (and {counted(len(bad) - 1, 'more row')})" if len(bad) > 1 else ""
        lists = f"python -m echoink.data check {file} lists all; fix or remove them"
        hint = bad[0].hint.replace("dataset.outside", "outside=[…]") if "dataset.outside" in bad[0].hint else lists
        raise UserError(f"{bad[0].reason}{more}", hint)
    if {_value(sample, wanted.by) for sample in samples} == {_NONE}:
        fields = sorted({name for sample in samples for name in sample.fields} | {"data_type", "problem_type"})
        raise UserError(f"by={wanted.by}: no row has such a field", f"known: {', '.join(fields)}")
    media = [joined(info.origins(sample)) for sample, info in zip(samples, infos, strict=True)]
    chosen = _assigned(samples, media, shares, wanted)
    if empty := [split for split in targets if split not in chosen]:
        groups = len(sharing(samples, media, wanted.seed))
        problem = f"{empty[0]} would be empty: {len(raw)} rows in {counted(groups, 'group')} without shared files"
        raise UserError(problem, "give more questions, or another share")
    for split, target in targets.items():
        write_atomic(target, "".join(text for text, name in zip(texts, chosen, strict=True) if name == split))
    counts = {
        split: Counter(_value(s, wanted.by) for s, name in zip(samples, chosen, strict=True) if name == split)
        for split in targets
    }
    old = [place for place in possible if place not in (*targets.values(), file) and place.exists()]
    for place in old:  # its questions are in the new splits
        place.unlink()
    return Divided(targets, counts, old)


_NONE = "none"
"""The value that stands for rows without the field."""


def _value(sample: Sample, by: str) -> str:
    types = {"data_type": sample.data_type.value, "problem_type": sample.problem_type.value}
    return str(sample.fields.get(by) or types.get("problem_type" if by == "kind" else by, _NONE))


def _assigned(
    samples: Sequence[Sample], media: Sequence[Sequence[str]], shares: dict[str, float], wanted: DivideConfig
) -> list[str]:
    """The split of each sample. Groups that share media are taken in a random order; each goes to the first split that
    still needs all of its questions, kind by kind, else to train.
    """
    chosen = ["train"] * len(samples)
    kinds = [_value(sample, wanted.by) for sample in samples]
    # What each split still needs of each kind: at least one of every kind with more than two questions.
    lacks = {
        split: {kind: max(round(share * count), 1 if count > 2 else 0) for kind, count in Counter(kinds).items()}
        for split, share in shares.items()
        if share
    }
    for places in sharing(samples, media, wanted.seed):
        own = Counter(kinds[place] for place in places)
        for split, lack in lacks.items():
            if all(lack[kind] >= count for kind, count in own.items()):
                for place in places:
                    chosen[place] = split
                for kind, count in own.items():
                    lack[kind] -= count
                break
    return chosen
