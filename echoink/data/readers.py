"""Where the rows of a split are: the official folder, JSON Lines, a `datasets` folder, Parquet files or a hub id.

    <dataset.path>/                     the official layout of AVQA-R1-6K
      omni_rl_format_train.json         a list of rows; the synthetic set adds omni_rl_format_dev.json
      omni_rl_format_valid.json         (the official archive has them inside train/ and valid/; either is found)
      train/images/sample_7.jpg         the rows' paths start at their split's folder
      train/audios/sample_7.wav

    <dataset.path>/train.jsonl …        a row a line; paths start at the folder
    <dataset.path>/dataset_dict.json    a `datasets` folder (save_to_disk), one or several splits
    <dataset.path>/data/train-*.parquet Parquet files, as a hub's repository holds them
    owner/name                          a hub id

In tables a medium is a column such as `image` or `images` (bytes, a path, or a list of one), beside the fields of
`samples`.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from echoink.common.errors import UserError
from echoink.media.loaders import Embedded

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

OFFICIAL_ROOTS = ("", "AVQA_R1", "AVQA-R1-6K/AVQA_R1")
"""Where the official archive may have put the split folders below `dataset.path`."""

ALIASES = {"train": ("train",), "dev": ("dev",), "valid": ("valid", "validation", "test")}
"""Names under which tables hold a split."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Rows:
    """The rows of one split, as they are stored."""

    rows: Iterable[dict]
    folder: Path
    """Where relative paths start."""
    where: str
    """What to call them in errors."""
    total: int = 0
    """How many, where that is known."""


def open_split(path: str, split: str, name: str | None = None) -> Rows | None:
    """The rows of a split of a dataset; None where the dataset is there but has no such split.

    Args:
        path: a folder, a file of one split, or a hub id.
        split: train, dev or valid.
        name: what the split is called in a table, where it has a name of its own.

    Raises:
        UserError: there is nothing at the path, or it cannot be read.
    """
    names = (name,) if name else ALIASES.get(split, (split,))
    root = Path(path)
    if root.is_file():
        return _file(root)
    if not root.is_dir():
        if HUB_ID.fullmatch(path) and not path.startswith("outputs/"):
            return _hub(path, names)
        raise UserError(f"dataset folder not found: {path}", "set dataset.path to a folder, a .jsonl file or a hub id")
    for place in (root / sub / part for sub in OFFICIAL_ROOTS for part in ("", split)):
        if (index := place / f"omni_rl_format_{split}.json").is_file():
            return Rows(_json(index), place if place.name == split else place / split, str(index))
    for each in names:
        if (lines := root / f"{each}.jsonl").is_file():
            return _file(lines)
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return _saved(root, names)
    for each in names:
        if files := sorted([*root.glob(f"{each}*.parquet"), *root.glob(f"data/{each}*.parquet")]):
            return _table(_load("parquet", data_files=[str(file) for file in files]), root, f"{root} ({each})")
    return None


NOT_JSON = (ValueError, RecursionError)
"""What reading JSON raises: of text that is none, of numbers with thousands of digits, of thousands of brackets."""


BROKEN = 20
"""Of the lines that are no JSON, those that an error names."""


def holds_one_split(path: str) -> bool:
    """Whether there is a single table or file, which can be training or validation data, not both."""
    return Path(path).is_file() or (Path(path) / "state.json").is_file()


def _json(index: Path) -> list[dict]:
    try:
        rows = json.loads(index.read_text(encoding="utf-8-sig"))
    except NOT_JSON as error:
        raise UserError(f"{index} is not valid JSON: {error}", "restore the file from its source") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{index} must hold a list of at least one row")
    return rows


