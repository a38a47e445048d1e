"""`data check` and `data show` on sets with bad rows: all of them named, and an exit status."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest

from echoink.common.errors import UserError
from echoink.data.__main__ import main
from echoink.data.readers import open_split
from tests.helpers import processes


@pytest.fixture
def own(dataset, tmp_path):
    """Twelve rows of one's own, three of them bad: a type, an answer and a file; valid shares four with train."""
    rows = json.loads((dataset / "omni_rl_format_train.json").read_text())[:12]
    for row in rows:
        for name, path in row["path"].items():
            shutil.copy(dataset / "train" / path, tmp_path / path.rpartition("/")[2])
            row["path"][name] = path.rpartition("/")[2]
    valid = [{**row, "kind": "ear"} for row in rows[6:8]]
    rows[1]["problem_type"], rows[3]["solution"] = "multiple chioce", "<answer>Q</answer>"
    rows[5]["path"]["image"] = "gone.jpg"
    for name, found in (("train", rows), ("valid", valid)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)))
    return tmp_path


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_check_names_every_bad_row_at_once_and_says_so_to_scripts(own, capsys):
    assert main(["check", str(own)]) == 1
    text = said(capsys)
    assert (
        "(problem_id 1): problem_type 'multiple chioce' is not known → did you mean 'multiple choice'? known: " in text
    )
    assert "(problem_id 3): the answer 'Q' is not among the options" in text and "gone.jpg" in text
    assert "9 of 12 rows can be used" in text and "2 of 2 rows can be used" in text
    assert "train and valid share 4 files" in text and "sample_6.jpg" in text
    assert "valid has no question of kind both, eye" in text


