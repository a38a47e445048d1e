"""A run of several processes, from the command line to its last file, whatever happens to one of them."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from echoink.common.errors import UserError
from echoink.common.files import read_rows
from echoink.distributed import sharded_checkpoint
from echoink.models.loading import load_model
from echoink.run_folder import checkpoint
from echoink.training.resumable_trainer import ResumableTrainer
from tests.helpers import processes
from tests.helpers.entry import SMALL, lines, mlflow_runs, refused, until
from tests.helpers.paths import ROOT
from tests.helpers.several import DIES_AFTER_STEP_2, RUN, logged, start

DIES_IN_A_SAVE = """
import os, signal
from echoink.training.trainer import EchoInkTrainer
save = EchoInkTrainer.save_state_beside
def dies(self, folder):
    save(self, folder)
    if self.state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
EchoInkTrainer.save_state_beside = dies
"""
DIES_AT_THE_END = """
import os
from echoink.evaluation.evaluator import Evaluator
Evaluator.phase = lambda *_, **__: os._exit(3)
"""
HANGS = """
import time
from echoink.training import trainer
trainer.generate = lambda *_, **__: time.sleep(600)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """The run that nothing interrupts, on one process."""
    done = processes.run(place, *RUN, "tracking=off", "trainer.save_every=0", "hydra.run.dir=outputs/whole")
    assert done.returncode == 0, done.stderr
    return place / "outputs/whole"


def test_killed_in_a_save_stopped_by_one_signal_and_taken_up_by_one_process_it_ends_the_same(place, whole):
    folder = place / "outputs/shared/run"
    words = [*RUN, f"hydra.run.dir={folder}", "resume=auto"]

    ended = [one.wait() for one in start(place, words, {1: DIES_IN_A_SAVE})]
    assert ended[1].returncode == -signal.SIGKILL and ended[0].returncode > 0
    assert "process 0 failed at step 3, its checkpoint" in ended[0].stderr
    assert [path.name for path in checkpoint.steps(folder)] == ["step-1", "step-2"]
    assert checkpoint.newest(folder) == (folder / "checkpoints/step-2", {})
    shares = {name for name in checkpoint.manifest(folder / "checkpoints/step-2")["files"] if "shard" in name}
    assert len(shares) == 2  # each process has written its own

    running = start(place, words)
    until(lambda: len(read_rows(folder / "metrics.jsonl")) >= 4, running[0])
    running[1].send(signal.SIGTERM)
    ended = [one.wait() for one in running]
    assert [one.returncode for one in ended] == [143, 143]
    assert "from step 2" in ended[0].stdout and "resume=auto goes on" in ended[0].stdout
    assert ended[1].stdout == ""  # one voice
    newest, damaged = checkpoint.newest(folder)
    assert checkpoint.step_of(newest) == len(lines(folder / "metrics.jsonl")) and not damaged  # it was saved just then
    assert not list((folder / "checkpoints").glob(".step-*"))
    assert json.loads((folder / "summary.json").read_text())["status"] == "killed"

    done = processes.run(place, *words)
    assert done.returncode == 0, done.stderr
    assert "processes 1 (was 2)" in done.stdout
    for row, wanted in zip(logged(folder), logged(whole), strict=True):
        assert row == {name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in wanted.items()}
    for step in range(1, 7):
        rows, wanted = (lines(run / f"completions/step-{step}.jsonl") for run in (folder, whole))
        assert [(row["id"], row["text"]) for row in rows] == [(row["id"], row["text"]) for row in wanted]
    rows, wanted = (lines(run / "predictions.jsonl") for run in (folder, whole))
    key = ("phase", "id", "draw", "completion")
    assert sorted([row[k] for k in key] for row in rows) == sorted([row[k] for k in key] for row in wanted)
    assert [path.name for path in folder.parent.iterdir()] == ["run"]
    assert len(mlflow_runs(place)) == 1


def test_a_divided_checkpoint_is_evaluated_and_exported_as_any_other(place, whole):
    words = [*RUN, "trainer.steps=1", "eval.every=0", "eval.base=false", "eval.greedy=false", "tracking=off"]
    for one in start(place, [*words, "hydra.run.dir=outputs/divided"]):
        assert (done := one.wait()).returncode == 0, done.stderr
    final = json.loads((place / "outputs/divided/summary.json").read_text())["final"]
    done = processes.run(
        place, *words, "task=eval", "checkpoint=outputs/divided", "eval.base=true", "hydra.run.dir=outputs/again"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "outputs/again/summary.json").read_text())["final"] == final
    done = processes.run(place, "checkpoint=outputs/divided", "output=exported", module="echoink.export")
    assert done.returncode == 0, done.stderr
    assert (place / "exported/model.safetensors").is_file()
    assert not list((place / "exported").glob("shard-*"))


