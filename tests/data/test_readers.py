"""Rows are the same wherever they are stored, and each of a dataset's faults is named."""

import base64
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import soundfile
from PIL import Image

from echoink.common.errors import UserError
from echoink.data import tables
from echoink.data.media_check import MediaInfo, check_media
from echoink.data.profile import profile, shortened
from echoink.data.readers import open_split
from echoink.data.samples import DataType, Dropped, Sample, parse_rows
from echoink.data.splits import Splits, hold_out, joined, load, read_split
from echoink.media.loaders import Embedded, load_image
from tests.conftest import VIDEO
from tests.helpers.configs import config_of
from tests.helpers.files import picture, sound, video


def rows(root, split="train"):
    return json.loads((root / f"omni_rl_format_{split}.json").read_text())


def essence(sample):
    return (sample.id, sample.problem, sample.options, sample.solution, sample.data_type, sample.problem_type)


@pytest.fixture(scope="module")
def forms(dataset, tmp_path_factory):
    """The same split in every form: path by name."""
    root = tmp_path_factory.mktemp("forms")
    lines = [
        {**row, "path": {name: f"train/{path}" for name, path in row["path"].items()}} for row in rows(dataset)[:6]
    ]
    shutil.copytree(dataset / "train", root / "lines" / "train")
    (root / "lines" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    inside = []
    for row in rows(dataset)[:6]:
        cells = {name: (dataset / "train" / path).read_bytes() for name, path in row["path"].items()}
        inside.append({**{key: value for key, value in row.items() if key != "path"}, **cells})
    # a table has every column in every row: some say their chance, most say null
    table = datasets.Dataset.from_list(
        [{"chance": None, **row, **{n: {"bytes": row[n], "path": None} for n in ("image", "audio")}} for row in inside]
    )
    table = table.cast_column("image", datasets.Image()).cast_column("audio", datasets.Audio())
    datasets.DatasetDict({"train": table, "validation": table.select([5, 0])}).save_to_disk(root / "saved")
    (root / "parquet" / "data").mkdir(parents=True)
    table.to_parquet(root / "parquet" / "data" / "train-00000-of-00001.parquet")
    (root / "base64").mkdir()
    # As tools write it: with line ends, and in the form for addresses.
    codes = {"image": base64.encodebytes, "audio": base64.urlsafe_b64encode}
    coded = [{**row, **{n: {"bytes": code(row[n]).decode()} for n, code in codes.items()}} for row in inside]
    (root / "base64" / "train.jsonl").write_text("\n".join(map(json.dumps, coded)))
    return root


@pytest.mark.parametrize("form", ["lines", "saved", "parquet", "base64"])
def test_every_form_gives_the_same_samples(dataset, forms, form):
    wanted, found = read_split(dataset, "train", 6), read_split(forms / form, "train")
    assert [essence(sample) for sample in found] == [essence(sample) for sample in wanted]
    assert [sample.fields for sample in found] == [sample.fields for sample in wanted]
    for one, other in zip(wanted, found, strict=True):
        assert load_image(one.image).tobytes() == load_image(other.image).tobytes()
    assert all(isinstance(result, MediaInfo) for result in check_media(found, 10, VIDEO))
    assert isinstance(found[0].image, Embedded) == (form != "lines")


def test_lists_in_json_files_are_splits_where_there_is_no_other_form(tmp_path):
    row = {"problem": "Q?", "options": ["A. x", "B. y"], "solution": "<answer>B</answer>"}
    for name, question in (("train.json", "Q?"), ("validation.json", "R?")):
        (tmp_path / name).write_text(json.dumps([row | {"problem": question}], indent=1))
    assert [read_split(tmp_path, split)[0].problem for split in ("train", "valid")] == ["Q?", "R?"]
    assert open_split(str(tmp_path), "valid").name == "validation"
    (tmp_path / "train.jsonl").write_text(json.dumps(row | {"problem": "S?"}))
    assert read_split(tmp_path, "train")[0].problem == "S?"
    (tmp_path / "train.json").replace(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match="holds a list, not one object per line\n.*name it train.json"):
        read_split(tmp_path, "train")


def test_parquet_files_whose_names_begin_alike_are_splits_of_their_own(tmp_path):
    names = ("train-00000-of-00002-1a2b", "train-00001-of-00002-3c4d", "train_hard", "test_0", "testmini")
    for size, name in enumerate(names, 1):
        rows = [{"problem": f"{name} {n}", "options": ["A. x", "B. y"], "solution": "B"} for n in range(size)]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"data/{name}.parquet")
    sizes = {split: len(list(open_split(str(tmp_path), split).rows)) for split in ("train", "valid")}
    assert sizes == {"train": 1 + 2, "valid": 4}
    assert len(list(open_split(str(tmp_path), "valid", "testmini").rows)) == 5


