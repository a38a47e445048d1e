"""Pictures of a run."""

import json

import pytest
from PIL import Image

from echoink.report import curves, smooth


def test_smoothing_by_hand():
    assert smooth([4.0], 0.5) == [4.0]
    assert smooth([1.0, 0.0], 0.5) == pytest.approx([1.0, (0.25) / 0.75])
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)


def test_curves_are_drawn_from_the_folder_alone(tmp_path):
    (tmp_path / "figures").mkdir()
    assert curves(tmp_path) is None
    rows = [
        {"step": s, "reward/accuracy": s / 9, "reward/format": 1.0, "completion/mean_length": 50.0 + s}
        for s in range(1, 10)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = Image.open(curves(tmp_path)).convert("RGB")
    summary = {"base": {"accuracy": 0.3, "interval": [0.2, 0.4]}, "final": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    marked = Image.open(curves(tmp_path)).convert("RGB")
    assert plain.size[0] > 1000 and len(plain.getcolors(1 << 20)) > 50
    assert plain.tobytes() != marked.tobytes(), "the base's accuracy is a point with its interval"
