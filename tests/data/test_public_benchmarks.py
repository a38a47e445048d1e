"""Readers of other benchmarks, on small files made in their published formats."""

import json

import datasets
import pytest

from echoink.common.errors import UserError
from echoink.data.check import lines as lines_of
from echoink.data.check import look_through
from echoink.data.media_check import MediaInfo, check_media
from echoink.data.public_benchmarks import BENCHMARKS, choices, open_benchmark
from echoink.data.samples import parse_rows
from echoink.data.splits import load
from tests.conftest import VIDEO
from tests.helpers.configs import config_of
from tests.helpers.files import picture, sound, video


@pytest.mark.parametrize(
    ("options", "answer", "letters", "solution"),
    [
        (["Man", "Woman"], "Woman", ["A. Man", "B. Woman"], "B"),
        (["(A) Man", "(B) Woman"], "(B) Woman", ["A. Man", "B. Woman"], "B"),
        (["A. Man", "B. Woman"], "B", ["A. Man", "B. Woman"], "B"),
        (["A.  Man", "B. Woman"], "A", ["A. Man", "B. Woman"], "A"),
        (["Man", "Woman"], "(B)", ["A. Man", "B. Woman"], "B"),
        (["A. B", "B. A", "C. C"], "A", ["A. B", "B. A", "C. C"], "A"),  # lettered notes
        (["C", "B", "A"], "A", ["A. C", "B. B", "C. A"], "C"),  # notes, not letters
        (["x", "y", "x", "z"], "z", ["A. x", "B. y", "C. z"], "C"),  # written twice, offered once
        (["x", "y", "x", "z"], "x", ["A. x", "B. y", "C. z"], "A"),
        (["1 ", "2"], " 1", ["A. 1", "B. 2"], "A"),
    ],
)
def test_choices(options, answer, letters, solution):
    assert choices(options, answer) == (letters, f"<answer>{solution}</answer>")


@pytest.mark.parametrize(("options", "answer"), [(["x", "y"], "z"), (["A. x", "B. y"], "C"), (["x", "y"], "None")])
def test_an_answer_that_is_not_offered_is_refused(options, answer):
    with pytest.raises(UserError, match="not among the options"):
        choices(options, answer)


def read(name, root):
    found = open_benchmark(name, str(root))
    return parse_rows(found.rows, found.folder, found.where)


def check(samples):
    assert all(isinstance(info, MediaInfo) for info in check_media(samples, 10, VIDEO))


OMNIBENCH = {
    "task type": "Action and Activity",
    "audio type": "speech",
    "question": "What are they doing?",
    "audio content": "Two people talk.",
    "image content": "A table.",
    "audio_path": "2_009.mp4.mp3",
    "image_path": "2_008.png",
    "index": 7,
    "answer": "They  play.",
    "options": ["They read.", "They  play.", "They sing.", "They sleep."],
}


def test_omnibench_lines(tmp_path):
    (tmp_path / "dataset").mkdir()
    lines = [OMNIBENCH, {**OMNIBENCH, "index": 8, "answer": "They run."}]
    (tmp_path / "dataset/batch-5_1142_20240817.jsonl").write_text("\n".join(map(json.dumps, lines)))
    picture(tmp_path / "mm_data/image/2_008.png")  # beside dataset/, as the repository has it
    sound(tmp_path / "mm_data/audio/2_009.wav").rename(tmp_path / "mm_data/audio/2_009.mp4.mp3")
    (sample,), (dropped,) = read("omnibench", tmp_path)
    assert (sample.id, sample.solution, sample.options[1]) == ("7", "B", "B. They  play.")
    assert sample.fields == {
        "data_source": "OmniBench",
        "task_type": "Action and Activity",
        "audio_type": "speech",
    }, "descriptions of the media stay out"
    assert "They run." in dropped.reason
    check([sample])
    found = look_through(config_of("dataset=omnibench", f"dataset.path={tmp_path}"))
    shown = " ".join(text for _, text in lines_of(found))
    assert "1 of 2 rows can be used" in shown and "no row of train" not in shown, "a benchmark has no train"


