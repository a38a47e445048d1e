"""Curation by difficulty: what is kept and why, balanced letters, no shared media, the second measurement."""

import json
import re
import shutil
from collections import Counter

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from echoink.common.errors import UserError
from echoink.common.files import as_lines
from echoink.config.overrides import quoted
from echoink.config.paths import TINY
from echoink.curate import difficulty
from echoink.curate.difficulty import balanced
from echoink.data import synthetic
from echoink.data.samples import Sample
from echoink.data.splits import read_split
from tests.helpers import processes
from tests.helpers.files import picture


@pytest.fixture
def source(tmp_path):
    synthetic.write(tmp_path / "source", 0, {"train": 12, "dev": 2, "valid": 3})
    return tmp_path / "source"


def row(id, right, need="both"):
    return {"id": id, "need": need, "full": (right, 8), "no_audio": (2, 8), "no_image": (1, 8), "text_only": (1, 8)}


@pytest.fixture
def measured(monkeypatch, source):
    """Answers in the place of an evaluation: by the number of the question."""
    calls = []

    def measure(given, path, seed, folder):
        calls.append((path, seed))
        if len(calls) > 1:
            return {s.id: row(s.id, 3, "undetermined") for s in read_split(path, "train")}
        needs = {1: "audio", 2: "undetermined"}
        ids = [s.id for s in read_split(path, "train")]
        return {id: row(id, 8 if n == 0 else n % 7, needs.get(n, "both")) for n, id in enumerate(ids)}

    monkeypatch.setattr(difficulty, "_measure", measure)
    return calls


def curate(source, output, *words):
    difficulty.main(["mode=difficulty", f"source={source}", "checkpoint=tiny", f"output={output}", *words])
    return json.loads((output / "curation.json").read_text())


def test_what_is_kept_and_why_the_rest_is_not(source, tmp_path, measured, capsys):
    output = tmp_path / "hard"
    told = curate(source, output)
    kept = read_split(output, "train")
    assert [s.id for s in kept] == [
        "3",
        "4",
        "5",
        "6",
        "7",
        "8",
        "9",
        "10",
        "11",
    ]  # 6 of 8 right, of question 6, are 0.75
    assert told["dropped"] == {"pass rate": 1, "need audio": 1, "need undetermined": 1}
    assert {s.fields["need"] for s in kept} == {"both"}
    rows = json.loads((output / "omni_rl_format_train.json").read_text())
    assert rows[0]["pass_rate"] == 0.375
    assert told["selected_on"]["questions"] == told["drawn_afresh"]["questions"] == len(kept)
    assert told["selected_on"]["needs"]["both"] == len(kept) and told["drawn_afresh"]["needs"]["undetermined"] == len(
        kept
    )
    assert told["selected_on"]["without"]["no_audio"] == 0.25
    assert measured == [(str(source), 0), (str(output), 1)], "what is kept is answered again with other draws"
    assert not (output / ".work").exists()
    assert "drawn afresh right 37.5 %" in capsys.readouterr().out


def test_media_questions_and_other_splits_are_those_of_the_source(source, tmp_path, measured):
    curate(source, tmp_path / "hard")
    before = {s.id: s for s in read_split(source, "train")}
    for sample in read_split(tmp_path / "hard", "train"):
        old = before[sample.id]
        assert sample.problem == old.problem and sample.image.read_bytes() == old.image.read_bytes()
        assert sample.audio.read_bytes() == old.audio.read_bytes() and sample.fields["kind"] == old.fields["kind"]
        words = lambda s: {o[3:] for o in s.options if o[0] in s.gold}  # noqa: E731
        assert words(sample) == words(old) and {o[3:] for o in sample.options} == {o[3:] for o in old.options}
    for split in ("dev", "valid"):
        one, two = read_split(source, split), read_split(tmp_path / "hard", split)
        assert [(s.id, s.options, s.solution) for s in one] == [(s.id, s.options, s.solution) for s in two]