def test_all_splits_that_evaluate_are_checked_and_the_first_of_their_names_is_used(own, capsys):
    """`val` is no training file that nobody reads, and `test` is not taken in its place."""
    good = [json.loads(line) for line in (own / "train.jsonl").read_text().splitlines()][6:]
    for name, rows in (("train", good[:3]), ("test", [*good[2:4], {**good[4], "solution": "<answer>Q</answer>"}])):
        (own / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (own / "valid.jsonl").rename(own / "val.jsonl")
    assert open_split(str(own), "valid").where.endswith("/val.jsonl")
    assert main(["check", str(own)]) == 0, "a test split may have no answers"
    text = said(capsys)
    assert "the answer 'Q' is not among the options" in text and "train and test share" in text
    (own / "test.jsonl").write_text("{garbage")
    assert main(["check", str(own)]) == 0, "train and valid are sound"
    assert "test.jsonl, line 1 is not valid JSON" in (text := said(capsys)) and "3 of 3 rows can be used" in text
    (own / "test.jsonl").write_text((own / "train.jsonl").read_text())
    (own / "val.jsonl").unlink()
    main(["check", str(own)])
    assert "test.jsonl is what is evaluated: there is no split valid, validation or val" in said(capsys)


def test_check_of_a_sound_set_ends_with_0(dataset, capsys):
    assert main(["check", str(dataset)]) == 0
    assert "bad row" not in said(capsys)


def test_files_that_are_cut_from_one_source_are_shared_by_their_splits(own, capsys):
    sources = {"train": ["tape", "other"], "valid": ["tape", "third"]}
    rows = [json.loads(line) for line in (own / "train.jsonl").read_text().splitlines()]
    good = [rows[place] for place in (0, 2, 4, 6)]
    for split, two in (("train", good[:2]), ("valid", good[2:])):
        named = [{**row, "audio_source": source} for row, source in zip(two, sources[split], strict=True)]
        (own / f"{split}.jsonl").write_text("\n".join(map(json.dumps, named)))
    assert main(["check", str(own)]) == 0
    shown = said(capsys)
    assert "train and valid share 1 file, so accuracy on valid may be too high: " in shown
    text = [{**row, "path": {}, "data_type": "text"} for row in good]
    for split in ("train", "valid"):
        (own / f"{split}.jsonl").write_text("\n".join(map(json.dumps, text[:1] if split == "train" else text)))
    main(["check", str(own)])
    assert "train and valid share 1 question without media, so accuracy" in said(capsys)
    assert f"{good[0]['path']['audio']} = " in shown and f"{good[2]['path']['audio']} (source tape)" in shown


def test_check_reads_a_file_as_one_split_and_refuses_what_is_not_there(own, capsys):
    assert main(["check", str(own / "valid.jsonl")]) == 0
    text = said(capsys)
    assert "valid 2 of 2" in text and "train" not in text.replace(str(own), "")
    found = subprocess.run([sys.executable, "-m", "echoink.data", "check", "nowhere"], capture_output=True, text=True)
    assert found.returncode == 2 and "dataset folder not found: nowhere" in found.stderr


def test_a_split_that_cannot_be_read_is_no_missing_split(own, tmp_path):
    (own / "omni_rl_format_train.json").write_text('[{"problem": ')
    with pytest.raises(UserError, match="omni_rl_format_train"):
        main(["check", str(own)])
    (own / "valid.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"(?s)omni_rl_format_train.*valid\.jsonl, line 1 is not valid JSON"):
        main(["check", str(own)])


def test_show_names_bad_rows_and_shows_the_others(own, tmp_path, capsys):
    words = ["show", "dataset=rows", f"dataset.path={own}", "split=train", "n=8", f"output={tmp_path}/shown"]
    assert main(words) == 1
    text = said(capsys)
    assert "multiple chioce" in text and "gone.jpg" in text and "7 of 10 rows of train" in text
    assert len(list((tmp_path / "shown").glob("*.png"))) == 7
    assert main([*words[:3], "split=valid", words[-1]]) == 0


def test_a_starter_set_is_sound_and_the_printed_command_trains_on_it(tmp_path, capsys):
    folder = tmp_path / "my set"
    assert main(["new", str(folder)]) == 0
    command = shlex.split(capsys.readouterr().out.partition("\ntrain ")[2].strip())
    assert main(["check", str(folder)]) == 0
    text = said(capsys)
    assert "20 of 20 rows can be used" in text and "10 of 10 rows can be used" in text and "warning" not in text
    assert "4 with a video and its sound" in text and "4 with text alone" in text
    with pytest.raises(UserError, match="is not empty"):
        main(["new", str(folder)])
    assert command[:3] == ["python", "-m", "echoink.train"]
    words = [*command[3:], "grpo.group_size=2", "generation.max_new_tokens=8", "tracking=off", "eval.base=false"]
    done = processes.run(tmp_path, *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("chance", "good"), [(0.25, True), ("0.25", True), (None, True), (0, False), (2, False), ("x", False)]
)
def test_a_rows_chance_is_a_probability(own, chance, good):
    row = json.loads((own / "valid.jsonl").read_text().splitlines()[0]) | {"chance": chance}
    (own / "valid.jsonl").write_text(json.dumps(row))
    assert main(["check", str(own / "valid.jsonl")]) == int(not good)


def test_check_names_files_that_are_nearly_the_same(own, dataset, capsys):
    """The picture of a training question, smaller and with other bytes, and its sound at half its level, in valid."""
    import soundfile
    from PIL import Image

    row = json.loads((own / "train.jsonl").read_text().splitlines()[0])
    Image.open(own / row["path"]["image"]).resize((180, 180)).save(own / "smaller.jpg", quality=70)
    samples, rate = soundfile.read(own / row["path"]["audio"])
    soundfile.write(own / "quieter.wav", samples / 2, rate)
    row["path"] = {"image": "smaller.jpg", "audio": "quieter.wav"}
    (own / "valid.jsonl").write_text(json.dumps(row))
    main(["check", str(own)])
    text = said(capsys)
    assert "of nearly the same pictures" in text and "sample_0.jpg ≈ valid smaller.jpg" in text
    assert "1 pair of nearly the same sounds, 1 of them across splits: train sample_0.wav ≈ valid quieter.wav" in text


def test_show_writes_one_page_with_everything(own, tmp_path_factory, capsys):
    file = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["show", "dataset=rows", f"dataset.path={own}", "split=train", "n=12", f"output={file}"]) == 1
    page = file.read_text()
    assert page.count("<section>") == 9 and page.count('<img src="data:image/png') == 9
    assert page.count("<audio controls") == 9 and "multiple chioce" in page and "&lt;|im_start|&gt;user" in page
    assert "16 picture · 25 sound" in page and "9 samples" in said(capsys)


def test_a_prompt_of_ones_own_is_shown(own, tmp_path_factory, capsys):
    mine = tmp_path_factory.mktemp("mine")
    (mine / "prompt").mkdir()
    template = "{question} {options} Be terse: {think}{end_think}{answer}{end_answer}"
    (mine / "prompt/terse.yaml").write_text(f"defaults: [reason]\ntemplate: '{template}'\n")
    words = ["show", "dataset=rows", f"dataset.path={own}", "split=valid", "n=1", "prompt=terse", f"output={mine}/x"]
    for flag in (["--config-dir", str(mine)], [f"--config-dir={mine}"]):
        assert main([*words, *flag]) == 0
        assert "Be terse:" in said(capsys)
    assert main(["check", str(own / "valid.jsonl"), "--config-dir", str(mine)]) == 0
    with pytest.raises(UserError, match="--config-dir without a folder"):
        main(["check", str(own), "--config-dir"])