def test_an_adapter_around_a_divided_model_is_saved_and_taken_up(place):
    words = [*RUN, "adapter=lora", "trainer.steps=3", "trainer.save_every=1", "tracking=off"]
    words += ["eval.watched=0", "eval.every=0", "eval.cache=outputs/cache"]
    found, said = {}, ""
    for name, rounds in {"adapter": [{}], "adapter-again": [{1: DIES_AFTER_STEP_2}, {}]}.items():
        for before in rounds:
            ended = [
                one.wait() for one in start(place, [*words, f"hydra.run.dir=outputs/{name}", "resume=auto"], before)
            ]
            assert before or [one.returncode for one in ended] == [0, 0], ended[0].stderr
            said += ended[0].stdout
        found[name] = logged(place / f"outputs/{name}")
    assert "from step " in said and "answers of an earlier run of the same base" in said
    assert len(found["adapter"]) == 3 and found["adapter"] == found["adapter-again"]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["fsdp2", "zero2", "zero3"])
def test_a_run_that_lacks_its_last_evaluation_alone_is_taken_up(place, trainer):
    if trainer != "fsdp2":
        pytest.importorskip("deepspeed")
    words = [*RUN, f"trainer={trainer}", "trainer.steps=2", "tracking=off", "eval.base=false", "eval.watched=0"]
    words += ["eval.every=0", "resume=auto"]
    answers = []
    for name, rounds in {"ended": [{}], "ended-again": [dict.fromkeys((0, 1), DIES_AT_THE_END), {}]}.items():
        for before in rounds:
            ended = [one.wait() for one in start(place, [*words, f"hydra.run.dir=outputs/{trainer}-{name}"], before)]
            assert before or [one.returncode for one in ended] == [0, 0], ended[0].stderr
        answers.append([row["completion"] for row in lines(place / f"outputs/{trainer}-{name}/predictions.jsonl")])
    assert "from step 2" in ended[0].stdout and answers[0] == answers[1] and answers[0]


@pytest.mark.slow  # by default the run that is killed in a save above goes on with another number
@pytest.mark.parametrize(
    ("trainer", "more", "numbers"),
    [
        ("fsdp2", "", (1, 2)),
        *((trainer, "", numbers) for trainer in ("zero2", "zero3") for numbers in ((2, 1, 2), (2, 4))),
        *((trainer, "adapter=lora", (1, 2)) for trainer in ("fsdp2", "zero2", "zero3")),
        *((trainer, "model.freeze=[audio,vision]", (2, 1)) for trainer in ("fsdp2", "zero2", "zero3")),
    ],
)
def test_another_number_of_processes_goes_on_to_the_same_weights(place, trainer, more, numbers):
    """With weight decay, which not all weights have."""
    if trainer != "fsdp2":
        pytest.importorskip("deepspeed")
    words = [*RUN, "trainer.steps=4", "trainer.weight_decay=0.1", "trainer.save_every=1", "trainer.prompts_per_step=4"]
    words += ["tracking=off", "eval.base=false", "eval.watched=0", "eval.every=0", *more.split()]
    kind = more.partition("=")[0]
    through, folder = place / f"outputs/through{kind}", place / f"outputs/{trainer}{kind}-{len(numbers)}-{numbers[1]}"
    if not through.exists():
        done = processes.run(place, *words, f"hydra.run.dir={through}")
        assert done.returncode == 0, done.stderr
    words += [f"trainer={trainer}", "resume=auto", f"hydra.run.dir={folder}"]
    for step, before in enumerate(numbers[:-1], 2):
        dies = DIES_AFTER_STEP_2.replace("== 2", f"== {step}")
        for one in start(place, words, dict.fromkeys(range(before), dies), before):
            one.wait()
        newest, _ = checkpoint.newest(folder)
        assert step - 1 <= checkpoint.step_of(newest) <= step and checkpoint.manifest(newest)["processes"] == before
    ended = [one.wait() for one in start(place, words, n=numbers[-1])]
    assert [one.returncode for one in ended] == [0] * numbers[-1], ended[0].stderr
    assert f"processes {numbers[-1]} (was {numbers[-2]})" in ended[0].stdout
    assert not list(folder.glob("checkpoints/*/*universal*"))
    for row, wanted in zip(logged(folder), logged(through), strict=True):
        assert row == {name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in wanted.items()}
    for step in range(1, 5):
        rows, wanted = (lines(run / f"completions/step-{step}.jsonl") for run in (folder, through))
        assert [(row["id"], row["text"]) for row in rows] == [(row["id"], row["text"]) for row in wanted]
    found, model = (load_model(str(run / "checkpoints/step-4")) for run in (folder, through))
    found, model = (torch.cat([p.detach().flatten() for p in one.parameters()]) for one in (found, model))
    difference = float((found - model).norm() / model.norm())
    print(trainer, more, numbers, f"weights {difference:.0e}")
    assert difference < 1e-5


