"""Rows of `datasets` folders, Parquet files and hub ids; a medium is a column of bytes, paths, or lists of one."""

import errno
import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from echoink.common.errors import UserError, first_line
from echoink.common.files import parts_of
from echoink.data.readers import Rows
from echoink.media.loaders import Embedded


def of_parquet(files: Sequence[Path], folder: Path, where: str) -> Rows:
    """Parquet files as one split.

    Args:
        files: in their order.
        folder: where relative paths start.
        where: what to call them in errors.
    """
    # Beside the time of a file, which archives and images may set to what it was, its content decides what is cached.
    content = hashlib.sha256(b" ".join(map(parts_of, files))).hexdigest()[:16]
    cache = str(Path(datasets.config.HF_DATASETS_CACHE) / f"echoink-{content}")
    found = _load("parquet", data_files=[glob.escape(str(file)) for file in files], cache_dir=cache)
    return _table(found, folder, where)


def of_folder(root: Path, names: Sequence[str]) -> Rows | None:
    """The first of the named splits that a `save_to_disk` folder has, or its only table; None where it has neither."""
    try:
        found = datasets.load_from_disk(str(root))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read the dataset folder {root}: {error}", "write it with save_to_disk") from error
    if isinstance(found, datasets.DatasetDict):
        split = next((name for name in names if name in found), None)
        return replace(_table(found[split], root, f"{root} ({split})"), name=split) if split else None
    return _table(found, root, str(root))


def of_hub(id: str, names: Sequence[str]) -> Rows | None:
    """The first of the named splits that a dataset on the hub has; None where it has none of them."""
    try:
        there = datasets.get_dataset_split_names(id)
    except Exception as error:  # the hub's client raises many types
        if listed := re.search(r"available configs: (\[.*?\])", str(error)):
            hint = "download it (hf download --repo-type dataset) and give the folder of one, dataset.path=…"
            raise UserError(f"{id} has several configurations, {listed.group(1)}", hint) from error
        reason = first_line(error)
        raise UserError(f"cannot reach the dataset {id}: {reason}", "no such folder either; check the id") from error
    split = next((name for name in names if name in there), None)
    return replace(_table(_load(id, split=split), Path.cwd(), f"{id} ({split})"), name=split) if split else None


def _load(kind: str, **arguments) -> datasets.Dataset:
    try:
        return datasets.load_dataset(kind, **{"split": "train", **arguments})
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = first_line(error)
        what = ", ".join(arguments.get("data_files", [kind]))
        hint = "set HF_HOME to a folder with room" if _is_of_the_cache(error) else "restore the files"
        raise UserError(f"cannot read {what}: {reason}", hint) from error


def _is_of_the_cache(error: BaseException | None) -> bool:
    """Whether the cache of `datasets` cannot be written."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    while error is not None:
        if isinstance(error, OSError):
            place = Path(str(error.filename or "/"))
            below = place.is_relative_to(cache) or (place != Path("/") and cache.is_relative_to(place))
            if below or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                return True
        error = error.__cause__ or error.__context__
    return False


def _table(table: datasets.Dataset, folder: Path, where: str) -> Rows:
    kinds = (datasets.Image, datasets.Audio, datasets.Video)
    for column, kind in table.features.items():
        listed = isinstance(kind, datasets.List | datasets.LargeList)
        inner = kind.feature if listed else kind
        if isinstance(inner, kinds):
            stored = type(inner)(decode=False)
            if listed:  # a cast would rewrite the whole table
                features = datasets.Features({**table.features, column: type(kind)(stored)})
                info = datasets.DatasetInfo(features=features)
                table = datasets.Dataset(table.data, info=info, indices_table=table._indices)
            else:
                table = table.cast_column(column, stored)
    table = table.flatten_indices() if table._indices is not None else table
    return Rows(_cells(table, where), folder, where, len(table))


def _cells(table: datasets.Dataset, where: str) -> Iterator[dict]:
    """Rows whose embedded media are read only when they are needed; a class is its name, not its number."""
    embedded = {name: holds for name in table.column_names if (holds := _has_bytes(table, name)) is not None}
    files = {name: table.select_columns([name]) for name in embedded}
    small = table.remove_columns([name for name, holds in embedded.items() if all(holds)])
    raw = small.with_format("arrow")  # media inside of other columns stay undecoded
    classes = {name: names for name, kind in small.features.items() if (names := _names(kind))}
    for number in range(len(table)):
        row = raw[number : number + 1].to_pylist()[0] if small.column_names else {}
        row |= {name: _named(row[name], names) for name, names in classes.items()}
        for name, holds in embedded.items():
            if holds[number]:
                place = f"{where}, row {number + 1}, {name}"
                row[name] = Embedded(place, partial(_read, files[name], number, name))
        yield row


def _names(kind: object) -> list[str] | None:
    """The names of a column of classes, or of lists of them."""
    inner = kind.feature if isinstance(kind, datasets.List | datasets.LargeList) else kind
    return inner.names if isinstance(inner, datasets.ClassLabel) else None


def _named(value: int | list | None, names: Sequence[str]) -> int | str | list | None:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if value == -1:  # it stands for no class
        return None
    return names[value] if value is not None and 0 <= value < len(names) else value


def _has_bytes(table: datasets.Dataset, name: str) -> list[bool] | None:
    """For each row whether the column holds a file's bytes; None for a column that holds no files."""
    column = table.data.column(name)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return _file_bytes(column)
    # A list of one file is that file; the row's reader reports a list of none or of several.
    flat = _file_bytes(pc.list_flatten(column))
    if flat is None:
        return None
    holds, first = [], 0
    for length in pc.list_value_length(column).to_pylist():
        holds.append(length == 1 and flat[first])
        first += length or 0
    return holds


def _file_bytes(column: pa.ChunkedArray) -> list[bool] | None:
    """For each value whether it holds a file's bytes; None for a column of another kind."""
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pc.is_valid(column).to_pylist()
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        return pc.is_valid(pc.struct_field(column, "bytes")).to_pylist()
    return None


def _read(table: datasets.Dataset, number: int, name: str) -> bytes:
    cell = table[number][name]
    cell = cell[0] if isinstance(cell, list) else cell
    return cell["bytes"] if isinstance(cell, dict) else cell
