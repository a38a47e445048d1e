"""`data split`: no file on both sides, kinds spread evenly, and nothing written where it cannot be done."""

import json

import numpy as np
import pytest
from PIL import Image

from echoink.common.errors import UserError
from echoink.data.__main__ import main


@pytest.fixture
def own(tmp_path):
    """60 questions about 30 pictures, two each: one by the kind `a` or `b`, one by `c`."""
    rows = []
    for number in range(30):
        noise = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
        for kind in ("a" if number < 20 else "b", "c"):
            row = {"problem": f"What is {number}?", "options": ["A. yes", "B. no"], "solution": "<answer>A</answer>"}
            rows.append({**row, "kind": kind, "path": {"image": f"{number}.png"}, "note": f"{number}{kind}"})
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def read(folder):
    names = ("train", "valid", "dev")
    files = [folder / f"{name}.jsonl" for name in names]
    return {
        name: [json.loads(line) for line in file.read_text().splitlines()]
        for name, file in zip(names, files, strict=True)
        if file.is_file()
    }


def test_no_file_is_on_both_sides_every_row_is_once_and_kinds_are_even(own, capsys):
    assert main(["split", str(own / "all.jsonl"), "valid=0.2", "dev=0.1"]) == 0
    found = read(own)
    pictures = {name: {row["path"]["image"] for row in rows} for name, rows in found.items()}
    assert not pictures["train"] & pictures["valid"] and not pictures["train"] & pictures["dev"]
    assert not pictures["valid"] & pictures["dev"]
    everything = sorted(row["note"] for rows in found.values() for row in rows)
    assert everything == sorted(json.loads(line)["note"] for line in (own / "all.jsonl").read_text().splitlines())
    counts = {name: [sum(row["kind"] == kind for row in rows) for kind in "abc"] for name, rows in found.items()}
    assert counts == {"train": [14, 7, 21], "valid": [4, 2, 6], "dev": [2, 1, 3]}
    assert "12 rows (4 a · 2 b · 6 c)" in " ".join(capsys.readouterr().out.split())
    assert main(["check", str(own)]) == 0


def test_what_shares_a_source_or_repeats_without_media_stays_on_one_side(own, tmp_path):
    """Picture and sound cut from one video, which the rows name; and the same question twice, without media."""
    rows = [json.loads(line) for line in (own / "all.jsonl").read_text().splitlines()]
    rows = [row | {"video_source": f"film {place // 6}"} for place, row in enumerate(rows[:48:2])]
    asked = [{**rows[0], "problem": f"What of {number}?", "path": {}} for number in range(12)]
    asked = [{name: value for name, value in row.items() if name != "video_source"} for row in asked]
    (own / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *asked, *asked]))
    main(["split", str(own / "all.jsonl"), "valid=0.4"])
    train, valid = read(own)["train"], read(own)["valid"]
    for key in ("video_source", "problem"):
        sides = [{row[key] for row in side if key in row} for side in (train, valid)]
        assert all(sides) and not sides[0] & sides[1], key