def test_a_file_is_one_split_and_validation_has_other_names(forms):
    assert len(read_split(forms / "lines" / "train.jsonl", "valid")) == 6
    assert [sample.id for sample in read_split(forms / "saved", "valid")] == ["5", "0"]
    assert open_split(str(forms / "saved"), "valid", "train") is not None
    assert open_split(str(forms / "saved"), "dev") is None
    with pytest.raises(UserError, match="holds one split"):
        load(*settings(f"dataset.path={forms}/lines/train.jsonl"), train=True)


def test_media_are_read_late(forms, monkeypatch):
    """Reading the index of a table touches no file's bytes."""

    def never(*_):
        raise AssertionError("a file was read")

    from echoink.data import tables

    monkeypatch.setattr(tables, "_read", never)
    assert len(read_split(forms / "saved", "train")) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": 1}\n[{', "line 2 is not valid JSON"),
        (b'{"problem": 1}\n{"problem": "\xe9"}', "line 2 is not in UTF-8(.|\n)*encoding="),
    ],
)
def test_broken_lines_are_named(tmp_path, content, message):
    file = tmp_path / "train.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_split(tmp_path, "train")


def test_broken_tables_and_hubs_are_one_clear_error(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="cannot read"):
        read_split(tmp_path, "train")
    with pytest.raises(UserError, match="cannot reach the dataset nobody/nothing"):
        read_split("nobody/nothing", "train")
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(UserError, match=r"\.jsonl, \.json or \.parquet"):
        read_split(tmp_path / "x.csv", "train")


def plain(**fields):
    return {"problem": "What?", "options": ["A. x", "B. y"], "solution": "<answer>A</answer>", **fields}


def test_every_data_type_reads_and_is_told_by_its_media(tmp_path):
    picture(tmp_path / "p.png"), sound(tmp_path / "s.wav"), video(tmp_path / "v.mp4")
    files = {"image": "p.png", "audio": "s.wav", "video": "v.mp4"}
    made = [plain(path={name: files[name] for name in kind.media}, data_type=kind.value) for kind in DataType]
    samples, dropped = parse_rows(made, tmp_path, "here")
    assert not dropped and [sample.data_type for sample in samples] == list(DataType)
    untold = [{key: value for key, value in row.items() if key != "data_type"} for row in made[:-1]]
    assert [s.data_type for s in parse_rows(untold, tmp_path, "here")[0]] == list(DataType)[:-1]
    (both,), _ = parse_rows([plain(path={"video": "v.mp4", "audio": "s.wav"})], tmp_path, "here")
    assert both.data_type is DataType.video_audio and set(both.media) == {"audio", "video"}
    media_info = check_media(samples, 10, VIDEO)
    assert [(f.image is not None, f.kept is not None, f.frames) for f in media_info] == [
        (False, False, 0),
        (True, False, 0),
        (False, True, 0),
        (True, True, 0),
        (False, False, 4),
        (False, True, 4),
    ]


