"""Where the rows of a split are: the official folder, JSON Lines, a `datasets` folder, Parquet files or a hub id.

    <dataset.path>/                     the official layout of AVQA-R1-6K
      omni_rl_format_train.json         a list of rows; the synthetic set adds omni_rl_format_dev.json
      omni_rl_format_valid.json         (the official archive has them inside train/ and valid/; both places work)
      train/images/sample_7.jpg         the rows' paths start at their split's folder
      train/audios/sample_7.wav

    <dataset.path>/train.jsonl …        one row per line; paths start at the folder
    <dataset.path>/train.json …         a list of rows, where there is no other form of the split
    <dataset.path>/dataset_dict.json    a `datasets` folder (save_to_disk), one or several splits
    <dataset.path>/data/train-*.parquet Parquet files, as in a hub repository
    owner/name                          a hub id

In tables a medium is a column such as `image` or `images` (bytes, a path, or a list of one), beside the fields of
`samples`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from echoink.common.errors import UserError

OFFICIAL_ROOTS = ("", "AVQA_R1", "AVQA-R1-6K/AVQA_R1")
"""Where the official archive may have put the split folders below `dataset.path`."""

ALIASES = {"train": ("train",), "dev": ("dev",), "valid": ("valid", "validation", "val", "test")}
"""What tables, .jsonl and .json files call a split."""

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
    name: str = ""
    """What tables, .jsonl and .json files call the split."""


def open_split(path: str, split: str, name: str | None = None) -> Rows | None:
    """The rows of a split of a dataset; None where the dataset is there but has no such split.

    Args:
        path: a folder, a file of one split, or a hub id.
        split: train, dev or valid.
        name: what tables and .jsonl files call the split; None: the first of its `ALIASES` that is there.

    Raises:
        UserError: there is nothing at the path, or it cannot be read.
    """
    names = (name,) if name else ALIASES.get(split, (split,))
    root = Path(path)
    if root.is_file():
        return _file(root)
    if not root.is_dir():
        if HUB_ID.fullmatch(path) and not path.startswith("outputs/"):
            return _tables().of_hub(path, names)
        hint = "set dataset.path to a folder, a .jsonl file or a hub id"
        if "open_media" in path:
            hint += "; python -m echoink.data get open_media makes it"
        raise UserError(f"dataset folder not found: {path}", hint)
    places = (root / sub / part for sub in OFFICIAL_ROOTS for part in ("", split))
    index = next((file for place in places if (file := place / f"omni_rl_format_{split}.json").is_file()), None)
    table = next((file for each in ("dataset_dict.json", "state.json") if (file := root / each).is_file()), None)
    stored = _tables().of_folder(root, names) if table else None
    for each in names:
        lines, shards = root / f"{each}.jsonl", [_shards(folder, each) for folder in (root, root / "data")]
        forms = [*filter(None, [index, table if stored else None]), *([lines] if lines.is_file() else [])]
        forms += [files[0] for files in shards if files]
        if len(forms) > 1:
            raise UserError(f"{forms[0]} and {forms[1]} both hold {split}", "keep one of them in dataset.path")
        if index and name and name != split:
            raise UserError(
                f"dataset.split={name}, and {index} is in the official layout, which has one {split} split",
                "leave dataset.split out",
            )
        if forms and forms[0] not in (index, table):
            files = [file for found in shards for file in found]
            return replace(_tables().of_parquet(files, root, f"{root} ({each})") if files else _file(lines), name=each)
    if index:
        return Rows(_json(index), index.parent if index.parent.name == split else index.parent / split, str(index))
    return stored or _lists(root, split, names)


def _lists(root: Path, split: str, names: Sequence[str]) -> Rows | None:
    """The rows of a split as a list in a .json file, which is read only where the split has no other form."""
    there = [root / f"{each}.json" for each in names if (root / f"{each}.json").is_file()]
    if split == "dev":  # no run needs one, so it may be something else, such as settings
        there = [file for file in there if isinstance(_parsed(file.read_bytes()), list)]
    if len(there) > 1:
        raise UserError(f"{there[0]} and {there[1]} both hold {split}", "keep one of them in dataset.path")
    return replace(_file(there[0]), name=there[0].stem) if there else None


def _shards(folder: Path, name: str) -> list[Path]:
    """The Parquet files of a split in a folder: train.parquet, train-00000-of-00002.parquet, train_0.parquet, but not
    train_hard.parquet.

    Raises:
        UserError: the files are numbered with a total, and one is missing.
    """
    shard = re.compile(rf"{re.escape(name)}(?:[-_.]?\d[\w.-]*)?\.parquet")
    files = sorted(file for file in folder.glob("*.parquet") if shard.fullmatch(file.name))
    numbered = [found for file in files if (found := re.search(r"-(\d+)-of-(\d+)", file.name))]
    for total in {found.group(2) for found in numbered}:
        there = {int(found.group(1)) for found in numbered if found.group(2) == total}
        if missing := [number for number in range(int(total)) if number not in there]:
            first = f"{name}-{missing[0]:0{len(total)}}-of-{total}"
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{folder} lacks {first}{more} of {int(total)} Parquet files", "was a download cut off?")
    return files


NOT_JSON = (ValueError, RecursionError)
"""What reading JSON raises: for invalid text, for numbers with thousands of digits, for thousands of brackets."""


BROKEN = 20
"""How many invalid lines an error names."""


def holds_one_split(path: str) -> bool:
    """Whether the path is a single table or file, so that it cannot hold both training and validation data."""
    return Path(path).is_file() or (Path(path) / "state.json").is_file()


def _json(index: Path) -> list[dict]:
    try:
        rows = json.loads(index.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{index} is not in UTF-8: {error}", 'write it again with encoding="utf-8"') from error
    except NOT_JSON as error:
        lines = str(error).startswith("Extra data")
        hint = "one object per line? then name it .jsonl" if lines else "restore the file from its source"
        raise UserError(f"{index} is not valid JSON: {error}", hint) from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{index} must hold a list of at least one row", "[{…}, {…}], not an object around it")
    return rows


def _parsed(content: bytes) -> Any:
    """A JSON text's value; None where it is not JSON."""
    try:
        return json.loads(content)
    except NOT_JSON:
        return None


def _file(file: Path) -> Rows:
    if file.suffix == ".json":
        return Rows(_json(file), file.parent, str(file))
    if file.suffix == ".parquet":
        return _tables().of_parquet([file], file.parent, str(file))
    if file.suffix != ".jsonl":
        raise UserError(f"{file}: a dataset file is .jsonl, .json or .parquet", "or give the folder that holds it")
    rows, broken, content = [], [], file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file}, line {line} is not in UTF-8: {error}", 'write the file again with encoding="utf-8"'
        ) from error
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except NOT_JSON as error:
            broken.append(f"{file}, line {number} is not valid JSON: {error}")
    if content.lstrip().startswith(b"[") and isinstance(_parsed(content), list):
        raise UserError(f"{file} holds a list, not one object per line", f"name it {file.stem}.json")
    if broken:  # report all at once; the contents of other rows are checked once these are fixed
        more = f"\n  … and {len(broken) - BROKEN} more" if len(broken) > BROKEN else ""
        raise UserError("\n  ".join(broken[:BROKEN]) + more, "one object per line")
    return Rows(rows, file.parent, str(file))


def _tables():
    """The module `tables`, imported late: `datasets` takes a second to import, and JSON rows do not need it."""
    from echoink.data import tables

    return tables
