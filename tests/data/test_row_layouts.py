"""Rows as other trainers write them: their media are used, or the row is refused by name; nothing is lost unsaid."""

import json
from pathlib import Path

import datasets
import pytest

from echoink.data import splits, tables
from echoink.data.media_check import MediaInfo, inspect
from echoink.data.readers import open_split
from echoink.data.row_layouts import read
from echoink.data.samples import DataType, parse_rows, with_soundtrack
from echoink.media.loaders import Embedded
from tests.conftest import VIDEO
from tests.helpers.configs import config_of
from tests.helpers.files import picture, sound, video

ROW = {"problem": "Q?", "options": ["A. x", "B. y"], "solution": "<answer>B</answer>"}


def chat(content, **more):
    return {
        "options": ROW["options"],
        "solution": ROW["solution"],
        "messages": [{"role": "user", "content": content}],
        **more,
    }


NAN = float("nan")

READ = [  # row, data type, question
    ({**ROW, "images": ["p.png"], "audios": ["s.wav"]}, "image_audio", "Q?"),
    ({**ROW, "image": ["p.png"]}, "image", "Q?"),
    ({**ROW, "image_path": "p.png", "audio_file": "s.wav"}, "image_audio", "Q?"),
    ({**ROW, "Audios": [{"path": "s.wav", "bytes": None}]}, "audio", "Q?"),
    ({**ROW, "image": {"bytes": b"x"}}, "image", "Q?"),
    ({**ROW, "images": [b"x"]}, "image", "Q?"),
    ({**ROW, "path": {"images": "p.png"}}, "image", "Q?"),
    ({**ROW, "path": {"image": "p.png"}, "image": "p.png"}, "image", "Q?"),
    ({**ROW, "videos": ["v.mp4"], "audios": []}, "video", "Q?"),
    ({**ROW, "problem": "<image><audio>Q?", "images": ["p.png"], "audios": ["s.wav"]}, "image_audio", "Q?"),
    ({**ROW, "problem": "<image>\nQ?", "images": ["p.png"]}, "image", "Q?"),
    ({**ROW, "problem": "Q? <audio>", "audios": ["s.wav"]}, "audio", "Q?"),
    ({**ROW, "problem": "Does <audio> fit?", "audios": ["s.wav"]}, "audio", "Does the sound fit?"),
    ({**ROW, "problem": "What relates to <audio>", "audios": ["s.wav"]}, "audio", "What relates to the sound"),
    ({**ROW, "problem": "What is heard <audio>", "audios": ["s.wav"]}, "audio", "What is heard"),
    (chat("<audio>Q?", audios=["s.wav"]), "audio", "Q?"),
    (chat([{"type": "image"}, {"type": "text", "text": "Q?"}], images=["p.png"]), "image", "Q?"),
    (chat([{"type": "image", "image": "p.png"}, {"type": "text", "text": "Q?"}]), "image", "Q?"),
    (chat([{"type": "image", "image": "p.png", "max_pixels": 9}, {"type": "text", "text": "Q?"}]), "image", "Q?"),
    ({**ROW, "images": [{"image": "p.png", "bytes": None}]}, "image", "Q?"),
    (
        {
            **chat("Q?"),
            "image": "p.png",
            "messages": [{"role": "system", "content": "<image>"}, *chat("Q?")["messages"]],
        },
        "image",
        "Q?",
    ),
    ({**ROW, "problem": "if a<image and b>c, <sound of a bell>?"}, "text", "if a<image and b>c, <sound of a bell>?"),
    (
        {**chat("Q?"), "messages": [{"role": "assistant", "content": "<image>"}, {"role": "user", "content": "Q?"}]},
        "text",
        "Q?",
    ),
    ({**ROW, "path": {"audio": "s.wav"}, "audio_type": "speech", "clip": 7, "origin": "a.wav"}, "audio", "Q?"),
    ({**ROW, "image": "p.png", "image_url": "https://x.org/p.png", "sound": "bark"}, "image", "Q?"),
    ({**ROW, "caption": "A man shows a file called p.jpg", "picture": "two dogs", "image_class": "dog"}, "text", "Q?"),
    ({**ROW, "audio": "s.wav", "sound": "woodwind/flute"}, "audio", "Q?"),
    (ROW, "text", "Q?"),
    ({**ROW, "image": "p.png", "website": "www.abc.net.au", "source_url": "https://www.bom.gov.au"}, "image", "Q?"),
    # a path alone, as in Video-R1's rows
    ({**ROW, "path": "./p.png", "data_type": "image", "process": ""}, "image", "Q?"),
    ({**ROW, "path": "v.mp4", "data_type": "video_audio"}, "video_audio", "Q?"),
    ({**ROW, "path": "s.wav"}, "audio", "Q?"),
    ({**ROW, "path": "", "data_type": "text"}, "text", "Q?"),
    ({**ROW, "path": "cv_1.mp3", "audio": {"bytes": b"x", "path": "cv_1.mp3"}}, "audio", "Q?"),
    ({**ROW, "path": "images/1", "image": "p.png", "data_type": "image"}, "image", "Q?"),
    # pandas writes NaN for what is missing
    ({**ROW, "path": {"image": "p.png", "audio": NAN}, "video": NAN, "data_type": NAN}, "image", "Q?"),
]


