"""The model of a step's cost: its operations against those that run, its growth, what a plan says of GPUs."""

import json
from dataclasses import replace

import pytest

from echoink.benchmark.measure import executed_flops, make_systems, phases
from echoink.config.schema import Dimensions
from echoink.data.token_counts import Tokens
from echoink.planning import plan, step_time
from experiments.step_time import predicted
from tests.benchmark.test_benchmark import MINI, composed
from tests.helpers import processes
from tests.helpers.configs import config_of

DIMENSIONS = Dimensions(layers=28, width=3584, feed_forward=18944, heads=28, key_heads=4, vocabulary=152_064)
MODEL = step_time.Model(
    DIMENSIONS, 640e6, 676e6, learning=8.93e9, learning_language=True, learning_towers=True, total=8.93e9
)
STEP = step_time.Step(8, 500.0, 256.0, heard=125.0, group=16, completion=200.0, micro_batch=1, updates=1)
WHOLE = ("weights", "gradients", "optimizer")
H100 = step_time.GPUS[1]


@pytest.mark.parametrize("words", [[], ["shape.group_size=8"], ["shape.completion_tokens=40"], ["shape.prompts=3"]])
def test_operations_are_those_that_run(words):
    import torch

    settings = ["shape=small", *MINI, "shape.width=256", "shape.feed_forward=768", *words]
    system = make_systems(composed(*settings), torch.device("cpu"))["ours"]
    says = predicted(system)
    for phase, run in phases(system):
        assert says[phase] == pytest.approx(executed_flops(run), rel=0.25), phase


def test_seconds_by_hand():
    """On one GPU: 8 prompts of 500 tokens and 128 completions of 200, at 0.4 of 989 TFLOP/s and 0.6 of 3.35 TB/s."""
    found = step_time.seconds(MODEL, STEP, H100, gpus=1, sharded=(), reference=True, again=True)
    tokens = 8 * (500 + 16 * 200)
    matrices = 2 * 6_525_288_448 * tokens + 2 * 544_997_376 * (8 * 16 * 200 + 8)
    towers = 8 * (4 * 256 * 2 * 676e6 + 2 * 125 * 2 * 640e6)
    pairs = 8 * (500**2 / 2 + 16 * (500 * 200 + 200**2 / 2))
    forward = (matrices + towers + 4 * 3584 * 28 * pairs) / (0.4 * 989e12)
    assert found["reference"] == pytest.approx(forward) and found["update"] == pytest.approx(4 * forward)
    reading = 400 * 2 * (6_525_288_448 + 544_997_376) / (0.6 * 3.35e12)  # all weights, for each token of the longest
    assert found["rollout"] > reading and found["optimizer"] == pytest.approx(28 * 8.93e9 / (0.6 * 3.35e12))


def test_costs_grow_as_they_must():
    on = {"gpu": H100, "gpus": 8, "sharded": WHOLE, "reference": True, "again": True}
    times = step_time.growth(MODEL, STEP, 4496, **on)
    assert times["samples"] == 2 and all(1 < value <= 2.2 for value in times.values())
    for other in (replace(STEP, group=32), replace(STEP, completion=400.0), replace(STEP, prompt=1000.0)):
        assert step_time.seconds(MODEL, other, **on)["total"] > step_time.seconds(MODEL, STEP, **on)["total"]
    one, eight = (
        step_time.hours(MODEL, STEP, 4496, gpu=H100, gpus=n, sharded=WHOLE if n > 1 else (), reference=True, again=True)
        for n in (1, 8)
    )
    assert eight["hours"] < one["hours"] and eight["gpu_hours"] > one["gpu_hours"] and eight["steps"] == 562
    many = step_time.hours(MODEL, STEP, 4496, gpu=H100, gpus=64, sharded=WHOLE, reference=True, again=True)
    assert (many["prompts_per_step"], many["steps"]) == (64, 71)  # every GPU has a prompt, so there are fewer steps
    frozen = replace(MODEL, learning=10e6, learning_language=False, learning_towers=False, adapts=True)
    adapter, whole = (
        step_time.seconds(frozen, STEP, H100, gpus=8, sharded=(), reference=False, again=False),
        step_time.seconds(MODEL, STEP, **on),
    )
    assert adapter["update"] < whole["update"] and adapter["rollout"] > whole["rollout"], (
        "LoRA starts more kernels a token"
    )