def test_a_folder_that_holds_other_files_is_no_output(source, tmp_path, measured):
    """Its files would be taken for those of a run that was stopped: sample_4.wav is another sound there."""
    with pytest.raises(UserError, match="source holds other files"):
        curate(source, source)
    (tmp_path / "other/train/images").mkdir(parents=True)
    with pytest.raises(UserError, match="other holds other files"):
        curate(source, tmp_path / "other")
    assert not measured and sorted(path.name for path in (tmp_path / "other").iterdir()) == ["train"]


def test_labels_of_the_source_are_kept_where_nothing_new_takes_their_place(source, tmp_path, measured):
    for split in ("train", "valid"):
        index = source / f"omni_rl_format_{split}.json"
        rows = [{**row, "need": "image", "level": "hard"} for row in json.loads(index.read_text())]
        index.write_text(json.dumps(rows))
    curate(source, tmp_path / "hard")
    assert {s.fields["need"] for s in read_split(tmp_path / "hard", "train")} == {"both"}, "as measured"
    assert {s.fields["need"] for s in read_split(tmp_path / "hard", "valid")} == {"image"}
    assert {s.fields["level"] for s in read_split(tmp_path / "hard", "train")} == {"hard"}


def test_what_is_wrong_with_a_source_is_said_before_a_model_answers(source, tmp_path, measured):
    def says(message, *words, at=source):
        with pytest.raises(UserError, match=message):
            curate(at, tmp_path / "hard", *words)
        assert not measured and not (tmp_path / "hard").exists()

    index = source / "omni_rl_format_valid.json"
    rows = json.loads(index.read_text())
    (source / "valid" / rows[0]["path"]["image"]).unlink()
    says("sample_0.jpg not found")
    index.write_text(json.dumps([{**rows[1], "solution": "B"}]))
    says("has no answer in")
    index.write_text(json.dumps(rows[1:]))
    one = tmp_path / "one.jsonl"
    one.write_text('{"problem": "1 + 1?", "problem_type": "numerical", "solution": "<answer>2</answer>"}\n')
    says("holds one split", at=one)
    (tmp_path / "plain").mkdir()
    shutil.copy(one, tmp_path / "plain/train.jsonl")
    says("no training question has a picture", at=tmp_path / "plain")
    shutil.copy(one, tmp_path / "plain/valid.jsonl")
    (tmp_path / "plain/train.jsonl").unlink()
    says("has no training questions", at=tmp_path / "plain")