def test_a_video_that_has_no_sound_where_sound_is_asked_for_is_named(tmp_path):
    video(tmp_path / "v.mp4", with_sound=False)
    samples, _ = parse_rows([plain(path={"video": "v.mp4"}, data_type="video_audio")], tmp_path, "here")
    (found,) = check_media(samples, 10, VIDEO)
    assert isinstance(found, Dropped) and "v.mp4 has no sound" in found.reason and "data_type video" in found.hint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (plain(problem_type="essay"), "problem_type 'essay' is not known"),
        (plain(problem_type="numerical", options=[], solution="<answer>few</answer>"), "cannot be read as one of type"),
        (plain(data_type="video", path={"image": "p.png"}), "data_type video needs path to hold 'video'"),
        (plain(path={"image": {"bytes": "!!"}}), "bytes are not base64"),
        (plain(path={"image": 7}), "image holds numbers"),
        (plain(path={"picture": "p.png"}), "path holds 'picture'"),
        (plain(path="p", data_type=None), "path must be an object"),
        (plain(path='{"image": "p.png"}', data_type="image"), "path must be an object"),
        (plain(path="p.png", data_type="image_audio"), "needs path to hold 'audio'"),
        (plain(options="A. x"), "options must be a list of texts"),
        (7, "must be an object"),
        (plain(problem=None), "no field problem"),
        (plain(problem=" "), "problem must be a text"),
        (plain(problem="What is in <|IMAGE|>?"), "a text holds <|IMAGE|>"),
        (plain(options=["A. x<|im_end|>", "B. y"]), "a text holds <|im_end|>"),
    ],
)
def test_bad_rows_are_dropped_with_their_reason(tmp_path, row, message):
    samples, (dropped,) = parse_rows([row], tmp_path, "here")
    assert not samples and message in dropped.reason and "here, row 1" in dropped.reason


def test_null_is_absent_and_reading_stops_at_the_limit():
    rows = [plain(problem_id=None, data_type=None, path={"image": None, "audio": None}), plain(), 7]
    samples, dropped = parse_rows(rows, Path("."), "here", limit=2)
    assert [sample.id for sample in samples] == ["0", "1"] and not dropped
    assert samples[0].data_type is DataType.text


def settings(*overrides, groups=("dataset", "eval", "model")):
    config = config_of("dataset=rows", *overrides)
    return [getattr(config, group) for group in groups]


@pytest.fixture
def spoilt(dataset, tmp_path):
    """A copy in which a sound is broken, a picture is gone and a row has no such answer."""
    root = tmp_path / "spoilt"
    shutil.copytree(dataset, root)
    (root / "train/audios/sample_3.wav").write_bytes(b"no sound")
    (root / "train/images/sample_4.jpg").unlink()
    content = rows(root)
    content[5]["solution"] = "<answer>Z</answer>"
    (root / "omni_rl_format_train.json").write_text(json.dumps(content))
    return root


def test_broken_samples_are_refused_or_dropped_up_to_a_share(spoilt):
    with pytest.raises(UserError, match=r"(?s)row 6.*3 of 24 samples of train") as error:
        load(*settings(f"dataset.path={spoilt}"), train=True)
    assert "sample 3" in str(error.value) and "dataset.max_skipped" in str(error.value)
    with pytest.raises(UserError, match="3 of 24"):
        load(*settings(f"dataset.path={spoilt}", "dataset.max_skipped=0.1"), train=True)
    splits = load(*settings(f"dataset.path={spoilt}", "dataset.max_skipped=0.2"), train=True)
    assert len(splits.train) == 21 and not {"3", "4", "5"} & {sample.id for sample in splits.train}
    reasons = splits.profile["train"]["dropped"]
    assert len(reasons) == 3 and "sample_3.wav" in " ".join(reasons) and "sample_4.jpg" in " ".join(reasons)