def test_omnibench_parquet(tmp_path):
    image, audio = picture(tmp_path / "p.png").read_bytes(), sound(tmp_path / "s.wav").read_bytes()
    row = {**OMNIBENCH, "image": {"bytes": image, "path": None}, "audio": {"bytes": audio, "path": None}}
    (tmp_path / "hub/data").mkdir(parents=True)
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "hub/data/train-00000-of-00001.parquet")
    (sample,), _ = read("omnibench", tmp_path / "hub")
    check([sample])
    assert sample.solution == "B"


def test_daily_omni(tmp_path):
    row = {
        "Question": "What happened?",
        "Choice": ["A. First", "B. Second", "C. Third", "D. Fourth"],
        "Answer": "B",
        "video_id": "-x1",
        "Type": "AV Event Alignment",
        "content_parent_category": "Lifestyle",
        "video_duration": "30s",
        "Explaination": None,
    }
    (tmp_path / "qa.json").write_text(json.dumps([row, {**row, "video_id": "y2", "Answer": "D"}]))
    video(tmp_path / "Videos/-x1/-x1_video.mp4")
    video(tmp_path / "Videos/y2/y2_video.mp4", with_sound=False)
    sound(tmp_path / "Videos/y2/y2_audio.wav")
    samples, dropped = read("daily_omni", tmp_path)
    assert not dropped and [s.solution for s in samples] == ["B", "D"]
    assert set(samples[0].media) == {"video"} and set(samples[1].media) == {"video", "audio"}
    assert samples[0].asks_for_soundtrack and samples[0].fields["duration"] == "30s"
    assert samples[1].data_type.value == "video_audio"
    check(samples)
    (tmp_path / "qa.json").write_text(json.dumps({"Entry_0": row}))
    assert len(read("daily_omni", tmp_path)[0]) == 1


WORLDSENSE = {
    "task_domain": "Recognition",
    "task_type": "Temporal Localization",
    "question": "When do they cheer?",
    "answer": "C",
    "candidates": ["A. In the middle.", "B. Throughout.", "C. At the end."],
}


def test_worldsense(tmp_path):
    index = {
        "UYkFSXsh": {
            "video_id": "UYkFSXsh",
            "duration": "1-2min",
            "video_caption": "The video\u00a0begins",
            "audio_class": ["Speech"],
            "task0": WORLDSENSE,
            "task1": {**WORLDSENSE, "answer": "D"},
        },
        "other": {"video_id": "other", "duration": "<1min", "task0": WORLDSENSE},
    }
    (tmp_path / "worldsense_qa.json").write_text(json.dumps(index))
    for name in index:
        video(tmp_path / f"videos/{name}.mp4")
    samples, (dropped,) = read("worldsense", tmp_path)
    assert [s.solution for s in samples] == ["C", "C"] and len(samples[0].options) == 3
    assert samples[0].fields["task_domain"] == "Recognition" and "video_caption" not in samples[0].fields
    assert "row 2" in dropped.reason and "'D'" in dropped.reason
    check(samples)


def test_worldsense_parquet(tmp_path):
    row = {**WORLDSENSE, "index": 0, "video": "abc", "video_path": "abc.mp4", "duration": "<1min"}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "data/test-00000-of-00001.parquet")
    (sample,), _ = read("worldsense", tmp_path)
    assert str(sample.video).endswith("videos/abc.mp4") and sample.solution == "C"


MMAU = {
    "id": "3fe64f3d",
    "audio_id": "./test-mini-audios/3fe64f3d.wav",
    "question": "Who speaks?",
    "choices": ["Man", "Woman", "Man", "Robot"],
    "answer": "Robot",
    "dataset": "AudioSet",
    "task": "sound",
    "split": "test-mini",
    "category": ["Reasoning"],
    "sub-category": "Acoustic Source Inference",
    "difficulty": "medium",
}