def test_the_validation_split_may_have_a_name_of_its_own(tmp_path):
    row = {"problem": "?", "options": ["A. x", "B. y"], "solution": "<answer>A</answer>"}
    rows = [{"problem_id": number, **row} for number in (0, 1)]
    for name, some in (("train", rows), ("exam", rows[:1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    data = difficulty.dataset(str(tmp_path), ["dataset.split=exam"])
    assert len(difficulty.read_samples(data, "valid")) == 1 and len(difficulty.read_samples(data, "train")) == 2


def test_another_selection_forgets_what_a_stopped_one_wrote_and_answered(source, tmp_path, measured, monkeypatch):
    """It was stopped while what it had kept was answered again."""
    work, measure = tmp_path / "hard/.work", difficulty._measure

    def stops(given, path, seed, folder):
        if folder.name == "again":
            (folder / "half").mkdir(parents=True, exist_ok=True)
            raise KeyboardInterrupt
        return measure(given, path, seed, folder)

    monkeypatch.setattr(difficulty, "_measure", stops)
    with pytest.raises(KeyboardInterrupt):
        curate(source, tmp_path / "hard")
    first = {path.name for path in (tmp_path / "hard/train/images").iterdir()}
    measured.clear()
    with pytest.raises(KeyboardInterrupt):
        curate(source, tmp_path / "hard")
    assert (work / "again/half").is_dir() and first, "the same selection goes on"
    measured.clear()
    monkeypatch.setattr(difficulty, "_measure", measure)
    told = curate(source, tmp_path / "hard", "needs=[audio]", "pass_rate=[0,1]")
    images = [path.name for path in (tmp_path / "hard/train/images").iterdir()]
    assert told["kept"] == len(images) == 1 and images[0] not in first


def test_without_shuffling_letters_stay(source, tmp_path, measured):
    curate(source, tmp_path / "hard", "shuffle=false", "needs=[]", "pass_rate=[0,1]")
    before = {s.id: s for s in read_split(source, "train")}
    kept = read_split(tmp_path / "hard", "train")
    assert len(kept) == 12 and all(s.options == before[s.id].options for s in kept)


def test_a_question_that_shares_a_file_with_validation_is_dropped(source, tmp_path, measured):
    shutil.copy(source / "valid/audios/sample_1.wav", source / "train/audios/sample_4.wav")
    told = curate(source, tmp_path / "hard")
    assert told["dropped"]["media in another split"] == 1
    assert "4" not in [s.id for s in read_split(tmp_path / "hard", "train")]


def test_every_letter_is_right_equally_often_and_several_right_options_stay_right():
    turns = Counter()
    options = ("A. dog", "B. cat", "C. cow", "D. hen")
    found = [balanced(str(n), options, frozenset("A"), seed=0, turns=turns) for n in range(40)]
    assert Counter(solution for _, solution in found) == {"A": 10, "B": 10, "C": 10, "D": 10}
    assert all(made["ABCD".index(solution)][3:] == "dog" for made, solution in found)
    assert len({tuple(made) for made, _ in found}) > 10
    assert found == [
        balanced(str(n), options, frozenset("A"), seed=0, turns=again) for again in [Counter()] for n in range(40)
    ]
    made, solution = balanced("x", options, frozenset("AC"), seed=0, turns=Counter())
    assert {made["ABCD".index(letter)][3:] for letter in solution.split(", ")} == {"dog", "cow"}


def test_questions_without_a_label_can_be_asked_for_and_where_none_is_left_the_reasons_are_a_sentence(
    source, tmp_path, measured
):
    with pytest.raises(UserError) as caught:
        curate(source, tmp_path / "hard", "needs=[unlabelled]", "pass_rate=[0,1]")
    assert re.fullmatch(r"no question is left of \d+: \d+ dropped for need both, .*", caught.value.problem)
    assert "needs=[both,undetermined]" in caught.value.hint and "{" not in caught.value.problem


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["draws=3"], "fewer than 4 give no label"),
        (["needs=[sound]"], "needs holds 'sound'"),
        (["pass_rate=[0.8,0.2]"], "is not a range"),
        (["pass_rate=[0,0]", "needs=[neither]"], "no question is left"),
        (["settings=[trainer.bf16=true,seed=5]"], "settings holds seed=5, which curate sets itself"),
        (["settings=[eval.split=valid]"], "settings holds eval.split=valid"),
    ],
)
def test_mistakes_are_said_before_anything_is_computed(source, tmp_path, measured, words, message):
    with pytest.raises(UserError, match=message):
        curate(source, tmp_path / "hard", *words)
    assert not (tmp_path / "hard/curation.json").exists()


def test_a_finished_output_and_one_begun_otherwise_are_refused(source, tmp_path, measured, monkeypatch):
    curate(source, tmp_path / "hard")
    with pytest.raises(UserError, match="is finished"):
        curate(source, tmp_path / "hard")

    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(difficulty, "_measure", stops)
    with pytest.raises(KeyboardInterrupt):
        curate(source, tmp_path / "cut")
    with pytest.raises(UserError, match="begun with other settings"):
        curate(source, tmp_path / "cut", "draws=16")