def test_the_seconds_of_a_step_are_its_share_of_the_rollout():
    on = {"gpu": H100, "gpus": 8, "sharded": WHOLE, "reference": True, "again": True}
    once = step_time.hours(MODEL, STEP, 800, **on)
    four = step_time.hours(MODEL, replace(STEP, updates=4), 800, **on)
    assert four["steps"] == 4 * once["steps"]
    assert four["seconds_per_step"]["rollout"] == pytest.approx(once["seconds_per_step"]["rollout"] / 4)
    assert four["hours"] == pytest.approx(four["steps"] * four["seconds_per_step"]["total"] / 3600)


@pytest.mark.parametrize(
    ("words", "weights", "state"),
    [("trainer=ddp", 1, 1), ("trainer=fsdp2", 4, 4), ("trainer=zero2", 1, 4), ("trainer=fsdp2 adapter=lora", 1, 1)],
)
def test_the_first_process_writes_what_is_not_sharded(words, weights, state):
    """By how much the processes divide the checkpoint's weights and the optimizer's state."""
    config = config_of(
        "trainer.processes=4", "trainer.prompts_per_step=8", "trainer.micro_batch_prompts=2", *words.split()
    )
    disk = plan.disk_bytes(config, plan.count_parameters(config))
    written = disk["checkpoint"] / weights + disk["optimizer"] / state
    assert disk["first_process"] == pytest.approx(written, abs=2)


def test_plain_rows_and_a_division_across_machines_take_longer():
    on = {"gpu": H100, "gpus": 64, "sharded": WHOLE, "reference": True, "again": True}
    step = replace(STEP, prompts=64)
    within, among = (step_time.seconds(MODEL, step, **on, across_machines=wide) for wide in (False, True))
    assert among["total"] > 1.2 * within["total"] and among["rollout"] > within["rollout"]
    shared, plain = (step_time.operations(MODEL, replace(STEP, shared=each)) for each in (True, False))
    assert plain["forward"] > 2.5 * shared["forward"] and plain["decode"] == shared["decode"]


def gpus_of(*words):
    config = config_of(*words)
    return plan.gpus(config, plan.count_parameters(config), [Tokens(160, 230, 190, 0)] * 64)