@pytest.mark.parametrize(("row", "data_type", "problem"), READ)
def test_media_are_found_wherever_they_are(row, data_type, problem, tmp_path):
    (sample,), dropped = parse_rows([row], tmp_path, "here")
    assert (sample.data_type.value, sample.problem, dropped) == (data_type, problem, [])
    assert set(sample.media) == set(DataType(data_type).media)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**ROW, "images": ["p.png", "q.png"]}, "has several pictures"),
        (
            {**ROW, "path": {"image": "p.png"}, "messages": chat([{"type": "image", "image": "q.png"}])["messages"]},
            "several",
        ),
        ({**ROW, "image": "p.png", "image2": "q.png"}, "image2 is a second picture"),
        ({**ROW, "image": "left/1.png", "image_2": "right/1.png"}, "image_2 is a second picture"),
        ({**ROW, "image": "p.png", "image2": "more/0002"}, "image2 is a second picture"),
        ({**ROW, "image": "p.png", "image2": "data:image/png;base64,AAAA"}, "image2 is a second picture"),
        ({**ROW, "image": "p.png", "image2": "https://x.org/q.png?size=2"}, "image2 is a second picture"),
        ({**ROW, "image": b"xx", "image_2": "q.png"}, "image_2 is a second picture"),
        ({**ROW, "image": "a/p.png", "image_2": ["p.png", "q.png"]}, "image_2 is a second picture"),
        ({**ROW, "image": None, "image_path": "a.png", "images": "b.png"}, "image_path and images both hold a picture"),
        ({**ROW, "audio": "s.wav", "audio_2": "t.wav"}, "audio_2 is a second sound"),
        (
            {**ROW, "path": {"image": "i/p.png"}, "images": ["q.png", "r.png"]},
            "path.image and images name several pictures",
        ),
        ({**ROW, "image": b"x", "image_path": "p.png"}, "image and image_path both hold a picture"),
        ({"messages": [{"role": "user", "content": 5}]}, "a turn's content must be a text or a list of parts"),
        ({"messages": [{"role": "user", "content": {"content_type": "text", "parts": ["Q?"]}}]}, "unknown part"),
        ({**ROW, "picture": {"bytes": b"x"}}, "the field 'picture' looks like a medium"),
        ({**ROW, "file_name": "p.jpg"}, "the field 'file_name' looks like a medium"),
        ({**ROW, "clip": "v.mp4", "images": ["p.png"]}, "the field 'clip' looks like a medium"),
        ({**ROW, "image_url": {"url": "media/b.jpg"}}, "the field 'image_url' looks like a medium"),
        ({**ROW, "image_url": "https://x.org/1"}, "the field 'image_url' looks like a medium"),
        ({**ROW, "paths": {"image": "p"}}, "the field 'paths' looks like a medium"),
        ({**ROW, "files": [{"image": "p"}]}, "the field 'files' looks like a medium"),
        ({**ROW, "inputs": {"more": {"image_path": "p"}}}, "the field 'inputs' looks like a medium"),
        ({**ROW, "img": "media/my photo.jpg"}, "the field 'img' looks like a medium"),
        ({**ROW, "file": "my photo 1.jpg"}, "the field 'file' looks like a medium"),
        ({**ROW, "picture": "media/b"}, "the field 'picture' looks like a medium"),
        ({**ROW, "file": "a.amr"}, "the field 'file' looks like a medium"),
        ({**ROW, "audio_b64": "UklGRg=="}, "the field 'audio_b64' looks like a medium"),
        ({**ROW, "content": b"x"}, "the field 'content' looks like a medium"),
        ({**ROW, "frames": ["1", "2"]}, "the field 'frames' looks like a medium"),
        ({**ROW, "multi_modal_data": {"image": ["p.png"]}}, "the field 'multi_modal_data' looks like a medium"),
        ({**ROW, "audio": {"array": [0.1], "sampling_rate": 16000}}, "is a decoded sound"),
        ({**ROW, "audio": [0.1, 0.2]}, "audio holds numbers"),
        ({**ROW, "problem": "<image>Q?"}, "the question has <image>, but the row has no picture"),
        ({**ROW, "problem": "<image><image>Q?", "images": ["p.png"]}, "<image> 2 times"),
        ({**ROW, "options": ["A. <image>", "B. no"], "image": "p.png"}, "the option 'A. <image>' has <image>"),
        ({**ROW, "path": {"face": "p.png"}}, "path holds 'face'"),
        ({"messages": [{"role": "assistant", "content": "B"}], **ROW}, "has 0 user turns"),
        (chat([{"type": "image", "url": "p.png"}, {"type": "text", "text": "Q?"}]), "of type image has url, which"),
        (chat([{"type": "audio", "audio_url": "s.wav"}, {"type": "text", "text": "Q?"}]), "has audio_url, which"),
        (chat([{"type": "image"}, {"type": "text", "text": "Q?"}]), "a part of type image, but the row has no picture"),
        (
            chat([{"type": "video", "video": "v.mp4", "video_start": 4.0}, {"type": "text", "text": "Q?"}]),
            "has video_start=4.0, but files are read whole",
        ),
        ({**ROW, "audio": {"path": "s.wav", "start": 4, "end": 6}}, "has start=4, but files are read whole"),
        (chat("Another?", problem="Q?"), "it asks 'Another?', but the row asks 'Q?'"),
        ({**chat("Q?"), "prompt": chat("R?")["messages"]}, "it asks 'R?', but the row asks 'Q?'"),
        *(
            ({**ROW, "problem": f"{tag}Q?", "image": "p.png", "audio": "s.wav"}, f"the question has {tag}, which is")
            for tag in (
                *("<image 1>", "<image_1>", "<Image>", "<images>", "<img>", "<sound>", "</image>", "<ImageHere>"),
                *("<IMG_CONTEXT>", "<image_soft_token>", "<audio_placeholder>", "<start_of_image>", "<image/>"),
                *("<img src='p.png'/>", "<image_>"),
            )
        ),
        ({**ROW, "problem": "(<image>./</image>)Q?", "image": "p.png"}, "the question has </image>, which is"),
        (
            {**ROW, "messages": [{"role": "tool", "content": [{"type": "audio", "audio": "s.wav"}]}]},
            "the tool turn has a part of type audio",
        ),
        (
            {**ROW, "messages": [{"role": "system", "content": [{"type": "text", "text": "<image>"}]}]},
            "has 0 user turns",
        ),
        (
            {**chat("Q?"), "messages": [{"role": "system", "content": "Look: <image>"}, *chat("Q?")["messages"]]},
            "messages has a part of type image, but the row has no picture",
        ),
        ({**ROW, "image": {"bytes": None, "path": None}}, "image is an empty object"),
        ({**ROW, "image": {"url": "p.png", "fps": 1}}, "image holds fps, url, and no path"),
        ({**ROW, "images": [{}]}, "image is an empty object"),
        ({**ROW, "image": "https://x.org/p.png"}, "https://x.org/p.png is an address"),
        ({**ROW, "image": "file:///p.png"}, "file:///p.png is an address"),
        ({**ROW, "options": ["A. <image 1>", "B. no"], "image": "p.png"}, "the option 'A. <image 1>' has <image 1>"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(row, reason, tmp_path):
    samples, (dropped,) = parse_rows([row], tmp_path, "here")
    assert not samples and reason in dropped.reason, dropped.reason


def test_another_file_of_a_kind_that_the_sample_has_is_noted(tmp_path):
    both = {
        **ROW,
        "audio": "s.wav",
        "reference_audio": "t.wav",
        "audio_file_name": "audio/s.wav",
        "path": {"audio": "s.wav"},
    }
    (sample,), _ = parse_rows([both], tmp_path, "here")
    assert sample.notes == ("reference_audio names another sound, which is not read",)
    said = {**ROW, "path": {"image": "images/p.png"}, "image": "p.png", "image_filename": "COCO_1.jpg"}
    (sample,), _ = parse_rows([said], tmp_path, "here")
    assert sample.notes == ("image_filename names another picture, which is not read",) and sample.image.name == "p.png"
    (sample,), _ = parse_rows([{**ROW, "path": {"image": "a/p.png"}, "image": "b/p.png"}], tmp_path, "here")
    assert sample.notes == ("image names another picture, which is not read",)
    (sample,), _ = parse_rows([chat({"type": "text", "text": "Q?"})], tmp_path, "here")
    assert sample.problem == "Q?", "one part may stand without a list"


@pytest.mark.parametrize(
    "more",
    [
        {"images": [None]},
        {"images": [""]},
        {"images": ()},
        {"images": ["p.png", None]},
        {"image_path": "p.png"},
        {"image_1": "p.png"},
        {"image_1": "i/p.png"},
        {"image_1": "a picture of a dog"},
        {"image_2": None},
        {"image_2": ""},
        {"image_360": True},
        {"image2": 0.3},
    ],
)
def test_what_only_looks_like_a_second_picture_does_not_matter(more, tmp_path):
    (sample,), dropped = parse_rows([{**ROW, "image": "p.png", **more}], tmp_path, "here")
    assert sample.image.name == "p.png" and not dropped


def test_a_link_out_of_the_data_is_called_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/p.png").write_bytes(b"")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/p.png").symlink_to("../elsewhere/p.png")
    _, (bad,) = parse_rows([{**ROW, "image": "p.png"}], tmp_path / "set", "here")
    assert f"is a link to {tmp_path}/elsewhere/p.png" in bad.reason
    assert bad.hint == f"'dataset.outside=[{tmp_path}/elsewhere]' allows it"
    (found,), _ = parse_rows(
        [{**ROW, "image": "p.png"}], tmp_path / "set", "here", outside=[str(tmp_path / "elsewhere")]
    )
    assert found.image.name == "p.png"