def test_the_measurement_is_an_evaluation_that_goes_on(source, tmp_path, monkeypatch):
    """The real one, twice: the second time nothing is left to answer."""
    monkeypatch.setattr("echoink.common.cli.train", lambda words: processes.run(tmp_path, *words).returncode)
    given = difficulty.DifficultyConfig(
        source=str(source),
        checkpoint=str(TINY),
        output="x",
        draws=4,
        settings=["generation.max_new_tokens=4", "dataset.train=3"],
    )
    found = difficulty._measure(given, given.source, 0, tmp_path / "work")
    assert set(found) == {"0", "1", "2"}
    assert found["0"]["full"][1] == found["0"]["no_audio"][1] == 4 and found["0"]["need"] == "undetermined"
    answers = (tmp_path / "work/predictions.jsonl").read_bytes()
    assert difficulty._measure(given, given.source, 0, tmp_path / "work") == found
    assert (tmp_path / "work/predictions.jsonl").read_bytes() == answers
    index = source / "omni_rl_format_train.json"
    rows = json.loads(index.read_text())
    rows[0]["solution"] = "<answer>A</answer>" if "A" not in rows[0]["solution"] else "<answer>B</answer>"
    index.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="did not end"):
        difficulty._measure(given, given.source, 0, tmp_path / "work")


def test_other_thresholds_use_what_was_measured(source, tmp_path, measured):
    with pytest.raises(UserError, match="no question is left"):
        curate(source, tmp_path / "hard", "needs=[neither]")
    measured.clear()
    told = curate(source, tmp_path / "hard", "needs=[audio]", "pass_rate=[0,1]")
    assert told["kept"] == 1 and told["needs"] == ["audio"]
    assert len((tmp_path / "hard/needs.jsonl").read_text().splitlines()) == 12
    with pytest.raises(UserError, match="is finished"):
        curate(source, tmp_path / "hard", "needs=[both]")


def test_files_of_ids_that_look_alike_stay_apart(source, tmp_path, measured):
    index = source / "omni_rl_format_train.json"
    rows = json.loads(index.read_text())
    rows[3]["problem_id"], rows[4]["problem_id"] = "clip/1", "clip_1"
    index.write_text(json.dumps(rows))
    curate(source, tmp_path / "hard", "needs=[]", "pass_rate=[0,1]")
    before = {s.id: s.audio.read_bytes() for s in read_split(source, "train")}
    after = {s.id: s.audio.read_bytes() for s in read_split(tmp_path / "hard", "train")}
    assert after and all(before[id] == content for id, content in after.items())


def test_options_that_name_others_keep_their_places():
    def moves(*options):
        return difficulty.may_move(Sample("", "", options, "A"))

    assert not moves("A. dog", "B. cat", "C. both A and B")
    assert not moves("A.", "B.", "C."), "a picture shows which is which"
    assert not moves("A. dog", "B. none of the above")
    for names_others in ("A & B", "A/B", "A + B", "1 and 2", "Only A", "All of them"):
        assert not moves("A. violin", "B. flute", "C. drum", f"D. {names_others}"), names_others
    for names_others in (
        "A only",
        "(A) and (B)",
        "Same as A",
        "Not A",
        "the first two",
        "A to C",
        "1 only",
        "A, but not B",
    ):
        assert not moves("A. violin", "B. flute", "C. drum", f"D. {names_others}"), names_others
    assert moves("A. a dog and a cat", "B. bell") and moves("A. A dog barks", "B. I see it")
    options = ("A. dog", "B. cat")
    assert not difficulty.may_move(Sample("", "Which barks? Choose one: A. dog, B. cat", options, "A"))
    assert difficulty.may_move(Sample("", "A dog or a cat: which barks?", options, "A"))