def test_the_profile_by_hand(tmp_path):
    for number in range(3):
        picture(tmp_path / f"{number}.png", seed=number, size=(40 + number, 50))
        sound(tmp_path / f"{number}.wav", seed=number, seconds=1 + number)
    files = lambda a, b: {"path": {"image": f"{a}.png", "audio": f"{b}.wav"}}  # noqa: E731
    train, _ = parse_rows([plain(**files(0, 0)), plain(**files(0, 0)), plain(**files(1, 1))], tmp_path, "train")
    valid, _ = parse_rows([plain(**files(2, 1), solution="<answer>B</answer>")], tmp_path, "valid")
    media_info = {f"train {s.id}": f for s, f in zip(train, check_media(train, 1.5, VIDEO), strict=True)}
    media_info |= {f"valid {s.id}": f for s, f in zip(valid, check_media(valid, 1.5, VIDEO), strict=True)}
    found = profile({"train": train, "valid": valid}, {"train": [Dropped("because")]}, media_info)
    assert found["train"]["samples"] == 3 and found["train"]["dropped"] == ["because"]
    assert found["train"]["duplicates"] == 1 and found["valid"]["duplicates"] == 0
    assert found["train"]["answer_positions"] == {"A": 1} and found["valid"]["answer_positions"] == {"B": 1}
    assert found["train"]["media_also_in"] == {"valid": 1} == {"valid": found["valid"]["media_also_in"]["train"]}
    assert found["train"]["audio"] == {"least": 1, "median": 1, "most": 2, "total": 4}
    assert found["train"]["audio_kept"]["total"] == 3.5 and found["train"]["audio_cut"] == 1
    assert found["valid"]["image_pixels"]["most"] == 42 * 50


def test_what_the_caps_take_is_said(tmp_path):
    row = {**plain(), "data_type": "video_audio"}
    row["path"] = {"video": video(tmp_path / "v.mp4", seconds=5).name}
    samples, _ = parse_rows([row], tmp_path, "train")
    for caps, thinned in ((VIDEO, 1), (replace(VIDEO, max_frames=10), 0)):  # two frames a second are wanted
        infos = {f"train {s.id}": f for s, f in zip(samples, check_media(samples, 2, caps), strict=True)}
        found = profile({"train": samples}, {}, infos)["train"]
        assert found["videos_thinned"] == thinned
        sounds, *videos = shortened(found)
        assert sounds.startswith("1 sound cut at model.max_audio_seconds, 3 of 5 s lost") and len(videos) == thinned


def test_a_development_split_is_held_out_without_sharing_files():
    """Pairs of samples share a picture under names of their own."""
    samples, _ = parse_rows([plain() for _ in range(20)], Path("."), "here")
    digests = [(f"picture {number // 2}",) for number in range(20)]
    by_id = dict(zip((sample.id for sample in samples), digests, strict=True))
    rest, held = hold_out(samples, digests, 6, seed=0)
    assert len(held) == 6 and len(rest) == 14
    assert not {by_id[s.id] for s in held} & {by_id[s.id] for s in rest}
    assert hold_out(samples[::-1], digests[::-1], 6, seed=0)[1] == held[::-1], "order does not matter"
    assert hold_out(samples, digests, 6, seed=1)[1] != held
    with pytest.raises(UserError, match=r"set dataset\.dev"):
        hold_out(samples, digests, None, 0)
    with pytest.raises(UserError, match="cannot hold"):
        hold_out(samples, digests, 20, 0)


def test_copies_of_a_file_do_not_cross_the_held_out_split(tmp_path):
    """The official layout gives every sample files of its own; equal bytes are what counts."""
    for number in range(12):
        picture(tmp_path / f"sample_{number}.png", seed=number // 2)
    made = [plain(problem=f"What is {number}?", path={"image": f"sample_{number}.png"}) for number in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, made)))
    (tmp_path / "valid.jsonl").write_text(json.dumps(made[0]))
    splits = load(*settings(f"dataset.path={tmp_path}", "dataset.dev=4", "eval.every=5"), train=True)
    assert len(splits.dev) == 4 and splits.profile["train"]["media_also_in"]["dev"] == 0
    only = load(*settings(f"dataset.path={tmp_path}", "dataset.dev=4", "eval.split=dev"), train=False)
    assert only.valid == splits.dev and not only.train
    unasked = load(*settings(f"dataset.path={tmp_path}", "dataset.dev=4"), train=True)
    assert unasked.train == splits.train, "an evaluation may ask later: what is held out is never learned"


