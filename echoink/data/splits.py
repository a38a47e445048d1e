"""Loads and checks the samples that a dataset's configuration asks for, and describes them."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from echoink.common.clusters import Clusters
from echoink.common.console import counted, progress, say
from echoink.common.errors import UserError
from echoink.config.schema import DatasetConfig, EvalConfig, ModelConfig, Source
from echoink.data import synthetic
from echoink.data.media_check import MediaInfo, check_media
from echoink.data.profile import profile, shortened
from echoink.data.public_benchmarks import BENCHMARKS, open_benchmark
from echoink.data.readers import ALIASES, Rows, holds_one_split, open_split
from echoink.data.samples import Dropped, Sample, answer_positions, fingerprint, parse_rows, with_soundtrack
from echoink.media.loaders import VideoCaps
from echoink.models import media_tokens

WARNINGS = 3
"""How many odd files of a split the screen names; dataset.json names all."""


SHOWN = 20
"""How many of the unusable samples an error names."""


@dataclass(frozen=True)
class Splits:
    """The samples of a run."""

    train: list[Sample]
    dev: list[Sample]
    """The development split, the data's own or held out of train: for choices during training."""
    valid: list[Sample]
    """What is evaluated: the validation split, or the development split with eval.split=dev."""
    media_info: dict[str, MediaInfo] = field(default_factory=dict)
    """What the samples' files hold, by split and id ("train 7")."""
    profile: dict = field(default_factory=dict)
    """What dataset.json says: see `profile`."""

    def clusters(self, split: str, samples: Sequence[Sample]) -> dict[str, Clusters]:
        """Cluster names by sample id, for samples of a split: samples that share media share a name.

        Two media count as the same if their files are, or if their rows name one source (`MediaInfo.origins`). A sample
        has one name, shared by all samples that pictures, sounds or videos connect to it. It has two names, by sound
        and by sight, if that makes more clusters: recordings used with many pictures each connect everything.
        """
        found = {sample.id: self.media_info[f"{split} {sample.id}"].origins(sample) for sample in samples}
        connected = sharing(samples, [joined(found[sample.id]) for sample in samples], 0)
        sounds = {id: of.get("audio") or of.get("video") or () for id, of in found.items()}
        sights = {id: of.get("image") or of.get("video") or () for id, of in found.items()}
        heard, seen = (_named(samples, media) for media in (sounds, sights))
        with_both = [sample for sample in samples if sample.id in heard and sample.id in seen]
        both = [(heard[sample.id], seen[sample.id]) for sample in with_both]
        if both and len(sharing(with_both, both, 0)) < min(len(set(each)) for each in zip(*both, strict=True)):
            return {id: (f"sound {heard.get(id, id)}", f"sight {seen.get(id, id)}") for id in found}
        return {samples[place].id: samples[places[0]].id for places in connected for place in places}

    def digest(self, split: str, samples: Sequence[Sample]) -> str:
        """A digest of questions, answers and the contents of their files."""
        contents = [
            (self.media_info[f"{split} {s.id}"].digests, s.problem_type.name, s.data_type.name) for s in samples
        ]
        return hashlib.sha256(f"{fingerprint(samples)} {contents}".encode()).hexdigest()