def test_a_video_without_a_data_type_keeps_its_sound(tmp_path):
    """A row that names a video and no data_type is asked with the video's own sound; written as "video" it is not."""
    from tests.helpers.files import video

    source, row = tmp_path / "source", {"problem": "What is heard?", "options": ["A. x", "B. y"]}
    row |= {"solution": "<answer>A</answer>", "path": {"video": "v.mp4"}}
    (source / "train").mkdir(parents=True)
    video(source / "train/v.mp4", seconds=1)
    rows = [{"problem_id": "0", **row}, {"problem_id": "1", **row, "data_type": "video"}]
    (source / "omni_rl_format_train.json").write_text(json.dumps(rows))
    splits = difficulty.read_source(difficulty.dataset(str(source), []))
    difficulty.write_splits(splits, tmp_path / "out", {"0": {}, "1": {}})
    written = json.loads((tmp_path / "out/omni_rl_format_train.json").read_text())
    assert [row.get("data_type") for row in written] == [None, "video"]
    samples = difficulty.read_samples(difficulty.dataset(str(tmp_path / "out"), []), "train")
    assert [sample.asks_for_soundtrack for sample in samples] == [True, False]


def test_a_bad_row_of_another_split_is_no_row_that_is_left_out_in_silence(source, tmp_path, capsys):
    index = source / "omni_rl_format_valid.json"
    rows = json.loads(index.read_text())
    beside = shutil.move(source / "valid" / rows[1]["path"]["audio"], tmp_path / "beside.wav")
    rows[0]["solution"], rows[1]["path"]["audio"] = "B", str(beside)
    rows[2]["response"] = "<think>heard</think> <answer>A</answer>"
    index.write_text(json.dumps(rows))

    def write(*settings):
        output = tmp_path / f"out{len(settings)}"
        difficulty.write_splits(difficulty.read_source(difficulty.dataset(str(source), settings)), output, {})
        return json.loads((output / index.name).read_text())

    with pytest.raises(UserError, match="has no answer in"):
        write()
    written = write(f"dataset.outside=[{quoted(tmp_path)}]", "dataset.max_skipped=0.5")
    assert "1 row of valid cannot be used" in capsys.readouterr().out
    assert [row["problem_id"] for row in written] == [str(row["problem_id"]) for row in rows[1:]]
    assert [row.get("responses") for row in written[:2]] == [None, [rows[2]["response"]]]


@pytest.mark.parametrize("name", ["dá", "My Drive (1)", "a,b", "x=1", "it's", "#1"])
def test_folders_of_any_name_are_measured(tmp_path, monkeypatch, name):
    started = []
    monkeypatch.setattr("echoink.common.cli.train", lambda words: started.extend(words) and 0)
    work = tmp_path / name
    difficulty.answer_training_split(str(work), f"{work}/model", 0, folder=work / "answers", words=[])
    said = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(started)}
    assert said["dataset.path"] == str(work) and said["checkpoint"] == f"{work}/model"
    assert said["hydra.run.dir"] == str(work / "answers")


def test_what_a_test_split_beside_the_validation_split_has_is_not_trained_on(tmp_path, measured, capsys):
    place = tmp_path / "three"
    for number in range(8):
        picture(place / f"{number}.png", seed=number)
    for name, numbers in (("train", range(6)), ("validation", [6]), ("test", [4, 7])):
        asks = {"problem": "What?", "options": ["A. x", "B. y"], "solution": "<answer>A</answer>"}
        rows = [{"id": f"{name}{n}", **asks, "image": f"{n}.png"} for n in numbers]
        (place / f"{name}.jsonl").write_text(as_lines(rows))
    told = curate(place, tmp_path / "out")
    assert told["dropped"]["media in another split"] == 1
    assert "train4" not in {sample.id for sample in read_split(tmp_path / "out", "train")}
    assert "test is not written: the output has one validation split" in capsys.readouterr().out


OTHERS = "A和B|A和B都对|以上都是|以上皆非|前两者|仅A|只有A正确|选项A和选项B|AとB|上記すべて|alle oben genannten"


@pytest.mark.parametrize("text", OTHERS.split("|"))
def test_options_that_name_others_in_any_language_stay_in_their_places(text):
    options = ("A. 狗", "B. 猫", f"C. {text}")
    assert not difficulty.may_move(Sample("1", "哪个？", options, "C"))
    assert difficulty.may_move(Sample("1", "哪个？", options[:2], "A"))
    assert not difficulty.may_move(Sample("1", "A选项和B选项哪个更响？", options[:2], "A"))