def test_shares_that_cannot_go_to_another_number_of_processes_say_why(tmp_path, monkeypatch):
    step = tmp_path / "checkpoints/step-2"
    kept = step / "global_step2"
    kept.mkdir(parents=True)
    (kept / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"cannot convert .*/step-2 for another number of processes: .*Error"):
        sharded_checkpoint.make_universal(step)
    assert [path.name for path in step.iterdir()] == ["global_step2"]
    (step / "global_step2_universal/zero").mkdir(parents=True)
    (step / "latest_universal").touch()
    checkpoint.tidy(tmp_path)
    assert [path.name for path in step.iterdir()] == ["global_step2"]
    monkeypatch.setattr(sharded_checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=1999))
    with pytest.raises(UserError, match="needs 0.0 GiB on its disk, which has 0.0 free"):
        sharded_checkpoint.make_universal(step)


def test_the_middle_of_a_rollout_is_for_the_number_of_processes_that_began_it(tmp_path):
    one = object.__new__(ResumableTrainer)
    one.accelerator = SimpleNamespace(device="cpu")
    torch.save({"micro_batches": [1, 2]}, tmp_path / "rollout.pt")
    (tmp_path / checkpoint.MANIFEST).write_text(json.dumps({"processes": 1}))
    one.args = SimpleNamespace(steps_per_generation=2, world_size=1, process_index=0)
    assert one._rollout_of(tmp_path) == {"micro_batches": [1, 2]}
    one.args = SimpleNamespace(steps_per_generation=2, world_size=2, process_index=1)
    with pytest.raises(UserError, match="in the middle of a rollout of 2 micro-batches on each of 1 processes"):
        one._rollout_of(tmp_path)
    torch.save({}, tmp_path / "rollout.pt")
    assert one._rollout_of(tmp_path) == {}


@pytest.mark.parametrize("now", [True, False])
def test_an_optimizers_state_is_for_the_library_that_wrote_it(tmp_path, now):
    one = object.__new__(ResumableTrainer)
    one.is_deepspeed_enabled = now
    (tmp_path / ("optimizer" if now else "global_step2")).mkdir()
    with pytest.raises(UserError, match=f"the optimizer's state {'not as' if now else 'as'} DeepSpeed writes it"):
        one._check_kind(tmp_path)
    one.is_deepspeed_enabled = not now
    one._check_kind(tmp_path)


def test_a_process_that_hangs_is_named_with_its_step_and_its_samples(place, whole):
    words = [*RUN, "tracking=off", "eval.base=false", "eval.watched=0", "trainer.patience=10"]
    started = start(place, [*words, "hydra.run.dir=outputs/hangs"], {1: HANGS})
    said = [one.wait().stderr for one in started]
    first = lines(whole / "completions/step-1.jsonl")
    ids = list(dict.fromkeys(row["id"] for row in first))
    assert f"process 1 has waited for 10 s (trainer.patience) at step 1, rollout of {', '.join(ids[2:])}" in said[1]
    assert f"process 0 has waited for 10 s (trainer.patience) at step 1, rollout of {', '.join(ids[:2])}" in said[
        0
    ] or ("process 0 failed at step 1" in said[0])