def test_weights_of_another_model_than_the_group_says_are_warned_of(tmp_path):
    """`model.path=` alone keeps the caps of the embedded model: a real one would see pictures of 112 x 112 pixels."""
    model = config_of(f"model.path={tmp_path}").model
    assert plan.other_architecture(model, 3, 128) is None and plan.warning_before_loading(model) is None
    assert plan.warning_before_loading(config_of().model) is None, "the embedded model is what its file says"
    hub = plan.warning_before_loading(config_of("model.path=Qwen/Qwen2.5-Omni-3B").model)
    assert "the weights have 36 layers of width 2,048, and model.architecture says 3 of 128" in hub
    other = plan.warning_before_loading(config_of("model.path=me/my-model").model)
    assert "the dimensions of me/my-model are not known before it is loaded" in other
    for known in (["model=qwen2_5_omni_7b"], ["model=small"], ["model=qwen2_5_omni_3b", "model.path=me/my-model"]):
        assert plan.warning_before_loading(config_of(*known).model) is None
    text = {"text_config": {"num_hidden_layers": 36, "hidden_size": 2048}}
    for config in (text, {"thinker_config": text}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        said = plan.warning_before_loading(model)
        assert "36 layers of width 2,048, and model.architecture says 3 of 128" in said and "112 x 112 pixels" in said


def test_gpus_are_planned_as_the_run_divides_and_for_as_many_as_it_is_for():
    words = ["experiment=echoink_r1_7b", "dataset.path=x", "model=qwen2_5_omni_3b"]
    found = gpus_of(*words, "trainer=ddp", "trainer.processes=8")
    assert found["8"]["sharding"] == "none" and not found["8"]["H100 80 GB"]["fits"]
    assert found["8"]["H100 80 GB"]["memory_bytes"] > 100 * 2**30, "no process holds all of it"
    found = gpus_of(*words, "trainer=fsdp2", "trainer.processes=16", "trainer.prompts_per_step=16")
    assert {"1", "8", "16", "64"} <= set(found)
    text = " ".join(plan._gpu_lines(found))
    assert "16 x H100 80 GB with trainer.sharding=fsdp2: about" in text
    without = plan._not_counted(config_of(*words, "reward=integration", "generation=vllm"))
    assert without[0] == "evaluations" and len(without) == 5


def test_deepspeed_holds_float32_beside_a_module_in_bfloat16():
    """On two processes ZeRO-3 wrote 13.7 MB of state for the tiny model in float32, ZeRO-2 18.2 with the module."""
    tiny = config_of("trainer=zero3", "trainer.processes=2")
    learning = plan.count_parameters(tiny)["learning"]
    assert plan.disk_bytes(tiny, plan.count_parameters(tiny))["optimizer"] == 12 * learning
    two = config_of("trainer=zero2", "trainer.processes=2")
    assert plan.disk_bytes(two, plan.count_parameters(two))["optimizer"] == 16 * learning
    words = ["experiment=echoink_r1_7b", "dataset.path=x", "trainer.bf16=true", "trainer.processes=8"]
    for more, weights in (
        (["trainer=zero2"], 1),
        (["trainer=zero3"], 8),
        (["trainer=zero3", "model.dtype=bfloat16"], 8),
    ):
        config = config_of(*words, *more)
        parameters = plan.count_parameters(config)
        needed = plan.needs(config, parameters, 600)
        assert needed.weights == 2 * parameters["total"] // weights
        assert needed.optimizer == 12 * parameters["learning"] // 8
    assert 2**30 * 50 < plan.needs(config_of(*words, "trainer=zero2"), parameters, 600).total < 2**30 * 68


def test_a_plan_says_what_it_takes_on_gpus(tmp_path):
    words = ["experiment=echoink_r1_7b", "dataset=synthetic", "dataset.train=16", "dataset.dev=3", "dataset.valid=12"]
    done = processes.run(tmp_path, *words, "dry_run=true", "hydra.run.dir=outputs/plan")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "1 x H100 80 GB: does not fit" in said and "8 x H100 80 GB with" in said and "not measured" in said
    found = json.loads((tmp_path / "outputs/plan/plan.json").read_text())["gpus"]
    assert not found["1"]["H100 80 GB"]["fits"] and found["8"]["H100 80 GB"]["fits"]
    assert found["8"]["sharding"] == found["64"]["sharding"] == "fsdp2"
    for count in ("8", "64"):
        of = found[count]["A100 80 GB"]
        assert of["gpu_hours"] == pytest.approx(of["hours"] * int(count))
        assert of["hours"] == pytest.approx(of["steps"] * of["seconds_per_step"]["total"] / 3600)
    done = processes.run(tmp_path, "dataset.train=16", "dataset.dev=3", "dataset.valid=12", "dry_run=true")
    assert done.returncode == 0 and "H100" not in done.stdout  # nobody rents one for the tiny model


def test_a_frozen_language_model_has_no_adapters_kernels_and_projections_that_learn_want_their_towers(monkeypatch):
    seen = []
    seconds = step_time.seconds
    monkeypatch.setattr(step_time, "seconds", lambda *of, **named: seen.append(seconds(*of, **named)) or seen[-1])

    def one_gpu(freeze: str) -> dict[str, float]:
        words = ["model=qwen2_5_omni_7b", "dataset=avqa_r1_6k", "dataset.path=x", f"model.freeze=[{freeze}]"]
        config = config_of(*words, "trainer.bf16=true")
        seen.clear()
        plan.gpus(config, plan.count_parameters(config), 8 * [Tokens(text=100, image=256, audio=250, video=0)])
        return seen[0]

    assert one_gpu("language")["rollout"] == one_gpu("")["rollout"]
    assert one_gpu("audio_encoder,vision_encoder")["update"] > one_gpu("audio,vision")["update"]


def test_with_an_adapter_the_reference_is_computed_too_and_takes_no_memory():
    config = config_of("experiment=echoink_r1_3b_lora", "dataset=rows", "dataset.path=x")
    parameters = {"total": 4_700_000_000, "learning": 30_000_000, "adapter": 30_000_000}
    with_kl, without = (
        plan.gpus(one, parameters, [Tokens(text=200, image=256, audio=125, video=0)] * 16)["1"]
        for one in (config, replace(config, grpo=replace(config.grpo, beta=0.0)))
    )
    assert with_kl["H100 80 GB"]["seconds_per_step"]["reference"] > 0
    assert without["H100 80 GB"]["seconds_per_step"]["reference"] == 0
    assert with_kl["H100 80 GB"]["memory_bytes"] == without["H100 80 GB"]["memory_bytes"]


def test_activations_that_do_not_fit_are_computed_again_where_the_configuration_leaves_it_open():
    """As a run does it: by default nothing is said of gradient checkpointing."""
    words = ["model=qwen2_5_omni_3b", "model.dtype=bfloat16", "adapter=lora", "trainer.bf16=true", "dataset.path=x"]
    words += ["dataset=rows", "grpo.group_size=16", "generation.max_new_tokens=768"]
    found = {}
    for given in ("null", "true", "false"):
        config = config_of(*words, f"trainer.gradient_checkpointing={given}")
        tokens = [Tokens(text=200, image=256, audio=250, video=0)] * 16
        found[given] = plan.gpus(config, plan.count_parameters(config), tokens)["1"]["H100 80 GB"]
    assert found["null"] == found["true"] and found["true"]["fits"] and not found["false"]["fits"]
    assert found["null"]["gradient_checkpointing"] is True


@pytest.mark.parametrize(("trainer", "among"), [("zero3", 64), ("fsdp2", 8)])
def test_on_several_machines_zero3_divides_among_all_and_fsdp2_within_one(trainer, among):
    words = ["model=qwen2_5_omni_7b", "trainer.bf16=true", "dataset=rows", "dataset.path=x"]
    words += [f"trainer={trainer}", "trainer.prompts_per_step=64", "trainer.gradient_checkpointing=true"]
    tokens = [Tokens(text=200, image=256, audio=250, video=0)] * 64
    config = config_of(*words, f"trainer.processes={among}", "trainer.micro_batch_prompts=1")
    parameters = plan.count_parameters(config)
    alike = replace(config, trainer=replace(config.trainer, processes=64))
    wanted = plan.needs(alike, parameters, max(each.total for each in tokens)).total
    assert plan.gpus(config, parameters, tokens)["64"]["H100 80 GB"]["memory_bytes"] == wanted


def test_what_is_exported_for_the_hub_is_counted():
    config = config_of("trainer.push_to_hub=me/mine", "trainer=ddp", "trainer.processes=2")
    parameters = plan.count_parameters(config)
    without = plan.disk_bytes(replace(config, trainer=replace(config.trainer, push_to_hub=None)), parameters)
    with_it = plan.disk_bytes(config, parameters)
    assert with_it["total"] - without["total"] == with_it["export"] == 4 * parameters["total"]
    adapted = config_of("trainer.push_to_hub=me/mine", "adapter=qlora", "model=qwen2_5_omni_7b")
    parameters = plan.count_parameters(adapted)
    export = plan.disk_bytes(adapted, parameters)["export"]
    assert export == 4 * (parameters["total"] - parameters["adapter"]), "it is merged into float32"