def test_a_link_in_a_circle_is_one_bad_row(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    samples, (bad,) = parse_rows([{**ROW, "image": "a"}, ROW], tmp_path, "here")
    assert len(samples) == 1 and "row 1" in bad.reason and "leads nowhere" in bad.reason


def test_where_a_file_is_to_begin_is_noted_and_a_chat_around_the_question_too(tmp_path):
    (sample,), _ = parse_rows([{**ROW, "audio": "s.wav", "start": 4.0, "end": 6.0}], tmp_path, "here")
    assert sample.notes == ("start, end: not read, files are read from their beginning",)
    (sample,), _ = parse_rows([chat("<audio>Look: Q? Answer.", problem="Q?", audio="s.wav")], tmp_path, "here")
    assert sample.problem == "Q?" and "the words around the question" in sample.notes[0]


@pytest.mark.parametrize(
    "part",
    [
        {"segment": [3.0, 9.0]},
        {"start": "00:05", "end": "00:09"},
        {"timestamps": [3, 9]},
        {"clip_start": "5.0"},
        {"time_range": "2.5 s"},
    ],
)
def test_a_part_of_a_file_that_is_asked_for_in_any_form_is_noted_and_refused_inside_a_medium(tmp_path, part):
    (sample,), _ = parse_rows([{**ROW, "video": "v.mp4", **part}], tmp_path, "here")
    assert sample.notes == (f"{', '.join(part)}: not read, files are read from their beginning",)
    _, (bad,) = parse_rows([{**ROW, "audio": {"path": "s.wav", **part}}], tmp_path, "here")
    assert "files are read whole" in bad.reason


def test_an_empty_text_in_a_column_of_media_is_noted(tmp_path):
    """As pandas writes a value that is missing."""
    (sample,), _ = parse_rows([{**ROW, "image": ""}], tmp_path, "here")
    assert sample.notes == ("image is an empty text",) and sample.data_type is DataType.text


def test_media_inside_of_a_tables_columns_are_read(tmp_path):
    picture(tmp_path / "p.png", size=(32, 24))
    texts = {name: datasets.Value("string") for name in ("problem", "solution")}
    kinds = {**texts, "options": datasets.List(datasets.Value("string")), "path": {"image": datasets.Image()}}
    held = {"image": {"bytes": (tmp_path / "p.png").read_bytes(), "path": None}}
    table = datasets.Dataset.from_list([{**ROW, "path": held}], features=datasets.Features(kinds))
    table.save_to_disk(str(tmp_path / "saved"))
    found = open_split(str(tmp_path / "saved"), "train")
    (sample,), dropped = parse_rows(found.rows, found.folder, "here")
    assert not dropped and inspect(sample, 10, VIDEO).image == (32, 24)


def test_an_empty_path_is_noted_even_where_no_other_medium_is(tmp_path):
    (sample,), _ = parse_rows([{**ROW, "path": {"audio": ""}}], tmp_path, "here")
    assert sample.notes == ("path.audio is an empty text",)


@pytest.mark.parametrize("saved", [True, False])
def test_a_class_of_a_table_is_its_name(tmp_path, saved):
    label, tags = datasets.ClassLabel(names=["audio", "both"]), datasets.List(datasets.ClassLabel(names=["x", "y"]))
    rows = [{**ROW, "need": need, "tags": [1, 0], "place": 1} for need in (0, 1, None, -1)]
    table = datasets.Dataset.from_list(rows)
    table = table.cast(datasets.Features({**table.features, "need": label, "tags": tags}))
    table.save_to_disk(tmp_path / "data") if saved else table.to_parquet(tmp_path / "train.parquet")
    found = open_split(str(tmp_path / "data" if saved else tmp_path), "train")
    samples, dropped = parse_rows(found.rows, found.folder, found.where)
    assert not dropped and [sample.fields.get("need") for sample in samples] == ["audio", "both", None, None]
    names = datasets.ClassLabel(names=["audio"])
    features = datasets.Features({**table.features, "place": names})
    numbers = datasets.Dataset(table.data, info=datasets.DatasetInfo(features=features))
    assert [row["place"] for row in tables._cells(numbers, "here")] == 4 * [1], "a number without a name stays"
    assert samples[0].fields["tags"] == '["y", "x"]' and samples[0].fields["place"] == "1"


def test_odd_options_and_needs_are_noted(tmp_path):
    odd = [
        {**ROW, "options": ["A. x", "B. x."]},
        {**ROW, "options": ["A. x", "B. X"]},
        {**ROW, "options": ["A.", "B. y"]},
        {**ROW, "options": ["A.", "B. y", "C."], "solution": "<answer>B</answer>"},
        {**ROW, "options": ["A.", "B.", "C."]},
        {**ROW, "problem_type": "numerical", "options": [], "solution": "<answer>0.001</answer>"},
        {**ROW, "problem_type": "numerical", "options": [], "solution": "<answer>0.01</answer>"},
        {**ROW, "need": []},
        {**ROW, "need": 0},
        {**ROW, "need": "Both"},
        {**ROW, "need": "either"},
        {**ROW, "need": "audio,image"},
    ]
    samples, _ = parse_rows([{**row, "problem_id": number} for number, row in enumerate(odd)], tmp_path, "here")
    assert [sample.notes for sample in samples] == [
        ("two options are the same",),
        ("two options differ in case, blanks or punctuation alone",),
        ("an option is empty",),
        ("an option is empty",),
        (),
        ("the answer 0.001 is rounded to two decimals: any answer near 0 is right",),
        (),
        (),
        ("need 0 is not read: known: audio, image, both",),
        ("need 'Both' is not read: it is 'both'",),
        (),
        ("need 'audio,image' is not read: known: audio, image, both",),
    ]


def test_what_of_a_row_is_not_used_is_noted(tmp_path):
    rows = [
        {**ROW, "path": {"image": None, "audio": "s.wav"}},
        {**ROW, "data_type": "image", "path": {"image": "p.png", "audio": "s.wav"}},
        {**chat("Q?"), "messages": [{"role": "system", "content": "Be nice."}, *chat("Q?")["messages"]]},
        chat([{"type": "image", "image": "p.png", "max_pixels": 9, "fps": None}, "Q?"]),
    ]
    samples, _ = parse_rows(rows, tmp_path, "here")
    notes = [sample.notes for sample in samples]
    left_out = "the system turn is not used (prompt.system sets one)"
    assert notes == [
        ("image is null",),
        ("audio is not used by data_type image",),
        (left_out,),
        ("max_pixels of a part of type image: not used",),
    ]


@pytest.mark.parametrize(
    ("row", "has_sound", "wanted", "data_type", "note"),
    [
        ({}, True, True, "video_audio", None),
        ({}, True, False, "video", "the video's sound is left out (dataset.soundtrack=false)"),
        ({}, False, True, "video", None),
        ({"data_type": "video"}, True, True, "video", "the video's sound is left out (data_type video)"),
        ({"data_type": "video"}, False, True, "video", None),
        ({"data_type": "video_audio"}, True, True, "video_audio", None),
    ],
)
def test_a_videos_own_sound_is_used_where_there_is_one_and_leaving_it_out_is_noted(
    row, has_sound, wanted, data_type, note, tmp_path
):
    video(tmp_path / "v.mp4", with_sound=has_sound)
    (sample,), _ = parse_rows([{**ROW, **row, "path": {"video": "v.mp4"}}], tmp_path, "here")
    info = inspect(sample, 10, VIDEO, wanted)
    sample = with_soundtrack(sample, info.soundtrack, wanted)
    assert (sample.data_type.value, info.soundtrack) == (data_type, has_sound)
    assert sample.notes == ((note,) if note else ())
    assert (info.seconds is not None) == (data_type == "video_audio")


def test_what_a_medium_was_cut_from_may_be_a_file_of_another_kind_and_is_one_name():
    row = {**ROW, "audios": ["s.wav"], "audio_source": "film.mp4"}
    (found,), _ = parse_rows([row], Path("."), "rows")
    assert found.sources == {"audio": "film.mp4"}
    (found,), _ = parse_rows([{**row, "video_source": "v"}], Path("."), "rows")
    assert MediaInfo(("1",)).origins(found) == {"audio": ("1", "source film.mp4", "source v")}, "what it was cut from"
    (found,), _ = parse_rows([ROW], Path("."), "rows")
    assert list(MediaInfo(()).origins(found)) == ["text"], "a question without media stands for itself"
    _, (bad,) = parse_rows([{**row, "audio_source": ["a", "b"]}], Path("."), "rows")
    assert "audio_source must be a text" in bad.reason


def test_the_first_screen_says_what_the_samples_have_and_what_is_left_out(tmp_path):
    picture(tmp_path / "p.png")
    sound(tmp_path / "s.wav")
    rows = [
        {**ROW, "images": ["p.png"], "audios": ["s.wav"]},
        {**ROW, "audios": ["s.wav"], "image": None},
        {**ROW, "problem": "Another?"},
    ]
    for split in ("train", "valid"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = config_of("dataset=rows", f"dataset.path={tmp_path}", "eval.every=0")
    found = splits.load(config.dataset, config.eval, config.model, True)
    lines = list(splits.describe(found, "valid", config.dataset))
    assert "train: 1 with a picture and a sound · 1 with a sound · 1 with text alone" in lines
    assert any(line.startswith("valid: image is null: 1 sample") for line in lines)
    assert found.profile["train"]["media"] == {"a picture and a sound": 1, "a sound": 1, "text alone": 1}


def test_lists_of_pictures_in_a_datasets_folder_are_read_when_they_are_needed(tmp_path, capfd):
    picture(tmp_path / "p.png", size=(32, 24))
    content = (tmp_path / "p.png").read_bytes()
    kinds = {"problem": datasets.Value("string"), "options": datasets.List(datasets.Value("string"))}
    kinds |= {"solution": datasets.Value("string"), "images": datasets.List(datasets.Image())}
    rows = [{**ROW, "images": [{"bytes": content, "path": None}]}, {**ROW, "images": []}]
    rows += [{**ROW, "images": 2 * [{"bytes": content, "path": None}]}]
    table = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(tmp_path / "train.parquet")
    for place in ("saved", "train.parquet"):
        capfd.readouterr()
        found = open_split(str(tmp_path / place), "train")
        samples, (dropped,) = parse_rows(found.rows, found.folder, "here")
        assert [sample.data_type.value for sample in samples] == ["image", "text"]
        assert inspect(samples[0], 10, VIDEO).image == (32, 24) and isinstance(samples[0].image, Embedded)
        assert "has several pictures" in dropped.reason
        assert "Casting" not in capfd.readouterr().err, "the table is not written anew"


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        ("<image> and <audio> come from one scene. Which?", "the picture and the sound come from one scene. Which?"),
        ("<audio> is the sound of an animal. Which?", "is the sound of an animal. Which?"),
        ("<audio> is the sound of an animal.", "the sound is the sound of an animal."),
        ("<image>'s colour?", "the picture's colour?"),
        ("Does <audio> match <image>", "Does the sound match the picture"),
        ("Describe <image>", "Describe the picture"),
        ("比较<image>和<audio>", "比较图片和声音"),
        ("<image>里的动物会发出<audio>吗？", "图片里的动物会发出声音吗？"),
        ("<image><audio>What is heard?", "What is heard?"),
        ("<image> is this a dog?", "is this a dog?"),
        ("What is heard? <audio>", "What is heard?"),
    ],
)
def test_a_tag_is_a_word_where_it_is_one_of_the_sentence(problem, shown):
    media = {name: f"{name}.x" for name in ("image", "audio") if f"<{name}>" in problem}
    assert read({"problem": problem, **media}, "row 1").row["problem"] == shown


@pytest.mark.parametrize("row", [{"image": None}, {"image": None, "audio": None}])
def test_a_row_that_loses_all_of_its_media_is_noted(row):
    asked = {"problem": "What?", **row}
    assert read(asked, "row 1").notes == tuple(f"{name} is null" for name in sorted(row))
    assert read(asked | {"data_type": "text"}, "row 1").notes == ()


def test_a_missing_value_of_pandas_is_no_kind_of_its_own(tmp_path):
    (sample,), dropped = parse_rows([{**ROW, "kind": NAN, "problem_id": NAN}], tmp_path, "here")
    assert not dropped and not sample.fields.get("kind") and sample.id != "nan"