def _file(file: Path) -> Rows:
    if file.suffix == ".json":
        return Rows(_json(file), file.parent, str(file))
    if file.suffix == ".parquet":
        return _table(_load("parquet", data_files=str(file)), file.parent, str(file))
    if file.suffix != ".jsonl":
        raise UserError(f"{file}: a dataset file is .jsonl, .json or .parquet", "or give the folder that holds it")
    rows, broken = [], []
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except NOT_JSON as error:
            broken.append(f"{file}, line {number} is not valid JSON: {error}")
    if broken:  # all at once; what the other rows hold is looked at when these are mended
        more = f"\n  … and {len(broken) - BROKEN} more" if len(broken) > BROKEN else ""
        raise UserError("\n  ".join(broken[:BROKEN]) + more, "one object a line")
    return Rows(rows, file.parent, str(file))


def _saved(root: Path, names: tuple[str, ...]) -> Rows | None:
    import datasets

    try:
        found = datasets.load_from_disk(str(root))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read the dataset folder {root}: {error}", "write it with save_to_disk") from error
    if isinstance(found, datasets.DatasetDict):
        split = next((name for name in names if name in found), None)
        return _table(found[split], root, f"{root} ({split})") if split else None
    return _table(found, root, str(root))


def _hub(id: str, names: tuple[str, ...]) -> Rows | None:
    import datasets

    try:
        there = datasets.get_dataset_split_names(id)
    except Exception as error:  # the hub's client raises many kinds of its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"cannot reach the dataset {id}: {reason}", "no such folder either; check the id") from error
    split = next((name for name in names if name in there), None)
    return _table(_load(id, split=split), Path.cwd(), f"{id} ({split})") if split else None


def _load(kind: str, **arguments) -> "datasets.Dataset":
    import datasets

    try:
        return datasets.load_dataset(kind, **{"split": "train", **arguments})
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"cannot read {arguments.get('data_files', kind)}: {reason}", "restore the files") from error


def _table(table: "datasets.Dataset", folder: Path, where: str) -> Rows:
    import datasets

    kinds = (datasets.Image, datasets.Audio, datasets.Video)
    for column, kind in table.features.items():
        listed = isinstance(kind, datasets.List | datasets.LargeList)
        inner = kind.feature if listed else kind
        if isinstance(inner, kinds):
            stored = type(inner)(decode=False)
            if listed:  # a cast would write the whole table anew
                features = datasets.Features({**table.features, column: type(kind)(stored)})
                info = datasets.DatasetInfo(features=features)
                table = datasets.Dataset(table.data, info=info, indices_table=table._indices)
            else:
                table = table.cast_column(column, stored)
    table = table.flatten_indices() if table._indices is not None else table
    return Rows(_cells(table, where), folder, where, len(table))


def _cells(table: "datasets.Dataset", where: str) -> Iterator[dict]:
    """Rows whose embedded media are read only when they are needed."""
    embedded = {name: holds for name in table.column_names if (holds := _has_bytes(table, name)) is not None}
    files = {name: table.select_columns([name]) for name in embedded}
    small = table.remove_columns([name for name, holds in embedded.items() if all(holds)])
    for number in range(len(table)):
        row = small[number] if small.column_names else {}
        for name, holds in embedded.items():
            if holds[number]:
                place = f"{where}, row {number + 1}, {name}"
                row[name] = Embedded(place, partial(_read, files[name], number, name))
        yield row


def _has_bytes(table: "datasets.Dataset", name: str) -> list[bool] | None:
    """For each row whether the column holds a file's bytes; None for a column that holds no files."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.data.column(name)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return _file_bytes(column)
    # A list of one file is that file; of none or of several the row's reader says what is wrong.
    flat = _file_bytes(pc.list_flatten(column))
    if flat is None:
        return None
    holds, first = [], 0
    for length in pc.list_value_length(column).to_pylist():
        holds.append(length == 1 and flat[first])
        first += length or 0
    return holds


def _file_bytes(column: "pa.ChunkedArray") -> list[bool] | None:
    """For each value whether it holds a file's bytes; None for a column of another kind."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pc.is_valid(column).to_pylist()
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        return pc.is_valid(pc.struct_field(column, "bytes")).to_pylist()
    return None


def _read(table: "datasets.Dataset", number: int, name: str) -> bytes:
    cell = table[number][name]
    cell = cell[0] if isinstance(cell, list) else cell
    return cell["bytes"] if isinstance(cell, dict) else cell