def test_mmau_json(tmp_path):
    without = {key: value for key, value in MMAU.items() if key not in ("id", "answer")}
    (tmp_path / "mmau-test-mini.json").write_text(json.dumps([MMAU, without]))
    sound(tmp_path / "test-mini-audios/3fe64f3d.wav")
    (sample,), (dropped,) = read("mmau", tmp_path)
    assert (sample.id, sample.options, sample.solution) == ("3fe64f3d", ("A. Man", "B. Woman", "C. Robot"), "C")
    assert sample.fields["sub_category"] == "Acoustic Source Inference" and sample.data_type.value == "audio"
    assert "no field 'answer'" in dropped.reason
    check([sample])


@pytest.mark.parametrize("form", ["context", "audio"])
def test_mmau_tables(tmp_path, form):
    cell = {"bytes": sound(tmp_path / "s.wav").read_bytes(), "path": None}
    lettered = ["(A) Man", "(B) Woman"]
    rest = {"task": "speech", "sub-category": "x", "difficulty": "easy"}
    if form == "context":
        row = {"context": cell, "instruction": "Who?", "choices": lettered, "answer": "(B) Woman"}
        row["other_attributes"] = json.dumps({"id": "q1", **rest})
        name = "test_mini.parquet"
    else:
        row = {"audio": cell, "question": "Who?", "choices": "['Man', 'Woman']", "answer": "Woman", "id": "q1"}
        row |= {"task": "speech", "sub_category": "x", "difficulty": "easy"}
        name = "v05.15.25-00000-of-00001.parquet"
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "hub" / name)
    (sample,), _ = read("mmau", tmp_path / "hub")
    assert (sample.id, sample.options, sample.solution) == ("q1", ("A. Man", "B. Woman"), "B")
    check([sample])


def test_of_several_splits_the_one_with_answers_is_taken_or_the_one_that_is_named(tmp_path):
    """As on the hub, where `test` has no answers."""
    cell = {"bytes": sound(tmp_path / "s.wav").read_bytes(), "path": None}
    row = {"audio": cell, "question": "Who?", "choices": "['Man', 'Woman']", "task": "speech", "difficulty": "easy"}
    for split, answer in (("test", ""), ("test_mini", "Woman")):
        table = datasets.Dataset.from_list([row | {"answer": answer, "id": split, "sub_category": "x"}])
        table.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    config = config_of("dataset=mmau", f"dataset.path={tmp_path}", "task=eval")
    (sample,) = load(config.dataset, config.eval, config.model, train=False).valid
    assert sample.id == "test_mini"
    found = open_benchmark("mmau", str(tmp_path), "test")
    assert parse_rows(found.rows, found.folder, found.where)[1][0].reason.endswith("the answer is empty")
    (tmp_path / "mmau-test-mini.json").write_text(json.dumps([MMAU]))
    with pytest.raises(UserError, match=r"dataset\.split=test: .* is the only split"):
        open_benchmark("mmau", str(tmp_path), "test")


def test_a_video_of_a_benchmark_is_asked_about_without_its_sound_if_that_is_asked_for(tmp_path):
    (tmp_path / "worldsense_qa.json").write_text(json.dumps({"v": {"duration": "1min", "task0": WORLDSENSE}}))
    video(tmp_path / "videos/v.mp4")
    for wanted, kind in (("true", "video_audio"), ("false", "video")):
        words = ["dataset=worldsense", f"dataset.path={tmp_path}", f"dataset.soundtrack={wanted}", "task=eval"]
        config = config_of(*words)
        (sample,) = load(config.dataset, config.eval, config.model, train=False).valid
        assert sample.data_type.value == kind


@pytest.mark.parametrize("name", BENCHMARKS)
def test_nothing_there_says_what_was_looked_for(tmp_path, name):
    with pytest.raises(UserError, match="looked for"):
        open_benchmark(name, str(tmp_path))


def test_a_benchmark_is_for_evaluation(tmp_path):
    (tmp_path / "mmau-test-mini.json").write_text(json.dumps([MMAU]))
    sound(tmp_path / "test-mini-audios/3fe64f3d.wav")
    config = config_of("dataset=mmau", f"dataset.path={tmp_path}", "task=eval")
    assert len(load(config.dataset, config.eval, config.model, train=False).valid) == 1
    with pytest.raises(UserError, match="no split train"):
        load(config.dataset, config.eval, config.model, train=True)
