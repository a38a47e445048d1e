"""The benchmark measures what it says, on work that all systems do alike."""

import json

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from echoink.benchmark import baselines, measure
from echoink.benchmark.__main__ import figure
from echoink.benchmark.config import PARTS, SYSTEMS, BenchmarkConfig
from echoink.benchmark.measure import executed_flops, peak_memory
from echoink.common.errors import UserError
from echoink.config.compose import VERSION_BASE
from echoink.config.paths import conf_dir
from echoink.config.validate import typed
from tests.helpers import processes

MINI = [
    "shape.prompt_tokens=160",
    "shape.completion_tokens=8",
    "shape.group_size=3",
    "repeats=1",
    "growth=false",
    "device=cpu",
]


def composed(*overrides):
    with initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
        return typed(hydra_compose("benchmark", overrides=list(overrides)), BenchmarkConfig)


@pytest.mark.parametrize("shape", sorted(path.stem for path in (conf_dir() / "shape").glob("*.yaml")))
def test_every_shape_composes(shape):
    assert composed(f"shape={shape}").shape.group_size >= 2


@pytest.mark.parametrize("lora", ["false", "true"])
def test_all_systems_compute_the_same_and_ours_no_more_than_is_needed(lora, tmp_path):
    words = [*MINI, f"lora={lora}", "peak_tflops=1"]
    if lora == "true":
        found = measure.benchmark(composed(*words))
    else:  # by the command
        run = processes.run(tmp_path, *words, "hydra.run.dir=here", module="echoink.benchmark")
        assert run.returncode == 0, run.stderr
        assert "max logprob difference" in run.stdout and "plain rows / ours" in run.stdout
        found = json.loads((tmp_path / "here/benchmark.json").read_text())
    assert found["parity"]["max_logprob_difference"] <= 1e-5
    assert found["parity"]["gradient_relative_difference"] <= 1e-5
    for phase in ("rollout", "reference", "update"):
        ours, rows = (found["flops"][name][phase] for name in ("ours", "plain rows"))
        assert 0.9 <= ours / found["needed_flops"][phase] <= 1.35, phase
        assert rows >= 2 * ours, phase
    seconds = found["seconds"]
    for key, name in (("ratio", "plain rows"), ("ratio_reference_equivalent", "one group at a time")):
        expected = seconds[name]["update"]["median"] / seconds["ours"]["update"]["median"]
        assert found[key]["update"] == pytest.approx(expected)
        assert found[key]["peak_memory"] == found["peak_memory"][name] / found["peak_memory"]["ours"]
    assert set(found["ratio"]) == {*PARTS, "peak_memory"}
    assert set(found["mfu"]) == set(SYSTEMS)


def test_without_a_kl_term_only_one_group_at_a_time_runs_a_reference():
    made = measure.make_systems(composed(*MINI, "beta=0"), torch.device("cpu"))
    for system in made.values():
        system.infer()
    assert [system.reference_logps is not None for system in made.values()] == [False, False, True]
    assert measure.needed_flops(made["ours"])["reference"] == 0


def test_systems_that_differ_are_no_benchmark(monkeypatch):
    honest = baselines.SharedPrefix.log_probabilities
    monkeypatch.setattr(baselines.SharedPrefix, "log_probabilities", lambda *a: honest(*a) + 1e-3)
    with pytest.raises(UserError, match="PlainRows and SharedPrefix differ: log-probabilities by 1.0e-03"):
        measure.benchmark(composed(*MINI))


def test_plain_rows_encode_and_prefill_every_row():
    """The baseline does what TRL does: else the ratio would mean nothing."""
    made = measure.make_systems(composed(*MINI), torch.device("cpu"))
    seen = {}
    thinker = made["ours"].unwrapped.model
    thinker.visual.register_forward_pre_hook(lambda _, args: seen.update(patches=seen.get("patches", 0) + len(args[0])))
    for name, expected in (("plain rows", 2 * 3 * 64), ("one group at a time", 2 * 64), ("ours", 2 * 64)):
        seen.clear()
        made[name].prefill()
        assert seen["patches"] == expected, name
    for name, expected in (("plain rows", 2 * 3 * 64), ("one group at a time", 2 * 3 * 64), ("ours", 2 * 64)):
        made[name].infer()
        seen.clear()
        made[name].update()
        # a checkpointed tower runs its layers again, not its entry
        assert seen["patches"] == expected, name


def test_flops_and_memory_by_hand():
    a, b = torch.randn(30, 40), torch.randn(40, 50)
    assert executed_flops(lambda: a @ b) == 2 * 30 * 40 * 50
    query, key = torch.randn(2, 4, 64, 16), torch.randn(2, 2, 96, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert executed_flops(lambda: attend(query, key, key, enable_gqa=True)) == 4 * 2 * 4 * 64 * 96 * 16
    assert peak_memory(lambda: [torch.empty(1000), torch.empty(500)].clear(), torch.device("cpu")) == 6_000


def test_growth_and_its_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "GROWTH", {"group_size": (2, 4), "prompt_tokens": (1,)})
    rows = measure.growth(composed(*MINI))
    assert [(row["key"], row["value"]) for row in rows] == [
        ("group_size", 2),
        ("group_size", 4),
        ("prompt_tokens", 160),
    ]
    assert all(row["ratio"] == row["plain rows"] / row["ours"] for row in rows)
    figure(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_prompt_that_its_media_overflow_is_one_clear_error(tmp_path):
    run = processes.run(tmp_path, "shape.prompt_tokens=80", module="echoink.benchmark")
    assert run.returncode == 2
    assert "picture and sound alone take 79" in run.stderr and "Traceback" not in run.stderr
