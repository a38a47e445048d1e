"""AVQA-R1-6K out of a source in OmniInstruct-v1's schema, with every kind of defect in it."""

import io
import json
import time
from collections import Counter

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

from echoink.common.errors import UserError
from echoink.curate import omni_instruct
from echoink.curate.__main__ import main
from echoink.data.media_check import MediaInfo, check_media
from echoink.data.splits import read_split
from echoink.media.loaders import load_image, load_sound
from tests.conftest import VIDEO
from tests.helpers import processes

WORDS = ["dog barking", "car horn", "rain", "piano"]


def encoded(make, **settings) -> bytes:
    file = io.BytesIO()
    make(file, **settings)
    return file.getvalue()


def image_bytes(seed: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    patches = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize((60, 40), Image.Resampling.BICUBIC)
    return encoded(lambda file: image.convert(mode).save(file, kind))


def audio_bytes(seed: int, rate: int = 22_050, channels: int = 2, kind: str = "FLAC") -> bytes:
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, (rate // 2, channels))
    return encoded(lambda file: soundfile.write(file, samples, rate, format=kind))


DEFECTS = [  # what is changed of a good row, the reason it is dropped for
    ({"source": "Music-AVQA2.0"}, "source Music-AVQA2.0"),
    ({"source": "avqa"}, "source avqa"),
    ({"answer": "thunder"}, "answer not among the options"),
    ({"answer": " rain"}, "answer not among the options"),
    ({"options": None}, "no options"),
    ({"options": []}, "no options"),
    ({"answer": "Rain"}, "answer not among the options"),
    ({"options": [*WORDS, "wind"], "answer": "wind"}, "answer beyond the fourth option"),
    ({"image": image_bytes(1, "RGBA")}, "image of mode RGBA"),
    ({"image": image_bytes(1, "P")}, "image of mode P"),
    ({"image": b"<html>"}, "image cannot be read"),
    ({"image": image_bytes(1, kind="JPEG")[:600]}, "image cannot be read"),
    ({"audio": b"nothing"}, "audio cannot be read"),
    ({"image": None}, "no image"),
    ({"audio": None}, "no audio"),
]


def rows(n: int, every: int, seed: int) -> tuple[list[dict], Counter]:
    """n rows of which each `every`th has the next defect; and how often each reason occurs."""
    made, reasons = [], Counter()
    for number in range(n):
        row = {
            "source": "AVQA",
            "question": f"What is heard in {number}?",
            "options": [*WORDS, "wind"] if number % 7 == 0 else WORDS,
            "answer": WORDS[number % 4],
            "image": image_bytes(seed + number, "L" if number % 11 == 0 else "RGB"),
            "audio": audio_bytes(seed + number),
            "audio_label": "{}",
            "original_meta": "{}",
        }
        if number % every == every - 1:
            change, reason = DEFECTS[number // every % len(DEFECTS)]
            row |= change
            reasons[reason] += 1
        made.append(row)
    return made, reasons


def table(made: list[dict]) -> datasets.Dataset:
    cells = [
        {**row, **{name: row[name] and {"bytes": row[name], "path": None} for name in ("image", "audio")}}
        for row in made
    ]
    return (
        datasets.Dataset.from_list(cells).cast_column("image", datasets.Image()).cast_column("audio", datasets.Audio())
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A source of 330 rows as a `datasets` folder; train and valid share one sound."""
    root = tmp_path_factory.mktemp("source") / "omni"
    train, reasons = rows(240, 5, 0)
    valid, _ = rows(90, 30, 1000)
    valid[0]["audio"] = train[0]["audio"]
    valid[2] = valid[1]
    datasets.DatasetDict({"train": table(train), "valid": table(valid)}).save_to_disk(root)
    return root, train, reasons


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "AVQA_R1"
    main([f"source={source[0]}", f"output={output}", "expect=[192,87]"])
    return output


def test_rows_ids_letters_and_files_are_the_official_ones(source, made):
    _, train, _ = source
    index = json.loads((made / "omni_rl_format_train.json").read_text())
    assert len(index) == 192
    for row in index:
        number = row["problem_id"]
        assert row == {
            "problem_id": number,
            "problem": train[number]["question"],
            "data_type": "image_audio",
            "problem_type": "multiple choice",
            "options": [f"{letter}. {word}" for letter, word in zip("ABCD", WORDS, strict=True)],
            "solution": f"<answer>{'ABCD'[number % 4]}</answer>",
            "path": {"image": f"images/sample_{number}.jpg", "audio": f"audios/sample_{number}.wav"},
            "data_source": "OmniInstruct_v1-AVQA",
        }
        assert number % 5 != 4, "a row with a defect was kept"
    kept = {row["problem_id"] for row in index}
    assert len(list((made / "train/images").iterdir())) == len(list((made / "train/audios").iterdir())) == len(kept)


def test_the_media_are_those_of_the_source(source, made):
    _, train, _ = source
    samples = read_split(made, "train")
    assert all(isinstance(info, MediaInfo) for info in check_media(samples, 10, VIDEO))
    with Image.open(made / "train/images/sample_0.jpg") as file:
        assert (file.format, file.mode, file.size) == ("JPEG", "L", (60, 40))
    before = np.asarray(Image.open(io.BytesIO(train[1]["image"])), float)
    assert np.abs(np.asarray(load_image(samples[1].image), float) - before).mean() < 5
    heard = load_sound(samples[1].audio, 10).samples
    (made / "probe.flac").write_bytes(train[1]["audio"])
    assert np.allclose(heard, load_sound(made / "probe.flac", 10).samples, atol=1e-4)
    assert soundfile.info(samples[1].audio).format == "WAV"


def test_the_report_counts_every_reason(source, made):
    report = json.loads((made / "curation.json").read_text())
    assert report["train"]["dropped"] == dict(source[2]) and sum(source[2].values()) == 48
    assert set(source[2]) == {reason for _, reason in DEFECTS}
    assert report["valid"]["duplicates"] == 1 and report["train"]["duplicates"] == 0
    assert report["train"]["media_also_in"] == {"valid": 1}
    assert sum(report["train"]["answer_positions"].values()) == pytest.approx(1)
    assert report["train"]["options"] == {"4": 192}
    assert not list(made.rglob("*.jsonl")) and not list(made.rglob("*.part"))


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(source, made, tmp_path, monkeypatch):
    output, calls = tmp_path / "AVQA_R1", []
    write = omni_instruct.write_media

    def stops(row, folder, one):
        calls.append((folder.name, one["problem_id"]))
        if len(calls) == 100:
            raise KeyboardInterrupt
        return write(row, folder, one)

    monkeypatch.setattr(omni_instruct, "write_media", stops)
    with pytest.raises(KeyboardInterrupt):
        main([f"source={source[0]}", f"output={output}"])
    ledger = output / "train" / omni_instruct.LEDGER
    ledger.write_text(ledger.read_text() + '{"problem_id": 1')  # and its last line was cut off
    main([f"source={source[0]}", f"output={output}"])
    assert len(calls) == len(set(calls)) + 1, "only the row that was interrupted was done again"
    for path in made.rglob("*.jp*g"), made.rglob("*.wav"), made.rglob("*.json"):
        for file in path:
            assert (output / file.relative_to(made)).read_bytes() == file.read_bytes(), file


def test_a_second_process_does_not_write_beside_the_first(source, tmp_path):
    output = tmp_path / "AVQA_R1"
    output.mkdir()
    code = f"from echoink.run_folder.folder import take; from pathlib import Path; take(Path({str(output)!r}))"
    started = processes.start(tmp_path, code=f"{code}; print('held', flush=True); import time; time.sleep(60)")
    while "held" not in started.text()[0]:
        time.sleep(0.05)
    try:
        with pytest.raises(UserError, match="another process is writing to"):
            main([f"source={source[0]}", f"output={output}"])
    finally:
        started.kill()


def test_a_folder_that_holds_another_dataset_is_no_output(source, tmp_path):
    (tmp_path / "mine/train/images").mkdir(parents=True)
    (tmp_path / "mine/train/images/sample_0.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds other files"):
        main([f"source={source[0]}", f"output={tmp_path}/mine"])
    assert (tmp_path / "mine/train/images/sample_0.jpg").read_bytes() == b"mine"
    with pytest.raises(UserError) as error:
        main([f"source={source[0]}", f"output={tmp_path}/again", "keep=[nothing]"])
    assert "holds other files" not in str(error.value)
    main([f"source={source[0]}", f"output={tmp_path}/again", "keep=[Music-AVQA2.0]", "splits=[train]"])


def test_other_sources_and_mistakes(source, tmp_path):
    main([f"source={source[0]}", f"output={tmp_path}/music", "keep=[Music-AVQA2.0]", "splits=[train]"])
    (row, *_) = json.loads((tmp_path / "music/omni_rl_format_train.json").read_text())
    assert row["data_source"] == "OmniInstruct_v1-Music-AVQA2.0"
    with pytest.raises(UserError, match="is finished"):
        main([f"source={source[0]}", f"output={tmp_path}/music", "splits=[train]"])
    music = ["keep=[Music-AVQA2.0]", "splits=[train]", "expect=[7]"]
    with pytest.raises(UserError, match=r"made \[\d+\] rows, expected \[7\]"):
        main([f"source={source[0]}", f"output={tmp_path}/few", *music])
    with pytest.raises(UserError, match="has no split dev"):
        main([f"source={source[0]}", f"output={tmp_path}/no", "splits=[dev]"])
    with pytest.raises(UserError, match="cannot read sauce=1\\n .*did you mean source="):
        main(["sauce=1"])
    with pytest.raises(UserError, match="give output=… and source=…"):
        main(["splits=[train]"])
    other = datasets.Dataset.from_list([{"question": "What?", "answer": "rain", "category": "x"}])
    datasets.DatasetDict({"train": other}).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match="the set without _v1 has not"):
        main([f"source={tmp_path}/other", f"output={tmp_path}/o", "splits=[train]"])


def made_of(tmp_path, **changes):
    """What becomes of one row: its row in the index, or the reason for which it is dropped."""
    row = {"source": "AVQA", "question": "What?", "options": WORDS, "answer": "rain", "image": image_bytes(0)}
    row |= {"audio": audio_bytes(0), **changes}
    made = omni_instruct.convert(row, 0, ["AVQA"])
    for name in ("images", "audios"):
        (tmp_path / name).mkdir(exist_ok=True)
    return (isinstance(made, dict) and omni_instruct.write_media(row, tmp_path, made)) or made


def wav_bytes(samples, subtype="PCM_16"):
    return encoded(lambda file: soundfile.write(file, samples, 16_000, subtype, format="WAV"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"audio": wav_bytes(np.full(16_000, 0.1))[:-16_000]}, "audio is cut off"),
        ({"audio": wav_bytes(np.full(160, 0.1))}, "audio is too short"),
        ({"audio": wav_bytes(np.zeros(0))}, "audio is empty"),
        ({"audio": wav_bytes(np.append(np.zeros(9_000), np.nan), "FLOAT")}, "audio holds samples that are not finite"),
        ({"image": encoded(lambda file: Image.new("RGB", (900, 2)).save(file, "PNG"))}, "image is too narrow"),
        ({"options": ["rain", "", "wind"]}, "an option is empty"),
        ({"options": [*WORDS[:3], None], "answer": WORDS[0]}, "an option is null"),
        ({"options": ["rain"]}, "one option"),
        ({"question": " "}, "the question is empty"),
        ({"question": None}, "the question is empty"),
    ],
)
def test_what_the_official_rules_keep_is_kept_and_what_training_refuses_is_noted(changes, reason, tmp_path):
    made = made_of(tmp_path, **changes)
    assert made[omni_instruct.NOTE] == reason
    assert all((tmp_path / made["path"][name]).is_file() for name in ("image", "audio"))


def test_an_option_beyond_the_fourth_may_be_null(tmp_path):
    made = made_of(tmp_path, options=[*WORDS, None], answer=WORDS[0])
    assert omni_instruct.NOTE not in made and len(made["options"]) == 4


def test_notes_are_counted_beside_what_is_dropped(tmp_path, capsys):
    changes = ({}, {"question": ""}, {"answer": "x"})
    kept = [row | change for row, change in zip(rows(3, 99, 0)[0], changes, strict=True)]
    datasets.DatasetDict({"train": table(kept)}).save_to_disk(tmp_path / "source")
    main([f"source={tmp_path}/source", f"output={tmp_path}/made", "splits=[train]", "expect=[2]"])
    found = json.loads((tmp_path / "made/curation.json").read_text())["train"]
    assert found["rows"] == 2 and found["kept_all_the_same"] == {"the question is empty": 1}
    assert "1 kept as the official rules say: the question is empty" in (" ".join(capsys.readouterr().out.split()))
    index = json.loads((tmp_path / "made/omni_rl_format_train.json").read_text())
    assert not any(omni_instruct.NOTE in row for row in index)


def test_sounds_above_full_scale_are_not_clipped(tmp_path):
    loud = np.sin(np.arange(16_000) / 5) * 3
    assert isinstance(made_of(tmp_path, audio=wav_bytes(loud, "FLOAT")), dict)
    samples, _ = soundfile.read(tmp_path / "audios/sample_0.wav")
    assert np.abs(samples - loud).max() < 1e-3


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_sound_whose_header_does_not_know_its_length_is_written_as_it_is_heard(tmp_path, kind):
    """As a recorder that was killed leaves a WAV, and a stream a FLAC."""
    content = io.BytesIO()
    soundfile.write(content, np.sin(np.arange(8 * 16_000) / 20), 16_000, format=kind)
    raw = bytearray(content.getvalue())
    if kind == "WAV":
        at = raw.index(b"data") + 4
        raw[4:8] = raw[at : at + 4] = bytes(4)
    else:  # the 36 bits of the number of samples, in the STREAMINFO block
        raw[21] &= 0xF0
        raw[22:26] = bytes(4)
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    made = {"problem_id": 0, "path": {"image": "image.jpg", "audio": "audio.wav"}}
    row = {"image": {"bytes": picture.getvalue()}, "audio": {"bytes": bytes(raw)}}
    assert omni_instruct.write_media(row, tmp_path, made) is None and omni_instruct.NOTE not in made
    assert soundfile.info(tmp_path / "audio.wav").duration == pytest.approx(8, abs=0.01)


def test_a_split_that_is_not_there_is_said_before_another_is_made(source, tmp_path):
    with pytest.raises(UserError, match="has no split dev"):
        main([f"source={source[0]}", f"output={tmp_path}/out", "splits=[train,dev]"])
    assert not (tmp_path / "out").exists()


def test_options_that_bring_letters_get_no_second_ones(tmp_path):
    made = made_of(tmp_path, options=["A. dog", "B. rain"], answer="B. rain")
    assert (made["options"], made["solution"]) == (["A. dog", "B. rain"], "<answer>B</answer>")