def test_media_of_another_folder_are_allowed_by_name_and_half_a_character_is_refused(own, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    rows = [json.loads(line) for line in (own / "all.jsonl").read_text().splitlines()]
    for row in rows:
        name = row["path"]["image"]
        if (own / name).exists():
            (own / name).rename(elsewhere / name)
        row["path"]["image"] = str(elsewhere / name)
    (own / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="leaves the dataset folder") as error:
        main(["split", str(own / "all.jsonl")])
    assert "outside=[…]" in error.value.hint and "dataset.outside" not in error.value.hint
    assert main(["split", str(own / "all.jsonl"), f"outside=[{elsewhere}]"]) == 0
    rows[7]["tags"] = ["\ud83d"]
    (own / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="row 8 holds half a character"):
        main(["split", str(own / "all.jsonl"), f"outside=[{elsewhere}]", "overwrite=true"])


def test_a_share_that_cannot_be_had_is_said(own, capsys):
    rows = [json.loads(line) for line in (own / "all.jsonl").read_text().splitlines()]
    rows = [row | {"image_source": f"film {place // 12}"} for place, row in enumerate(rows)]
    (own / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["split", str(own / "all.jsonl"), "valid=0.3"])
    got = len(read(own)["valid"])
    assert got in (12, 24) and f"valid has {got * 100 // 60} % of the rows, not 30 %" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_split_that_is_no_longer_asked_for_does_not_stay_beside_the_new_ones(own, capsys):
    """Its questions would be trained on and choose the best checkpoint."""
    assert main(["split", str(own / "all.jsonl"), "valid=0.2", "dev=0.1"]) == 0
    (own / "train.jsonl").unlink()
    (own / "valid.jsonl").unlink()
    with pytest.raises(UserError, match="there already: .*dev.jsonl"):
        main(["split", str(own / "all.jsonl")])
    assert main(["split", str(own / "all.jsonl"), "overwrite=true"]) == 0
    assert set(read(own)) == {"train", "valid"} and "removed" in capsys.readouterr().out


def test_a_field_that_no_row_has_is_refused_and_types_are_fields_too(tmp_path):
    row = {"problem": "1 + 1?", "problem_type": "numerical", "solution": "<answer>2</answer>"}
    words = [{**row, "problem_type": "free-form", "solution": "<answer>two</answer>"}, row]
    file = tmp_path / "all.jsonl"
    file.write_text("".join(json.dumps({**words[n % 2], "problem": f"{n}?"}) + "\n" for n in range(20)))
    with pytest.raises(UserError, match="by=knd: no row has such a field"):
        main(["split", str(file), "by=knd"])
    assert main(["split", str(file), "valid=0.2", "by=problem_type"]) == 0
    kinds = [json.loads(line)["problem_type"] for line in (tmp_path / "valid.jsonl").read_text().splitlines()]
    assert sorted(kinds) == ["free-form", "free-form", "numerical", "numerical"]


def test_the_seed_chooses_and_the_order_of_rows_does_not(own):
    def valid(seed, rows):
        for name in ("train", "valid"):
            (own / f"{name}.jsonl").unlink(missing_ok=True)
        (own / "all.jsonl").write_text("".join(rows))
        main(["split", str(own / "all.jsonl"), f"seed={seed}"])
        return {row["note"] for row in read(own)["valid"]}

    rows = [
        json.dumps({**json.loads(line), "problem_id": number}) + "\n"
        for number, line in enumerate((own / "all.jsonl").read_text().splitlines())
    ]
    assert valid(0, rows) == valid(0, rows[::-1]) != valid(1, rows)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["valid=1"], "leave nothing"),
        (["valid=0.001", "dev=0.5"], ""),
        (["vaild=0.2"], "did you mean valid=?"),
    ],
)
def test_bad_shares_are_one_clear_error_or_still_give_each_split_something(own, words, error):
    if error:
        with pytest.raises(UserError, match=error.replace("?", r"\?")):
            main(["split", str(own / "all.jsonl"), *words])
        assert not read(own)
    else:
        main(["split", str(own / "all.jsonl"), *words])
        assert all(read(own).values())


def test_a_bad_row_and_a_file_that_is_there_are_refused(own):
    (own / "0.png").unlink()
    with pytest.raises(UserError, match=r"(?s)0\.png.*1 more row\).*data check"):
        main(["split", str(own / "all.jsonl")])
    (own / "valid.jsonl").write_text("")
    with pytest.raises(UserError, match="there already: .*valid.jsonl"):
        main(["split", str(own / "all.jsonl")])


def test_one_picture_for_all_cannot_be_divided(own):
    rows = [{**json.loads(line), "path": {"image": "1.png"}} for line in (own / "all.jsonl").read_text().splitlines()]
    (own / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="valid would be empty: 60 rows in 1 group without"):
        main(["split", str(own / "all.jsonl")])
