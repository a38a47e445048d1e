"""Pictures of runs and ablations."""

import json

import pytest
from PIL import Image

from echoink.common.files import as_lines
from echoink.data import synthetic
from echoink.report.figures import curves, overlay, sheet, smooth
from echoink.run_folder.reader import Run
from tests.helpers.files import picture, sound


def test_smoothing_by_hand():
    assert smooth([4.0], 0.5) == [4.0]
    assert smooth([1.0, 0.0], 0.5) == pytest.approx([1.0, (0.25) / 0.75])
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)


def test_curves_are_drawn_from_the_folder_alone(tmp_path):
    target = tmp_path / "figures/curves.png"
    assert curves(tmp_path, target) is None
    rows = [
        {"step": s, "reward/accuracy": s / 9, "reward/format": 1.0, "completion/mean_length": 50.0 + s}
        for s in range(1, 10)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = Image.open(curves(tmp_path, target)).convert("RGB")
    summary = {"base": {"accuracy": 0.3, "interval": [0.2, 0.4]}, "final": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    marked = Image.open(curves(tmp_path, target)).convert("RGB")
    assert plain.size[0] > 1000 and len(plain.getcolors(1 << 20)) > 50
    assert plain.tobytes() != marked.tobytes(), "the base's accuracy is a point with its interval"


def test_an_overlay_has_a_line_per_arm_and_a_band_over_its_seeds(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    lines, bands = [], []
    monkeypatch.setattr(Axes, "fill_between", lambda self, x, low, high, **_: bands.append((x, low, high)))
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: (lines.append((a, k)), plot(self, *a, **k))[1])
    runs = []
    for beta, seed, value in ((0.0, 0, 0.2), (0.0, 1, 0.4), (0.04, 0, 0.9)):
        folder = tmp_path / f"{beta}-{seed}"
        folder.mkdir()
        row = {"reward/accuracy": value, "reward/format": 1.0, "completion/mean_length": 50.0}
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, **row}) + "\n" for s in (1, 2)))
        runs.append(Run(folder, {"status": "finished"}, {"grpo.beta": beta, "seed": seed}))
    assert overlay([Run(tmp_path, {"status": "failed"}, {"seed": 0})], tmp_path / "none.png") is None
    target = overlay(runs, tmp_path / "figures/curves.png")
    assert Image.open(target).size[0] > 1000
    labelled = [(a[1], k["label"]) for a, k in lines if "label" in k]
    assert labelled[:2] == [([pytest.approx(0.3)] * 2, "β 0"), ([pytest.approx(0.9)] * 2, "β 0.04")]
    assert bands[0] == ([1, 2], [pytest.approx(0.2)] * 2, [pytest.approx(0.4)] * 2) and len(bands) == 3
    assert not any("marker" in k for _, k in lines)
    (tmp_path / "short").mkdir()
    (tmp_path / "short/metrics.jsonl").write_text(json.dumps({"step": 1, **row}) + "\n")
    overlay([Run(tmp_path / "short", {"status": "finished"}, {"seed": 0})], tmp_path / "short.png")
    assert lines[-1][1]["marker"], "a line through one point is invisible"


def test_supervised_runs_show_their_loss(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: (drawn.append([*a[1]]), plot(self, *a, **k))[1])
    row = {"reward/accuracy": 1.0, "reward/format": 0.5, "completion/mean_length": 50.0}
    rows = [{"step": step, "train/loss": 4.0 / step, **row} for step in (1, 2)] + [{"step": 3, **row}]
    (tmp_path / "metrics.jsonl").write_text(as_lines(rows))
    (tmp_path / "summary.json").write_text(json.dumps({"task": "sft"}))
    run = Run(tmp_path, {"status": "finished", "task": "sft"}, {"seed": 0})
    for draw in (lambda: curves(tmp_path, tmp_path / "a.png"), lambda: overlay([run], tmp_path / "b.png")):
        drawn.clear()
        draw()
        assert drawn[::2] == [[4.0, 2.0, 2.0], [1.0] * 3, [0.5] * 3], "each raw, then smoothed; step 3 was skipped"


def test_an_accuracy_at_the_end_of_its_interval_is_drawn(tmp_path):
    rows = [{"step": s, "reward/accuracy": 0.0, "reward/format": 1.0, "completion/mean_length": 50.0} for s in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    summary = {
        "base": {"accuracy": 0.0, "interval": [1e-17, 0.98]},
        "final": {"accuracy": 1.0, "interval": [0.1, 1 - 1e-16]},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert curves(tmp_path, tmp_path / "figures/curves.png").stat().st_size > 10_000


def test_a_sheet_shows_what_a_sample_has(tmp_path):
    """A video, or one sense alone."""
    picture(tmp_path / "a.png")
    sound(tmp_path / "a.wav")
    asks = {"problem": "What?", "options": ["A. x", "B. y"], "solution": "<answer>A</answer>"}
    rows = [{"id": "0", **asks, "image": "a.png"}, {"id": "1", **asks, "audio": "a.wav"}, {"id": "2", **asks}]
    (tmp_path / "valid.jsonl").write_text(as_lines(rows))
    assert Image.open(sheet(tmp_path, tmp_path / "sheet.png")).size[0] > 300


def test_a_question_with_dollars_is_no_formula(tmp_path):
    synthetic.write(tmp_path / "set", 0, {"train": 2, "dev": 1, "valid": 2})
    index = tmp_path / "set/omni_rl_format_valid.json"
    rows = json.loads(index.read_text())
    rows[0]["problem"] = "Which costs more than $5 \\frac and $6?"
    index.write_text(json.dumps(rows))
    assert sheet(tmp_path / "set", tmp_path / "sheet.png").stat().st_size > 1000