def test_a_development_split_whose_rows_are_all_bad_is_not_held_out_of_train_instead(forms, tmp_path):
    own = shutil.copytree(forms / "lines", tmp_path / "own")
    shutil.copy(own / "train.jsonl", own / "valid.jsonl")
    (own / "dev.jsonl").write_text(json.dumps({"problem": "Q?", "solution": "B"}))
    with pytest.raises(UserError, match=r"dev\.jsonl, row 1"):
        load(*settings(f"dataset.path={own}", "dataset.dev=2", "eval.every=5"), train=True)


def test_a_held_out_split_leaves_train(forms):
    shutil.copy(forms / "lines" / "train.jsonl", forms / "lines" / "valid.jsonl")
    splits = load(*settings(f"dataset.path={forms}/lines", "dataset.dev=2", "eval.every=5"), train=True)
    assert (len(splits.train), len(splits.dev), len(splits.valid)) == (4, 2, 6)
    assert not {s.id for s in splits.train} & {s.id for s in splits.dev}


def test_show_writes_what_the_model_gets(forms, tmp_path, capsys):
    from echoink.data.__main__ import main

    main(["show", "dataset=rows", f"dataset.path={forms}/saved", "split=train", "n=2", f"output={tmp_path}/shown"])
    shown = capsys.readouterr().out
    assert "<|vision_bos|><|IMAGE|><|vision_eos|>" in shown and shown.count("gold") == 2
    with Image.open(tmp_path / "shown/train_0.png") as file:
        assert file.size == (112, 112)
    assert soundfile.info(tmp_path / "shown/train_0.wav").samplerate == 16_000
    picture(tmp_path / "p.png"), video(tmp_path / "v.mp4")
    row = plain(path={"video": "v.mp4"}, data_type="video_audio")
    (tmp_path / "valid.jsonl").write_text(json.dumps(row))
    main(["show", "dataset=rows", f"dataset.path={tmp_path}/valid.jsonl", f"output={tmp_path}/shown"])
    assert "video" in capsys.readouterr().out and (tmp_path / "shown/valid_0_frames.png").is_file()
    with pytest.raises(UserError, match="cannot read shout"):
        main(["shout"])


def test_get_unpacks_only_what_is_safe_and_complete(dataset, tmp_path, monkeypatch, capsys):
    from echoink.data import __main__
    from echoink.data.__main__ import main

    def packed(name, target):
        with tarfile.open(tmp_path / name, "w:gz") as file:
            file.add(dataset, target)
        return tmp_path / name

    monkeypatch.setattr(__main__, "COUNTS", {"train": 24, "valid": 12})
    root = __main__.unpack(packed("good.tar.gz", "AVQA_R1"), tmp_path / "good")
    assert len(read_split(root, "valid")) == 12
    with pytest.raises(UserError, match="cannot unpack"):
        __main__.unpack(packed("bad.tar.gz", "../out"), tmp_path / "bad")
    assert not any((tmp_path / "bad").iterdir()), "the next try finds an empty folder"
    with pytest.raises(UserError, match="is not an empty folder"):  # before anything is downloaded
        __main__.main(["get", "avqa_r1_6k", f"output={tmp_path / 'good'}"])
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "good.tar.gz").read_bytes()[:3000])
    with pytest.raises(UserError, match="cannot unpack"):
        __main__.unpack(tmp_path / "cut.tar.gz", tmp_path / "cut")
    rows = json.loads((dataset / "omni_rl_format_train.json").read_text())
    odd = tmp_path / "odd"
    shutil.copytree(dataset, odd)
    rows[0]["options"] = rows[0]["options"][:1]
    (odd / "omni_rl_format_train.json").write_text(json.dumps(rows))
    with tarfile.open(tmp_path / "odd.tar.gz", "w:gz") as file:
        file.add(odd, "AVQA_R1")
    capsys.readouterr()
    __main__.unpack(tmp_path / "odd.tar.gz", tmp_path / "with a bad row")
    said = " ".join(capsys.readouterr().out.split())
    assert "train 24 samples" in said and "1 of them cannot be used (dataset.max_skipped)" in said
    monkeypatch.setattr(__main__, "COUNTS", {"train": 4490})
    with pytest.raises(UserError, match="has 24 train samples, not 4490"):
        __main__.unpack(tmp_path / "good.tar.gz", tmp_path / "few")
    with pytest.raises(UserError, match=r"(?s)harryhsing/AVQA-R1-6K.*harryhsing/OmniInstruct_V1_AVQA_R1"):
        main(["get", "avqa_r1_6k", f"output={tmp_path}/hub"])
    with pytest.raises(UserError, match="known: avqa_r1_6k"):
        main(["get", "avqa"])


