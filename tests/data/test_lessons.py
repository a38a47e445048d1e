"""What a model is taught before GRPO: responses that the rewards pay in full, out of the training side alone."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from echoink.common.console import progress
from echoink.common.errors import UserError
from echoink.data.open_media import lessons
from echoink.data.open_media.questions import FORMS, Side, Writer
from echoink.data.samples import parse_rows
from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.format import format_reward
from tests.helpers.files import picture, sound

CLASSES = ("dog", "cat", "cow", "bell", "saw", "car")


def drawn(folder: Path, side: str, number: int) -> list[dict]:
    """Rows of every form as the set has them, with their files, whose names say the side."""
    names = {name: [f"{side}:{name}{n}" for n in range(2)] for name in CLASSES}
    kinds = {name: "animal" if name in CLASSES[:3] else "thing" for name in CLASSES}
    writer = Writer(Side(names, names, kinds, {one for of in names.values() for one in of}), 0)
    rows = []
    for place in range(number):
        form = list(FORMS)[place % len(FORMS)]
        asked, path = writer.draw(form, place // len(FORMS)), {}
        if asked.heard:
            path["audio"] = f"audios/{'+'.join(asked.heard).replace(':', '_')}.wav"
            sound(folder / side / path["audio"], seconds=0.3)
        if asked.seen:
            path["image"] = f"images/{asked.seen.replace(':', '_')}.png"
            picture(folder / side / path["image"])
        rows.append(
            {"problem_id": place, "problem": asked.text, "problem_type": asked.problem_type, "path": path, "kind": form,
             "options": [f"{letter}. {text}" for letter, text in zip("ABCD", asked.options, strict=False)],
             "solution": f"<answer>{asked.answer}</answer>", "heard": asked.heard_class, "seen": asked.seen_class}
        )  # fmt: skip
    (folder / side / f"omni_rl_format_{side}.json").write_text(json.dumps(rows))
    return rows


@pytest.fixture
def split(tmp_path) -> Path:
    folder = tmp_path / "recordings"
    for side in ("train", "valid"):
        for room in ("audios", "images"):
            (folder / side / room).mkdir(parents=True)
        drawn(folder, side, 66)
    return folder


def read(folder: Path, side: str) -> list[dict]:
    return json.loads((folder / f"omni_rl_format_{side}.json").read_text())


def test_every_response_is_right_in_the_form_and_says_what_is_heard_and_seen(split):
    rows = read(split / "train", "train")
    assert Counter(row["kind"] for row in rows).keys() == FORMS.keys()
    samples, dropped = parse_rows(rows, split / "train", "here")
    assert not dropped
    for row, sample in zip(rows, samples, strict=True):
        text = lessons.response(row)
        assert (
            accuracy_reward(text, sample.problem_type, sample.options, sample.solution) == 1
            and format_reward(text) == 1
        ), text
        needs = {"heard": "heard", "seen": "seen"}.get(row["kind"].removesuffix("_name"))
        for field in filter(None, [needs] if needs else ["heard", "seen"] * (row["kind"] in ("pair", "rule"))):
            assert row[field] in text.partition("</think>")[0]


def test_lessons_come_of_the_training_side_alone_and_every_recording_is_varied(split, tmp_path):
    made = lessons.write(split, tmp_path / "lessons", copies=3, answers=20, seed=0, bar=progress)
    rows = read(made.answers, "train")
    files = {Path(path) for row in rows for path in row["path"].values()}
    files |= {file for file, _ in made.sounds + made.pictures}
    assert not any(file.name.startswith("valid") for file in files)
    assert all(name in file.name for file, name in made.sounds + made.pictures)
    assert len(made.sounds) % 3 == 0 and len({file for file, _ in made.sounds}) == len(made.sounds)
    for place in range(0, len(made.sounds), 3):
        first, second, third = (soundfile.read(file)[0] for file, _ in made.sounds[place : place + 3])
        assert len(first) == 4800 and not np.array_equal(second[:4000], third[:4000])
        assert max(abs(second).max(), abs(third).max()) <= 1
    written = {file: file.stat().st_mtime_ns for file, _ in made.sounds}
    again = lessons.write(split, tmp_path / "lessons", copies=3, answers=20, seed=0, bar=progress)
    assert again == made and read(again.answers, "train") == rows
    assert written == {file: file.stat().st_mtime_ns for file, _ in again.sounds}, "variants are not written again"
    made.sounds[0][0].unlink()
    assert lessons.write(split, tmp_path / "lessons", copies=3, answers=20, seed=0, bar=progress) == made
    assert made.sounds[0][0].is_file(), "what is missing is written"
    written = {file: file.stat().st_mtime_ns for file, _ in made.sounds}
    source = next((split / "train/audios").glob(f"{made.sounds[0][0].stem.removesuffix('_0')}.wav"))
    sound(source, seed=7, seconds=0.3)
    lessons.write(split, tmp_path / "lessons", copies=3, answers=20, seed=0, bar=progress)
    assert all(written[file] != file.stat().st_mtime_ns for file, _ in made.sounds), "a recording has changed"
    others = lessons.write(split, tmp_path / "lessons", copies=3, answers=20, seed=1, bar=progress)
    assert all(written[file] != file.stat().st_mtime_ns for file, _ in others.sounds)
    captions = [row for row in rows if len(row["path"]) == 1 and row["kind"] in ("heard_name", "seen_name")]
    assert len(captions) == 20 and len(rows) - len(captions) == 20
    assert len(read(made.answers, "valid")) == 66
    for side in ("train", "valid"):
        given = read(made.answers, side)
        samples, dropped = parse_rows(given, made.answers / side, "here", outside=[str(split), str(made.answers)])
        assert len(samples) == len(given) and not dropped
    held = made.held_sounds + made.held_pictures
    assert held and all(file.name.startswith("valid") and name in file.name for file, name in held)
    assert "variants" in made.says()


def test_the_same_seed_makes_the_same_lessons(split, tmp_path):
    made = []
    for number, seed in enumerate((1, 1, 2)):
        found = lessons.write(split, tmp_path / str(number), copies=2, answers=10, seed=seed, bar=progress)
        asked = [{**row, "path": None} for row in read(found.answers, "train")]
        made.append(([file.read_bytes() for file, _ in found.sounds], asked))
    assert made[0] == made[1] and made[0][0] != made[2][0] and made[0][1] != made[2][1]


def test_a_split_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="omni_rl_format_train") as refused:
        lessons.write(tmp_path / "none", tmp_path / "out", 1, answers=1, seed=0, bar=progress)
    assert "data get open_media" in refused.value.hint