def test_one_process_does_not_wait_for_an_engine_for_ever(tmp_path):
    code = "import time\nfrom echoink.distributed import watchdog\nwith watchdog.Watchdog(0.4, watches_engine={}):\n"
    code += "    watchdog.at('step 3, rollout of a')\n    time.sleep(1.5)\n"
    hung = processes.run(tmp_path, code=code.format(True))
    assert hung.returncode == 75 and "has waited for 0.4 s (trainer.patience) at step 3, rollout of a" in hung.stderr
    assert processes.run(tmp_path, code=code.format(False)).returncode == 0, "without one there is nobody to wait for"


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (["trainer=ddp", "trainer.processes=2"], {}, "this run is for trainer.processes=2, and 1 is started"),
        ([], {"WORLD_SIZE": "2"}, "this run is for trainer.processes=1, and 2 are started"),
        (["trainer=zero3"], {}, "trainer.sharding=zero3 is started by torchrun"),
        (["trainer=fsdp2"], {"ACCELERATE_USE_FSDP": "true"}, "accelerate's own configuration asks for FSDP"),
        ([], {"ACCELERATE_MIXED_PRECISION": "bf16"}, "ACCELERATE_MIXED_PRECISION=bf16, and trainer.bf16=false"),
        ([], {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "asks for torch.compile"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(tmp_path, words, environment, says, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert says in refused([*SMALL, *words, "trainer.micro_batch_prompts=1"], monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


BLIND = """
from pathlib import Path
there = Path.exists
Path.exists = lambda self, **more: not self.name.startswith(".seen-by-all") and there(self, **more)
"""


def test_a_folder_that_one_process_does_not_see_is_refused_before_anything_is_computed(place):
    """As on nodes that share no disk."""
    words = [*RUN, "tracking=off", "trainer.processes=2", "hydra.run.dir=outputs/apart"]
    ended = [one.wait() for one in start(place, words, {1: BLIND})]
    assert [done.returncode for done in ended] == [2, 2] and "process 1 does not see" in ended[0].stderr
    assert not [*(place / "outputs/apart").glob(".seen-by-all*")]


@pytest.mark.slow
def test_launchers_start_it(place):
    """torchrun, a sweep for its jobs, and accelerate, which on a CPU starts one process in silence if told `--cpu`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "echoink.train"]
    silent = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "echoink.train"]
    shipped = ROOT / "experiments/accelerate/8_gpus.yaml"
    accelerate = ["accelerate.commands.launch", "--config_file", str(shipped), *silent[2:]]
    launchers = {"torchrun": torchrun, "silent": silent, "accelerate": accelerate}
    launchers["sweep"] = ["echoink.train", "--multirun"]
    words = [*RUN, "trainer.steps=2", "trainer.processes=2", "tracking=off"]
    for name, launcher in launchers.items():
        done = subprocess.run(
            [sys.executable, "-m", *launcher, *words, f"name={name}"],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if name == "silent":
            assert done.returncode and "this run is for trainer.processes=2, and 1 is started" in done.stderr
            continue
        assert done.returncode == 0, done.stderr[-2000:]
        (kept,) = (place / "outputs" / name).glob("**/checkpoints")
        newest, _ = checkpoint.newest(kept.parent)
        assert checkpoint.manifest(newest)["processes"] == 2


PAPER = [
    "experiment=echoink_r1_7b",
    "model=tiny",
    "dataset=synthetic",
    "dataset.train=24",
    "dataset.dev=3",
    "dataset.valid=8",
    "trainer.steps=3",
    "trainer.learning_rate=1e-3",
    "trainer.bf16=false",
    "generation.max_new_tokens=48",
    "eval.base=false",
    "eval.watched=0",
    "tracking=off",
]


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["true", "false"], ids=["shared prefix", "plain rows"])
def test_the_papers_experiment_with_the_tiny_model_on_two_processes_is_that_on_one(tmp_path, shared):
    """Loss, gradient norm and weights within 1e-5, for every way to divide that is installed."""
    words = [*PAPER, f"grpo.shared_prefix={shared}"]
    done = processes.run(tmp_path, *words, "trainer.processes=1", "hydra.run.dir=outputs/one")
    assert done.returncode == 0, done.stderr
    trainers = ["ddp", "fsdp2", *(["zero2", "zero3"] if importlib.util.find_spec("deepspeed") else [])]
    for trainer in trainers:
        more = [f"trainer={trainer}", "trainer.processes=2", f"hydra.run.dir=outputs/{trainer}"]
        for one in start(tmp_path, [*words, *more]):
            assert (done := one.wait()).returncode == 0, done.stderr
        rows, wanted = (lines(tmp_path / f"outputs/{name}/metrics.jsonl") for name in (trainer, "one"))
        assert len(rows) == len(wanted) == 3
        for name in ("train/loss", "train/grad_norm"):
            assert [row[name] for row in rows] == pytest.approx([row[name] for row in wanted], rel=1e-5, abs=1e-5), name
        found, model = (load_model(str(tmp_path / f"outputs/{name}/checkpoints/step-3")) for name in (trainer, "one"))
        found, model = (torch.cat([p.detach().flatten() for p in one.parameters()]) for one in (found, model))
        difference = float((found - model).norm() / model.norm())
        print(trainer, shared, f"weights {difference:.0e}")
        assert difference < 1e-5
