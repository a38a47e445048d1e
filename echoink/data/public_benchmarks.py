"""Reads public benchmarks from their published files into rows of `samples`, for evaluation.

    dataset=omnibench  dataset.path=…   m-a-p/OmniBench: the .jsonl with mm_data/, or the hub's Parquet (split train)
    dataset=daily_omni dataset.path=…   qa.json beside Videos/<id>/<id>_video.mp4, <id>_audio.wav
    dataset=worldsense dataset.path=…   worldsense_qa.json beside videos/<id>.mp4, or lmms-lab's Parquet (split test)
    dataset=mmau       dataset.path=…   mmau-test-mini.json beside its sounds, or the hub's Parquet with sounds inside

`choices` reads options and answers; an option that is written twice is offered once (27 of MMAU's 1,000 rows have one,
which would make the right answer ambiguous).
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echoink.common.errors import UserError
from echoink.data.choices import choices
from echoink.data.readers import NOT_JSON, Rows, open_split


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is published."""

    files: tuple[str, ...]
    """Patterns of its index file below the folder."""
    splits: tuple[str, ...]
    """Names that its split may have in a table."""
    unfold: Callable[[Any], Iterable[dict]]
    """The questions in the index."""
    media: str
    """The folder of its media, beside the index or one level up; empty where paths start at the index."""
    convert: Callable[[dict, Path], dict]
    """Makes a row of `samples` from a question and the folder where paths start; with a problem_id if it has one."""


def open_benchmark(name: str, path: str, split: str | None = None) -> Rows:
    """The questions of a benchmark as rows of `samples`; an error takes the place of a question that cannot be read.

    Args:
        name: of `BENCHMARKS`.
        path: a folder, an index, or a hub id.
        split: of several tables; None: the first of those that are usual.

    Raises:
        UserError: nothing is found at the path, the index cannot be read, or it is no choice of splits.
    """
    benchmark, root = BENCHMARKS[name], Path(path)
    index = next((file for pattern in benchmark.files for file in sorted(root.glob(pattern))), None)
    index = root if root.is_file() and root.suffix in (".json", ".jsonl") else index
    if index is not None and split:
        raise UserError(f"dataset.split={split}: {index} is the only split", "leave it out, or name another index")
    if index is not None and index.suffix == ".json":
        try:
            rows = benchmark.unfold(json.loads(index.read_text(encoding="utf-8-sig")))
        except AttributeError as error:
            hint = "see the top of echoink/data/public_benchmarks.py"
            raise UserError(f"{index} is not an index of {name}", hint) from error
        except NOT_JSON as error:
            raise UserError(f"{index} is not valid JSON: {error}", "restore the file from its source") from error
        found = Rows(list(rows), index.parent, str(index))
    elif index is not None:
        found = open_split(str(index), "valid")
    else:
        wanted = (split,) if split else benchmark.splits
        found = next((rows for name in wanted if (rows := open_split(path, "valid", name))), None)
    if found is None:
        looked = f"{', '.join(benchmark.files)} and Parquet files of {split or ' or '.join(benchmark.splits)}"
        raise UserError(f"no {name} in {path}", f"looked for {looked}")
    folder = next((f for f in (found.folder, found.folder.parent) if (f / benchmark.media).is_dir()), found.folder)
    return Rows(_converted(found.rows, folder, benchmark), folder, found.where)


def _converted(rows: Iterable[dict], folder: Path, benchmark: Benchmark) -> Iterator[dict | UserError]:
    for row in rows:
        try:
            yield {"problem_type": "multiple choice", **benchmark.convert(row, folder)}
        except UserError as error:
            yield error
        except (KeyError, TypeError, AttributeError, ValueError, SyntaxError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else f"a field has another type: {error}"
            yield UserError(what)


def _question(row: dict, question: str, options: str, answer: str) -> dict:
    offered, solution = choices(row[options], row[answer])
    return {"problem": row[question], "options": offered, "solution": solution}


def _omnibench(row: dict, folder: Path) -> dict:
    paths = {"image": "mm_data/image/" + row["image_path"], "audio": "mm_data/audio/" + row["audio_path"]}
    found = {name: row.get(name) or path for name, path in paths.items()}
    return {
        **_question(row, "question", "options", "answer"),
        **({"problem_id": row["index"]} if "index" in row else {}),
        "data_type": "image_audio",
        "path": found,
        "data_source": "OmniBench",
        "task_type": row["task type"],
        "audio_type": row["audio type"],
    }


def _daily_omni(row: dict, folder: Path) -> dict:
    place = f"Videos/{row['video_id']}/{row['video_id']}"
    sound = f"{place}_audio.wav"
    has_file = (folder / sound).is_file()
    return {
        **_question(row, "Question", "Choice", "Answer"),
        # Without a data_type the video's own sound is heard, unless `dataset.soundtrack` says otherwise.
        **({"data_type": "video_audio"} if has_file else {}),
        "path": {"video": f"{place}_video.mp4"} | ({"audio": sound} if has_file else {}),
        "data_source": "Daily-Omni",
        "task_type": row["Type"],
        "duration": row["video_duration"],
    }


def _worldsense(row: dict, folder: Path) -> dict:
    return {
        **_question(row, "question", "candidates", "answer"),
        "path": {"video": f"videos/{row.get('video_id') or row['video']}.mp4"},
        "data_source": "WorldSense",
        "task_domain": row["task_domain"],
        "task_type": row["task_type"],
        "duration": row["duration"],
    }


def _worldsense_tasks(index: dict) -> Iterator[dict]:
    for name, video in index.items():
        shared = {key: value for key, value in video.items() if not re.fullmatch(r"task\d+", key)}
        for key, task in video.items():
            if re.fullmatch(r"task\d+", key):
                yield {"video_id": name, **shared, **task}


def _mmau(row: dict, folder: Path) -> dict:
    attributes = row.get("other_attributes") or {}
    row = {**row, **(json.loads(attributes) if isinstance(attributes, str) else attributes)}
    cell = row.get("audio") or row.get("context")
    return {
        **_question(row, "question" if "question" in row else "instruction", "choices", "answer"),
        **({"problem_id": row["id"]} if "id" in row else {}),
        "data_type": "audio",
        "path": {"audio": cell or str(row["audio_id"]).removeprefix("./")},
        "data_source": "MMAU",
        "task": row["task"],
        "sub_category": row.get("sub-category") or row.get("sub_category") or "",
        "difficulty": row["difficulty"],
    }


def _listing(index: list[dict] | dict[str, dict]) -> Iterable[dict]:
    return index.values() if isinstance(index, dict) else index


BENCHMARKS = {
    "omnibench": Benchmark(("dataset/*.jsonl", "*.jsonl"), ("train",), _listing, "mm_data", _omnibench),
    "daily_omni": Benchmark(("qa.json",), ("train",), _listing, "Videos", _daily_omni),
    "worldsense": Benchmark(("worldsense_qa.json",), ("test",), _worldsense_tasks, "videos", _worldsense),
    "mmau": Benchmark(("mmau-test-mini.json", "mmau*.json"), ("test_mini", "v05.15.25", "test"), _listing, "", _mmau),
}
"""By the name of `dataset.source`."""