def test_every_line_that_is_no_json_is_named_at_once(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"problem": 1}\n[{\n{"problem": 2}\n{"a":\n')
    with pytest.raises(UserError, match=r"(?s)line 2 is not valid JSON.*line 4 is not valid JSON"):
        open_split(str(tmp_path), "train")


def test_samples_are_clustered_by_what_connects_them_or_by_sound_and_sight_where_these_are_crossed():
    def clusters(pairs, **fields):
        samples = [
            Sample(
                id=str(n),
                problem="",
                options=(),
                solution="",
                image=seen and Path(f"{seen}.png"),
                audio=heard and Path(f"{heard}.wav"),
                fields={name: of[n] for name, of in fields.items()},
            )
            for n, (heard, seen) in enumerate(pairs)
        ]
        info = {f"valid {s.id}": MediaInfo(tuple(str(medium) for medium in s.media.values())) for s in samples}
        return Splits([], [], samples, info).clusters("valid", samples)

    nested = clusters([("a", "p"), ("a", "q"), ("b", "r"), ("c", "s")])
    assert nested["0"] == nested["1"] and len(set(nested.values())) == 3
    assert all(isinstance(name, str) for name in nested.values())
    # Questions for one sense are groups of their own, and hide the crossing no more than others.
    mixed = clusters(
        [("a", "p"), ("a", "q"), ("b", "q"), ("b", "p"), ("c", None), ("d", None), (None, "r"), (None, None)]
    )
    assert mixed["4"] == ("sound c.wav", "sight 4") and mixed["7"] == ("sound 7", "sight 7")
    crossed = clusters([("a", "p"), ("a", "q"), ("b", "q"), ("b", "p")])
    assert crossed["0"] == ("sound a.wav", "sight p.png") and crossed["2"] == ("sound b.wav", "sight q.png")
    # Two files that are cut from one recording are one sound; where a row names no source, its file counts.
    cut = clusters([("a", "p"), ("b", "q"), ("c", "r")], audio_source=["tape", "tape", ""])
    assert cut["0"] == cut["1"] != cut["2"]
    # A row that names no source has the same file still; and a frame and a sound may be of one film.
    same = clusters([("a", "p"), ("a", "q")], audio_source=["tape", ""])
    film = clusters([("a", None), (None, "p")], audio_source=["film", ""], image_source=["", "film"])
    assert same["0"] == same["1"] and film["0"] == film["1"]
    crossed = clusters([("a", "p"), ("b", "q"), ("c", "p"), ("c", "q")], audio_source=["tape", "tape", "", ""])
    assert crossed["0"][0] == crossed["1"][0] != crossed["2"][0] and crossed["0"][1] == crossed["2"][1]


def test_data_held_out_share_no_source_with_the_rest():
    samples = [
        Sample(str(n), "", (), "", audio=Path(f"{n}.wav"), fields={"audio_source": str(n // 2)}) for n in range(8)
    ]
    media = [joined(MediaInfo((f"digest {sample.id}",)).origins(sample)) for sample in samples]
    rest, held = hold_out(samples, media, 3, 0)
    assert len(held) == 2 and not {s.fields["audio_source"] for s in held} & {s.fields["audio_source"] for s in rest}


def test_two_forms_of_one_split_are_refused(forms, dataset, tmp_path):
    (tmp_path / "omni_rl_format_train.json").write_text((dataset / "omni_rl_format_train.json").read_text())
    (tmp_path / "train.jsonl").write_text((forms / "lines/train.jsonl").read_text())
    with pytest.raises(UserError, match="both hold train"):
        open_split(str(tmp_path), "train")


def test_every_two_forms_of_one_split_are_refused(tmp_path):
    rows = datasets.Dataset.from_list([{"problem": "x", "options": ["A. x", "B. y"], "solution": "B"}])
    lines, flat, below = (tmp_path / name for name in ("train.jsonl", "train.parquet", "data/train-0.parquet"))
    rows.to_json(lines)
    rows.to_parquet(flat)
    with pytest.raises(UserError, match=r"train\.jsonl and .*train\.parquet both hold train"):
        open_split(str(tmp_path), "train")
    lines.unlink()
    assert len(list(open_split(str(tmp_path), "train").rows)) == 1
    rows.to_parquet(below)
    with pytest.raises(UserError, match=r"train\.parquet and .*data/train-0\.parquet both hold train"):
        open_split(str(tmp_path), "train")
    flat.unlink()
    below.unlink()
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path)
    rows.to_json(tmp_path / "valid.jsonl")
    assert all(open_split(str(tmp_path), split) is not None for split in ("train", "valid"))
    rows.to_json(lines)
    with pytest.raises(UserError, match=r"dataset_dict\.json and .*train\.jsonl both hold train"):
        open_split(str(tmp_path), "train")


def test_a_parquet_file_that_is_missing_among_numbered_ones_is_named(tmp_path):
    rows = datasets.Dataset.from_list([{"problem": "x", "options": ["A. x", "B. y"], "solution": "B"}])
    for number in (0, 2):
        rows.to_parquet(tmp_path / f"data/train-0000{number}-of-00003.parquet")
    with pytest.raises(UserError, match=r"data lacks train-00001-of-00003 of 3 Parquet files"):
        open_split(str(tmp_path), "train")
    rows.to_parquet(tmp_path / "data/train-00001-of-00003.parquet")
    assert len(list(open_split(str(tmp_path), "train").rows)) == 3


def test_another_name_of_the_validation_split_is_refused_in_the_official_layout(dataset):
    assert open_split(str(dataset), "valid", "valid") is not None
    with pytest.raises(UserError, match="dataset.split=test, and .*one valid split"):
        open_split(str(dataset), "valid", "test")


def test_a_validation_split_that_is_not_there_is_named_as_it_was_asked_for(tmp_path):
    (tmp_path / "valid.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"no split exam in .*exam\.jsonl"):
        load(*settings(f"dataset.path={tmp_path}", "dataset.split=exam"), train=False)


def test_a_folder_of_ones_own_is_not_taken_for_the_synthetic_set_nor_called_superfluous(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"is not the synthetic set(.|\n)*dataset=rows reads data of your own") as found:
        load(*settings("dataset=synthetic", f"dataset.path={tmp_path}"), train=True)
    assert "delete" not in str(found.value)


def test_a_dataset_with_several_configurations_names_them(monkeypatch):
    """The library's own text."""
    text = (
        "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample of usage:\n\t`load`"
    )

    def asks(id):
        raise ValueError(text)

    monkeypatch.setattr(tables.datasets, "get_dataset_split_names", asks)
    with pytest.raises(UserError, match=r"owner/many has several configurations, \['a', 'b'\](.|\n)*folder of one"):
        tables.of_hub("owner/many", ["train"])


def test_a_parquet_file_that_was_replaced_without_a_new_time_is_read_anew(tmp_path):
    """As in archives and images that set all times to the same."""
    file, seen = tmp_path / "train.parquet", []
    for answer in ("dog", "bee"):
        datasets.Dataset.from_list([{"problem": "What?", "solution": answer}]).to_parquet(file)
        os.utime(file, (1_000_000_000, 1_000_000_000))
        seen.append([row["solution"] for row in tables.of_parquet([file], tmp_path, "here").rows])
    assert seen == [["dog"], ["bee"]]


def test_a_cache_that_cannot_be_written_is_not_taken_for_broken_files(tmp_path, monkeypatch):
    datasets.Dataset.from_list([plain()]).to_parquet(tmp_path / "train.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/proc/nowhere/datasets"))
    with pytest.raises(UserError, match=r"cannot read .*train\.parquet(.|\n)*set HF_HOME to a folder with room"):
        read_split(tmp_path, "train")
