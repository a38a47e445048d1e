"""The reader of the official layout: what it reads, and what it says of each way a dataset can be wrong."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from echoink.common.errors import UserError
from echoink.data.media_check import MediaInfo, check_media, inspect
from echoink.data.profile import profile
from echoink.data.samples import Dropped, Sample, answer_positions, fingerprint, parse_rows, shares
from echoink.data.splits import read_split
from echoink.media.loaders import VideoCaps
from echoink.media.worker_pool import isolated

CAPS = VideoCaps(2, 4, 12544, 28)


def rows(dataset):
    return json.loads((dataset / "omni_rl_format_train.json").read_text())


@pytest.fixture
def broken(dataset, tmp_path):
    """A copy of the dataset in which row 3 is changed."""

    def change(edit) -> None:
        root = tmp_path / "copy"
        shutil.copytree(dataset, root)
        content = rows(root)
        edit(content[3])
        (root / "omni_rl_format_train.json").write_text(json.dumps(content))
        return root

    return change


def test_reads_every_field(dataset, samples):
    row, sample = rows(dataset)[5], samples[5]
    assert (sample.id, sample.problem, list(sample.options)) == (str(row["problem_id"]), row["problem"], row["options"])
    assert sample.image == (dataset / "train" / row["path"]["image"]).resolve()
    assert sample.audio.is_file() and sample.image.is_file()
    assert sample.fields == {"data_source": row["data_source"], "kind": row["kind"]}
    assert row["solution"] == f"<answer>{', '.join(sorted(sample.gold))}</answer>"


@pytest.mark.parametrize("layout", ["AVQA_R1", "AVQA-R1-6K/AVQA_R1"])
def test_finds_the_splits_where_the_archive_puts_them(dataset, tmp_path, layout):
    shutil.copytree(dataset, tmp_path / layout)
    assert len(read_split(tmp_path, "valid")) == 12


def test_limit(dataset):
    assert len(read_split(dataset, "train", 5)) == 5


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda row: row.update(solution="<answer>F</answer>"), "row 4 .*not among the options"),
        (lambda row: row.update(solution="B"), "row 4 .*the solution 'B' has no answer"),
        (lambda row: row.update(options=["A. only"]), "at least two"),
        (lambda row: row.update(options=["1. x", "2. y"]), 'option 1 must start with A.*(.|\n)*write "A. x"'),
        (lambda row: row.update(options=["A. x", "C. y"]), 'option 2 must start with B.*(.|\n)*write "B. y"'),
        (lambda row: row.update(options=["A", "B"]), 'option 1 must start with A.*(.|\n)*write "A."'),
        (lambda row: row.update(options=["A. x", "B. y", ""]), "option 3 must start with C.*(.|\n)*it is empty"),
        (lambda row: row.pop("options"), "without options(.|\n)*or a problem_type without them: "),
        (lambda row: row.update(problem_type="multiple_choice"), "did you mean 'multiple choice'"),
        (lambda row: row.update(problem_type="essay"), "problem_type 'essay' is not known"),
        (lambda row: row.update(data_type="smell"), "data_type 'smell' is not known"),
        (lambda row: row.pop("problem"), "row 4: no field problem"),
        (lambda row: row.update(problem_id=0), "problem_id 0 occurs more than once"),
        (
            lambda row: row.update(path={"image": "images/sample_3.jpg"}),
            "data_type image_audio needs path to hold 'audio'",
        ),
        (lambda row: row["path"].update(image="../../../etc/passwd"), "leaves the dataset folder"),
        (lambda row: row["path"].update(audio="/etc/passwd"), "leaves the dataset folder"),
        (lambda row: row["path"].update(audio="a\0b"), "leaves the dataset folder"),
    ],
)
def test_a_bad_row_is_named(broken, edit, message):
    with pytest.raises(UserError, match=message):
        read_split(broken(edit), "train")


def test_missing_folder_split_and_bad_json(tmp_path):
    with pytest.raises(UserError, match="dataset folder not found"):
        read_split(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="no split train in .*: no omni_rl_format_train.json, train.jsonl"):
        read_split(tmp_path, "train")
    for content, message in (("[{", "is not valid JSON"), ("[]", "at least one row"), ('{"a": 1}', "must hold a list")):
        (tmp_path / "omni_rl_format_train.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_split(tmp_path, "train")


def test_a_broken_file_names_its_sample(broken):
    root = broken(lambda row: None)
    (root / "train" / "audios" / "sample_3.wav").write_bytes(b"no sound")
    found = check_media(read_split(root, "train"), 10, CAPS)
    assert [place for place, each in enumerate(found) if isinstance(each, Dropped)] == [3]
    assert "sample 3: cannot read the sound" in found[3].reason and "sample_3.wav" in found[3].reason
    (root / "train" / "audios" / "sample_3.wav").unlink()
    assert "sample 3: file not found" in check_media(read_split(root, "train"), 10, CAPS)[3].reason


def test_a_file_that_crashes_its_decoder_names_its_sample_and_the_others_are_read(broken, monkeypatch, tmp_path):
    root = broken(lambda row: None)
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash/sitecustomize.py").write_text(
        "import os, signal, soundfile\n"
        "class SoundFile(soundfile.SoundFile):\n"
        "    def __init__(self, name):\n"
        "        if 'sample_3.wav' in str(name): os.kill(os.getpid(), signal.SIGSEGV)\n"
        "        super().__init__(name)\n"
        "soundfile.SoundFile = SoundFile\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "crash")
    monkeypatch.setattr("echoink.data.media_check.isolated", isolated)
    found = check_media(read_split(root, "train"), 10, CAPS)
    assert [place for place, each in enumerate(found) if isinstance(each, Dropped)] == [3]
    assert "SIGSEGV" in found[3].reason and "sample_3.wav" in found[3].reason
    assert found[3].reason.startswith("sample 3: ")


def test_files_that_several_questions_are_about_are_decoded_once(broken, monkeypatch):
    root = broken(lambda row: None)
    (root / "train" / "audios" / "sample_3.wav").write_bytes(b"no sound")
    once, decoded = read_split(root, "train"), []
    again = [replace(sample, id=f"again {sample.id}") for sample in once]

    def counting(work, items, processes):
        decoded.extend(items)
        return map(work, items)

    monkeypatch.setattr("echoink.data.media_check.isolated", counting)
    found = check_media([*once, *again], 10, CAPS)
    assert [sample.id for sample in decoded] == [sample.id for sample in once]
    assert found[len(once)] == found[0] and "sample again 3: cannot read" in found[len(once) + 3].reason


def test_further_fields_of_any_kind_are_kept_as_texts(tmp_path):
    row = {"problem": "Q?", "options": ["A. x", "B. y"], "solution": "<answer>B</answer>"}
    own = {"keywords": ["dog", "bark"], "weight": 0.5, "hard": False, "level": 3, "more": {"a": "ü"}, "none": None}
    (sample,), _ = parse_rows([{**row, **own}], tmp_path, "here")
    texts = {"keywords": '["dog", "bark"]', "weight": "0.5", "hard": "False", "level": "3", "more": '{"a": "ü"}'}
    assert sample.fields == texts and not sample.notes


def test_a_source_that_names_a_collection_is_warned_of():
    samples = [Sample(str(n), "Q?", (), "x", audio=Path("a"), fields={"audio_source": "AudioSet"}) for n in range(40)]
    infos = {f"valid {n}": MediaInfo((str(n),)) for n in range(40)}
    (warning,) = profile({"valid": samples}, {}, infos)["valid"]["warnings"]
    assert "audio_source 'AudioSet' stands for 40 files, which count as one" in warning
    few = {f"valid {n}": MediaInfo((str(n // 4),)) for n in range(40)}
    assert not profile({"valid": samples}, {}, few)["valid"]["warnings"], "ten files may be of one source"


def test_fingerprint_and_positions(samples):
    assert fingerprint(samples) == fingerprint(list(samples))
    assert fingerprint(samples) != fingerprint(samples[1:])
    assert sum(answer_positions(samples).values()) == pytest.approx(1)
    assert shares([{"A"}, {"A", "B"}]) == {"A": 0.75, "B": 0.25} and shares([]) == {}


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "images/../../x.jpg",
        "../set2/x.jpg",
        "link/x.jpg",
        "a\0b",
    ],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, path):
    folder, beside = tmp_path / "set", tmp_path / "set2"
    folder.mkdir()
    beside.mkdir()
    (beside / "x.jpg").write_bytes(b"x")
    (folder / "link").symlink_to(beside)
    row = {"problem": "?", "options": ["A. a", "B. b"], "solution": "<answer>A</answer>", "path": {"image": path}}
    _, (dropped,) = parse_rows([row], folder, "here")
    said = f"is a link to {beside}" if path.startswith("link") else "leaves the dataset folder"
    assert said in dropped.reason and "dataset.outside" in dropped.hint


@pytest.mark.parametrize("path", ["../set2/x.jpg", "link/x.jpg"])
def test_a_folder_beside_may_be_allowed_by_name(tmp_path, path):
    folder, beside = tmp_path / "set", tmp_path / "set2"
    folder.mkdir()
    beside.mkdir()
    (folder / "link").symlink_to(beside)
    row = {"problem": "?", "options": ["A. a", "B. b"], "solution": "<answer>A</answer>", "path": {"image": path}}
    ((sample,), dropped) = parse_rows([row], folder, "here", outside=[str(beside)])
    assert sample.image == beside / "x.jpg" and not dropped


@pytest.mark.parametrize("path", ["~/x.jpg", "x" * 4000, "a://b/x.jpg"])
def test_odd_paths_are_names_of_files_that_are_not_there(tmp_path, path):
    row = {"problem": "?", "options": ["A. a", "B. b"], "solution": "<answer>A</answer>", "path": {"image": path}}
    (sample,), _ = parse_rows([row], tmp_path, "here")
    found = inspect(sample, 1.0, VideoCaps(1, 2, 784, 28))
    assert isinstance(found, Dropped) and re.search("picture|file", found.reason)


@pytest.mark.parametrize("path", ["data:image/png;base64,AA", "x" * 5000])
def test_content_in_the_place_of_a_path_is_no_path_and_is_not_printed_whole(tmp_path, path):
    row = {"problem": "?", "options": ["A. a", "B. b"], "solution": "<answer>A</answer>", "path": {"image": path}}
    _, (dropped,) = parse_rows([row], tmp_path, "here")
    assert "… is not a path" in dropped.reason and len(dropped.reason) < 120 and "base64" in dropped.hint
