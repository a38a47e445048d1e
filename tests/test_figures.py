"""Pictures of a run."""

import json

import pytest
from PIL import Image

from echoink.errors import UserError
from echoink.report import curves, label, main, smooth


def test_smoothing_by_hand():
    assert smooth([4.0], 0.5) == [4.0]
    assert smooth([1.0, 0.0], 0.5) == pytest.approx([1.0, (0.25) / 0.75])
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)


def test_curves_are_drawn_from_the_folder_alone(tmp_path):
    target = tmp_path / "figures/curves.png"
    assert curves({"run": tmp_path}, target) is None
    rows = [
        {"step": s, "reward/accuracy": s / 9, "reward/format": 1.0, "completion/mean_length": 50.0 + s}
        for s in range(1, 10)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = Image.open(curves({"run": tmp_path}, target)).convert("RGB")
    summary = {"base": {"accuracy": 0.3, "interval": [0.2, 0.4]}, "final": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    marked = Image.open(curves({"run": tmp_path}, target)).convert("RGB")
    assert plain.size[0] > 1000 and len(plain.getcolors(1 << 20)) > 50
    assert plain.tobytes() != marked.tobytes(), "the base's accuracy is a point with its interval"


def test_the_command_draws_runs_sweeps_and_datasets(tmp_path, dataset, capsys):
    for job, value in (("0", 0.2), ("1", 0.9)):
        (tmp_path / job / ".hydra").mkdir(parents=True)
        (tmp_path / job / ".hydra/overrides.yaml").write_text(f"- grpo.beta={job}\n- seed=0\n")
        row = {"step": 1, "reward/accuracy": value, "reward/format": 1.0, "completion/mean_length": 50.0}
        (tmp_path / job / "metrics.jsonl").write_text(json.dumps(row))
    assert [label(tmp_path / job) for job in "01"] == ["grpo.beta=0", "grpo.beta=1"]
    main([str(tmp_path)])
    main([str(tmp_path / "0")])
    main([str(dataset), str(tmp_path / "sheet.png")])
    drawn = capsys.readouterr().out.split()
    assert drawn == [f"{tmp_path}/figures/curves.png", f"{tmp_path}/0/figures/curves.png", f"{tmp_path}/sheet.png"]
    assert all(Image.open(path).size[1] > 300 for path in drawn)
    with pytest.raises(UserError, match="neither a run"):
        main([str(tmp_path / "nothing")])