def load(
    config: DatasetConfig,
    evaluation: EvalConfig,
    model: ModelConfig,
    train: bool,
    on_main_process: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> Splits:
    """Read the splits and decode every file once; write the synthetic set first if it is missing.

    Args:
        config: the group `dataset`.
        evaluation: the group `eval`: its split and limit.
        model: the caps on media.
        train: whether the training split is needed.
        on_main_process: runs slow work in the first of the run's processes and gives all of them its result.

    Raises:
        UserError: a split cannot be read, or more samples are broken than dataset.max_skipped allows.
    """
    if config.source is Source.synthetic:
        on_main_process(partial(_write_synthetic, config, Path(config.path)))
    evaluated = evaluation.split.name
    # Samples that dataset.dev holds out are never trained on, whether or not this run evaluates them.
    asks = evaluation.every or (config.dev and config.source is not Source.synthetic and not has_dev(config))
    needed = dict.fromkeys([*(["train"] if train else []), *(["dev"] if train and asks else []), evaluated])
    found: dict[str, list[Sample]] = {}
    dropped: dict[str, list[Dropped]] = {}
    for split in needed:
        limits = [getattr(config, split), evaluation.limit if split == "valid" else None]
        found[split], dropped[split] = first_samples(config, split, min(filter(None, limits), default=None))
    holds_out = "dev" in needed and not found["dev"] and not dropped["dev"]
    if holds_out and "train" not in found:
        found["train"], dropped["train"] = first_samples(config, "train", config.train)
    if holds_out:
        del found["dev"], dropped["dev"]
    media_info: dict[str, MediaInfo] = {}
    for split in found:
        check = progress(f"check {split}", len(found[split]))
        decode = partial(check_media, found[split], model.max_audio_seconds, video_caps(model), progress=check)
        checked = list(zip(found[split], on_main_process(partial(decode, soundtrack=config.soundtrack)), strict=True))
        found[split], broken, infos = sorted_out(checked, split, config.soundtrack)
        dropped[split] += broken
        media_info |= infos
        refuse_too_many(dropped[split], len(found[split]) + len(dropped[split]), config.max_skipped, split)
        if not found[split]:
            raise UserError(f"the split {split} of {config.path} has no samples", "set dataset.path, or dataset.split")
    if holds_out:
        media = [joined(media_info[f"train {sample.id}"].origins(sample)) for sample in found["train"]]
        found["train"], found["dev"] = hold_out(found["train"], media, config.dev, config.seed)
        media_info |= {f"dev {sample.id}": media_info.pop(f"train {sample.id}") for sample in found["dev"]}
        dropped["dev"] = []
    if config.curriculum and train:
        found["train"] = _of_needs(found["train"], config.curriculum, config.path)
    return Splits(
        train=found["train"] if train else [],
        dev=found.get("dev", []),
        valid=found[evaluated][: evaluation.limit],
        media_info=media_info,
        profile=profile(found, dropped, media_info),
    )


def sorted_out(
    checked: Sequence[tuple[Sample, MediaInfo | Dropped]], split: str, soundtrack: bool
) -> tuple[list[Sample], list[Dropped], dict[str, MediaInfo]]:
    """The samples whose media could be decoded, those that are dropped, and the media's properties by split and id."""
    usable = [(sample, found) for sample, found in checked if isinstance(found, MediaInfo)]
    broken = [replace(found, reason=f"{split} {found.reason}") for _, found in checked if isinstance(found, Dropped)]
    kept = [with_soundtrack(sample, found.soundtrack, soundtrack) for sample, found in usable]
    return kept, broken, {f"{split} {sample.id}": found for sample, found in usable}


def _of_needs(samples: Sequence[Sample], needs: Sequence[str], path: str) -> list[Sample]:
    """Samples whose field `need` is listed, in the order of the list."""
    there = {sample.fields.get("need") for sample in samples} - {None}
    if not there:
        raise UserError(
            f"dataset.curriculum needs the field need, which no row of {path} has", "curate mode=difficulty"
        )
    if absent := [need for need in needs if need not in there]:
        raise UserError(f"dataset.curriculum: no sample needs {absent[0]}", f"there are {', '.join(sorted(there))}")
    return [sample for need in needs for sample in samples if sample.fields.get("need") == need]


def has_one_split(config: DatasetConfig) -> bool:
    """Whether the data are a benchmark, a single table or a single file: they have only a validation split."""
    return config.source.name in BENCHMARKS or holds_one_split(config.path)


def has_dev(config: DatasetConfig) -> bool:
    """Whether the data have their own development split; a single file is any split that is asked for."""
    return config.source.name not in BENCHMARKS and _open(config, "dev") is not None


def all_rows(config: DatasetConfig, split: str) -> tuple[list[Sample], list[Dropped]] | None:
    """All samples of a split, and its invalid rows; writes the synthetic set if it is missing.

    None if the dataset has no such split.

    Raises:
        UserError: there is no such dataset, or the split cannot be read.
    """
    if config.source is Source.synthetic:
        _write_synthetic(config, Path(config.path))
    rows = None if has_one_split(config) and split != "valid" else _open(config, split)
    return rows and parse_rows(rows.rows, rows.folder, rows.where, limit=None, outside=config.outside)


def video_caps(model: ModelConfig) -> VideoCaps:
    """The caps on videos in the group `model`."""
    grid = media_tokens.arithmetic_of(model.architecture.family).GRID
    return VideoCaps(
        model.video_fps,
        model.max_video_frames,
        model.max_video_pixels,
        grid,
        min_frames=model.min_video_frames,
        min_pixels=model.min_video_pixels,
    )


def first_samples(config: DatasetConfig, split: str, limit: int | None) -> tuple[list[Sample], list[Dropped]]:
    """The first `limit` samples of a split, and the invalid rows among them; writes the synthetic set if it is missing.

    A missing development split is empty: it can be held out of train.

    Raises:
        UserError: the split is missing or unreadable.
    """
    if config.source is Source.synthetic:
        _write_synthetic(config, Path(config.path))
    if config.source.name in BENCHMARKS and split != "valid":
        raise UserError(f"dataset={config.source.name} is a benchmark: it has no split {split}", "use task=eval")
    if config.source.name not in BENCHMARKS and split == "train" and holds_one_split(config.path):
        hint = "for training give a folder with train.jsonl and valid.jsonl, or a datasets folder with both"
        raise UserError(f"{config.path} holds one split", hint)
    rows = _open(config, split)
    if rows is None and split == "dev":
        return [], []
    if rows is None:
        raise _no_split(config.split if split == "valid" and config.split else split, config.path)
    return parse_rows(rows.rows, rows.folder, rows.where, limit=limit, outside=config.outside)


def _open(config: DatasetConfig, split: str) -> Rows | None:
    """The rows of a split; None where the dataset has no such split."""
    if config.source.name in BENCHMARKS:
        return open_benchmark(config.source.name, config.path, config.split)
    rows = open_split(config.path, split, config.split if split == "valid" else None)
    if rows and rows.name == "test" and not config.split:
        say("data", f"{rows.where} is what is evaluated: there is no split valid, validation or val")
    return rows


def further_splits(config: DatasetConfig) -> list[str]:
    """Names of the validation splits that are there beside the one that is read, as `test` may be beside `valid`."""
    used = None if config.source.name in BENCHMARKS else open_split(config.path, "valid", config.split)
    if used is None or not used.name:  # the official layout and a single file have one
        return []

    def is_there(name: str) -> bool:
        with suppress(UserError):
            return open_split(config.path, "valid", name) is not None
        return True  # it cannot be read

    return [each for each in ALIASES["valid"] if each != used.name and is_there(each)]


def read_split(path: Path | str, split: str, limit: int | None = None) -> list[Sample]:
    """The samples of a split in the official layout or another of `readers`.

    Raises:
        UserError: the split is missing, or a row is invalid.
    """
    rows = open_split(str(path), split)
    if rows is None:
        raise _no_split(split, str(path))
    samples, dropped = parse_rows(rows.rows, rows.folder, rows.where, limit)
    refuse_too_many(dropped, len(samples) + len(dropped), 0, split)
    return samples


def _no_split(split: str, path: str) -> UserError:
    return UserError(
        f"no split {split} in {path}: no omni_rl_format_{split}.json, {split}.jsonl, {split}.json or table of it",
        "docs/data.md and the top of echoink/data/readers.py say what a dataset may look like",
    )


def hold_out(
    samples: Sequence[Sample], media: Sequence[Sequence[str]], count: int | None, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """The remaining training samples, and at most `count` development samples that share no medium with them.

    Samples that share a picture, a sound or a video stay together. The choice is keyed by (seed, id), so it does not
    depend on their order.

    Args:
        samples: the training split.
        media: the origins of each sample's media, see `joined`.
        count: the most samples to hold out.
        seed: dataset.seed.

    Raises:
        UserError: `count` is not given, or holds out nothing or everything.
    """
    if count is None:
        raise UserError("the data have no development split", "set dataset.dev=<how many to hold out of train>")
    held: set[int] = set()
    for places in sharing(samples, media, seed):
        if len(held) + len(places) <= count:
            held |= set(places)
    if len(held) == len(samples) or not held:
        raise UserError(
            f"cannot hold out dataset.dev={count} of {len(samples)} training samples", "choose another number"
        )
    rest = [sample for place, sample in enumerate(samples) if place not in held]
    return rest, [samples[place] for place in sorted(held)]


def joined(origins: Mapping[str, Sequence[str]]) -> list[str]:
    """The origins of all media of a sample, which connect it to others: see `MediaInfo.origins`."""
    return [origin for of in origins.values() for origin in of]


def _named(samples: Sequence[Sample], media: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """By id, one name for all media of a sense that are the same, directly or through others.

    Args:
        samples: in any order.
        media: by id, the origins of the sample's medium; a sample without one gets no name.
    """
    having = [sample for sample in samples if media[sample.id]]
    origins = [media[sample.id] for sample in having]
    return {
        having[place].id: min(origin for each in places for origin in origins[each])
        for places in sharing(having, origins, 0)
        for place in places
    }


def sharing(samples: Sequence[Sample], media: Sequence[Sequence[str]], seed: int) -> list[list[int]]:
    """Groups of indices of samples that share a medium, directly or through others, in an order keyed by (seed, id).

    Args:
        samples: in any order, which changes nothing.
        media: of each sample, see `joined`.
        seed: of the order.
    """
    from scipy.cluster.hierarchy import DisjointSet  # takes half a second, for which a mistyped command should not wait

    connected = DisjointSet(range(len(samples)))
    first: dict[str, int] = {}
    for place, of in enumerate(media):
        for medium in of:
            connected.merge(first.setdefault(medium, place), place)

    def key(places: list[int]) -> str:
        return hashlib.sha256(f"{seed} {min(samples[place].id for place in places)}".encode()).hexdigest()

    return sorted((sorted(places) for places in connected.subsets()), key=key)


def refuse_too_many(dropped: Sequence[Dropped], total: int, allowed: float, split: str) -> None:
    """Raise `UserError`, naming the rows, if more than the share `allowed` of `total` is dropped."""
    if len(dropped) <= allowed * total:
        return
    # The hint of the first row is at the end; other rows show theirs if it differs.
    own = [each.hint if each.hint != dropped[0].hint else "" for each in dropped]
    some = "".join(
        f"\n  {each.reason}" + (f" → {hint}" if hint else "")
        for each, hint in zip(dropped[1:SHOWN], own[1:SHOWN], strict=True)
    )
    more = f"\n  … and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
    share = f"{len(dropped)} of {counted(total, 'sample')} of {split} cannot be used"
    hints = [*([dropped[0].hint] if dropped[0].hint else []), "dataset.max_skipped is the share that may be dropped"]
    hints += ["python -m echoink.data check lists all"] if len(dropped) > SHOWN else []
    raise UserError(
        f"{dropped[0].reason}{some}{more}" + (f"\n  ({share})" if len(dropped) > 1 else ""), "; ".join(hints)
    )


def _write_synthetic(config: DatasetConfig, root: Path) -> None:
    sizes = {"train": config.train, "dev": config.dev, "valid": config.valid}
    shortcut = synthetic.Shortcut(config.shortcut.name, config.shortcut_share) if config.shortcut else None
    kinds = [kind.name for kind in config.kinds] or None
    if None in sizes.values():
        raise UserError("dataset.train, dataset.dev and dataset.valid must be numbers for the synthetic set")
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        total = sum(sizes.values())
        say("data", f"writing {total:,} pictures and sounds to {root}")
        synthetic.write(root, config.seed, sizes, progress=progress("data", total), shortcut=shortcut, kinds=kinds)
    file, wanted = root / synthetic.RECIPE, synthetic.recipe(config.seed, sizes, shortcut, kinds)
    made = json.loads(file.read_text("utf-8")) if file.is_file() else None
    if made is None:
        raise UserError(
            f"{root} is not the synthetic set, which dataset={config.source.name} writes",
            "dataset=rows reads data of your own; or give a dataset.path that does not exist yet",
        )
    if made != wanted:
        raise UserError(
            f"{root} was made as {made}, not as {wanted}", "give another dataset.path or delete that folder"
        )


def describe(splits: Splits, split: str, config: DatasetConfig) -> Iterator[str]:
    """Lines for the screen: sizes, kinds of question, positions of right answers; what was dropped, cut or shared.

    Args:
        splits: as loaded.
        split: the name of the evaluated split.
        config: the group `dataset`.
    """

    def first(name: str, count: int) -> str:
        asked = getattr(config, name) if config.source is not Source.synthetic else None
        return f" (the first, dataset.{name})" if asked == count else ""

    parts = [f"{len(splits.train):,} train{first('train', len(splits.train))}"] if splits.train else []
    parts += [f"{len(splits.dev):,} dev"] if splits.dev and split != "dev" else []
    kinds = Counter(kind for sample in splits.valid if (kind := sample.fields.get("kind")))
    by = " · ".join(f"by {kind} {count}" for kind, count in sorted(kinds.items()))
    limited = first(split, len(splits.valid)) if split == "valid" else ""
    parts.append(f"{len(splits.valid):,} to evaluate{limited}" + (f" ({by})" if by else ""))
    positions = answer_positions(splits.valid)
    if positions:
        parts.append("answers " + " ".join(f"{letter} {100 * share:.0f}%" for letter, share in positions.items()))
    yield " · ".join(parts)
    for name, found in splits.profile.items():
        yield f"{name}: " + " · ".join(f"{count:,} with {media}" for media, count in found["media"].items())
    for name, found in splits.profile.items():
        notes = [f"{note}: {counted(count, 'sample')}" for note, count in found["notes"].items()]
        if found["dropped"]:
            notes.append(f"{len(found['dropped'])} dropped (dataset.json says why)")
        notes += shortened(found)
        if found["duplicates"]:
            notes.append(counted(found["duplicates"], "duplicate"))
        shared = {other: count for other, count in found["media_also_in"].items() if count and name == "train"}
        notes += [
            f"{number:,} of its files, or of its questions without one, also in {other} (data check names them)"
            for other, number in shared.items()
        ]
        if found["missing_kinds"]:
            notes.append(f"no question of kind {', '.join(map(str, found['missing_kinds']))}, which another split has")
        if notes:
            yield f"{name}: {' · '.join(notes)}"
        for text in found["warnings"][:WARNINGS]:
            yield f"{name}: check {text}"
        if len(found["warnings"]) > WARNINGS:
            yield f"{name}: {len(found['warnings']) - WARNINGS} more such files (dataset.json names them)"
