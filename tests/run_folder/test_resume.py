"""A run that is killed and taken up ends as one that nothing interrupted: byte for byte, but for times."""

import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from echoink import runs, sync
from echoink.common.errors import UserError
from echoink.common.files import cut_lines, read_rows, write_atomic
from echoink.config.schema import to_yaml
from echoink.pipeline.run import run
from echoink.run_folder import checkpoint, reader, resume
from echoink.run_folder.environment import environment
from echoink.run_folder.folder import PREDICTIONS, RunFolder, read_summary
from echoink.tracking.client import absolute_uri, connect
from tests.helpers import processes
from tests.helpers.configs import config_of
from tests.helpers.runs import make_run

SMALL = [
    "experiment=quickstart",
    "dataset.train=10",
    "dataset.dev=4",
    "dataset.valid=8",
    "eval.batch_prompts=3",
    "eval.every=4",
    "eval.cache=null",
    "eval.watched=1",
    "generation.max_new_tokens=32",
    "trainer.steps=8",
    "trainer.prompts_per_step=4",  # 10 prompts: an epoch is 3 steps
    "trainer.micro_batch_prompts=2",
    "trainer.save_every=1",
    "trainer.completions_every=1",
    "trainer.learning_rate=1e-3",
    "tracking=off",
]
SEVERAL = [*SMALL, "grpo.updates_per_rollout=3", "grpo.beta=0.04"]
"""Several updates of a rollout: a checkpoint may be in the middle of it."""


def left(folder: Path) -> dict[str, str]:
    """Digests of all that a run leaves and that must not depend on interruptions."""

    def digest(thing: object) -> str:
        return hashlib.sha256(repr(thing).encode()).hexdigest()[:12]

    def rows(name: str) -> list[dict]:
        return [
            {k: v for k, v in row.items() if not k.startswith(("time/", "perf/")) and k != "timestamp"}
            for row in read_rows(folder / name)
        ]

    found = {name: digest(rows(name)) for name in ("metrics.jsonl", "dev.jsonl", "eval.jsonl")}
    files = ["predictions.jsonl", "watched.jsonl", "flips.jsonl", "checkpoints/best.json"]
    files += [f"completions/step-{step}.jsonl" for step in range(1, 10)]
    for name in files:
        found[name] = digest((folder / name).read_bytes()) if (folder / name).is_file() else "absent"
    last = checkpoint.steps(folder)[-1]
    weights = "model.safetensors" if (last / "model.safetensors").is_file() else "adapter_model.safetensors"
    found["weights"] = digest([(k, v.numpy().tobytes()) for k, v in sorted(load_file(last / weights).items())])
    state = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    found["optimizer"] = digest([(k, n, v.numpy().tobytes()) for k, s in state.items() for n, v in s.items()])
    found["summary"] = digest([json.loads((folder / "summary.json").read_text())[k] for k in ("final", "paired")])
    return found | {"step": last.name}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    processes.run(folder, code="pass")  # starts the fork server
    return folder


STORE = "sqlite:///outputs/mlflow.db"


def whole(place: Path, name: str, settings: list[str]) -> tuple[dict[str, str], float]:
    """A run that nothing interrupts: what it leaves, and how long it takes."""
    began = time.monotonic()
    done = processes.run(place, *settings, f"hydra.run.dir=outputs/{name}")
    assert done.returncode == 0, done.stderr
    return left(place / "outputs" / name), time.monotonic() - began


@pytest.fixture(scope="module")
def plain(place) -> tuple[dict[str, str], float]:
    return whole(place, "plain", SMALL)


@pytest.fixture(scope="module")
def several(place, plain) -> tuple[dict[str, str], float]:
    return whole(place, "several", SEVERAL)


def killed_until_done(place: Path, name: str, settings: list[str], seconds: list[float]) -> list[str]:
    """Kill a run so many seconds after each of its starts, then let it end; where it was each time."""
    where, command = [], [*settings, "resume=auto", f"hydra.run.dir=outputs/{name}"]
    for wait in seconds:
        started = processes.start(place, *command)
        time.sleep(wait)
        started.kill()
        started.wait()
        newest, damaged = checkpoint.newest(place / "outputs" / name)
        assert not damaged
        where.append(newest.name if newest else "none")
    done = processes.run(place, *command)
    assert done.returncode == 0, done.stderr
    return where


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["plain", "several"])
def test_killed_at_any_instant_it_ends_the_same(place, request, kind, seed):
    expected, takes = request.getfixturevalue(kind)
    settings = SMALL if kind == "plain" else SEVERAL
    draw = random.Random(f"{kind} {seed}")
    seconds = [draw.uniform(0.05, 0.9) * takes for _ in range(2)]
    where = killed_until_done(place, f"any-{kind}-{seed}", settings, seconds)
    found = left(place / "outputs" / f"any-{kind}-{seed}")
    print(f"killed after {[f'{s:.2f} s' for s in seconds]} of {takes:.1f} at {where}: weights {found['weights']}")
    assert found == expected


def killed_after(place: Path, folder: Path, steps: int, settings: list[str]) -> None:
    """Start a run and kill it when it has done so many steps."""
    started = processes.start(place, *settings)
    while len(read_rows(folder / "metrics.jsonl")) < steps:
        time.sleep(0.01)
        assert started.running(), started.text()
    started.kill()
    started.wait()


def test_an_adapter_with_dropout_that_is_killed_and_then_asked_to_go_ends_the_same(place, plain):
    """Both in the middle of a rollout. Dropout draws from the random state that the checkpoint holds."""
    settings = [*SEVERAL, "adapter=lora", "adapter.dropout=0.2", "eval.every=0", "eval.limit=4", "trainer.steps=6"]
    expected, _ = whole(place, "lora", settings)
    folder = place / "outputs/lora-killed"
    again = [*settings, "resume=auto", f"hydra.run.dir={folder}"]
    killed_after(place, folder, 2, again)
    again[again.index("trainer.save_every=1")] = "trainer.save_every=0"
    asked_after(place, folder, 4, again, signal.SIGUSR1)
    done = processes.run(place, *again)
    assert done.returncode == 0 and "from step " in done.stdout, done.stderr
    assert left(folder) == expected


def asked_after(place: Path, folder: Path, steps: int, settings: list[str], number: int) -> int:
    """Start a run and ask it to go when it has done so many steps; it keeps a checkpoint of the last one, returned."""
    started = processes.start(place, *settings)
    while len(read_rows(folder / "metrics.jsonl")) < steps:
        time.sleep(0.005)
        assert started.running(), started.text()
    time.sleep(random.Random(f"{settings} {number}").random() * 0.4)
    started.send(number)
    asked = time.monotonic()
    done = started.wait(60)
    assert done.returncode == (130 if number == signal.SIGINT else 143), done.stderr
    assert "is kept; resume=auto goes on from it" in done.stdout
    print(f"left {time.monotonic() - asked:.1f} s after the signal")
    assert read_summary(folder)["status"] == "killed"
    newest, _ = checkpoint.newest(folder)
    done_steps = [row["step"] for row in read_rows(folder / "metrics.jsonl")]
    assert checkpoint.step_of(newest) == done_steps[-1] >= steps
    return done_steps[-1]


def test_in_mlflow_the_same_run_goes_on_and_no_step_is_there_twice(place, plain):
    short = ["trainer.steps=4", "eval.every=2", "eval.greedy=false", "eval.limit=3"]
    settings = [
        *(one for one in SMALL if one != "tracking=off"),
        *short,
        "resume=auto",
        "hydra.run.dir=outputs/tracked",
    ]
    folder = place / "outputs/tracked"
    killed_after(place, folder, 3, [*settings, "trainer.save_every=2"])
    store = absolute_uri("sqlite:///outputs/mlflow.db", place)
    client = connect(store)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "RUNNING"
    other = processes.run(place, *settings[:-2], "eval.base=false", "trainer.steps=1", "hydra.run.dir=outputs/other")
    assert other.returncode == 0, other.stderr
    assert client.get_run(run.info.run_id).info.status == "KILLED", "at the next start beside it"
    done = processes.run(place, *settings, "trainer.save_every=2")
    assert done.returncode == 0, done.stderr
    again = client.get_run(run.info.run_id)
    assert again.info.status == "FINISHED" and len(client.search_runs([experiment.experiment_id])) == 2
    for name in again.data.metrics:
        if not name.startswith("eval/"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert len(steps) == len(set(steps)), name
    accuracy = [point.step for point in client.get_metric_history(run.info.run_id, "reward/accuracy")]
    assert sorted(accuracy) == list(range(1, 5))

    def counts():
        return {name: len(client.get_metric_history(run.info.run_id, name)) for name in again.data.metrics}

    before = counts()
    assert sync.main([str(folder), f"uri={store}"]) == 0
    assert counts() == before


# --- asked to go ---


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        # By default the adapter's run and the one that is asked before its first step are asked in the middle too.
        pytest.param("plain", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("several", signal.SIGUSR1, marks=pytest.mark.slow),
        # Which signal it is changes the status alone (test_a_signal_leaves_a_true_status).
        pytest.param("plain", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("several", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("plain", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("several", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_asked_to_go_it_keeps_where_it_is_and_ends_the_same(place, request, kind, number):
    """In the middle of a step: what that step has done is dropped. No checkpoint is due but the one at the signal."""
    expected, _ = request.getfixturevalue(kind)
    settings = SMALL if kind == "plain" else SEVERAL
    folder = place / f"outputs/asked-{kind}-{int(number)}"
    command = [*settings, "trainer.save_every=0", "resume=auto", f"hydra.run.dir={folder}"]
    step = asked_after(place, folder, 5, command, number)
    done = processes.run(place, *command)
    assert done.returncode == 0, done.stderr
    assert f"from step {step}" in done.stdout
    assert left(folder) == expected


def test_asked_to_go_before_the_first_step_and_in_the_middle_it_ends_the_same(place, plain):
    expected, _ = plain
    folder = place / "outputs/asked-early"
    command = [*SMALL, "resume=auto", f"hydra.run.dir={folder}"]
    started = processes.start(place, *command)
    while not (folder / PREDICTIONS).is_file():
        time.sleep(0.005)
        assert started.running(), started.text()
    started.send(signal.SIGTERM)
    assert started.wait(60).returncode == 143
    assert read_summary(folder)["status"] == "killed" and not (folder / "checkpoints").exists()
    command[command.index("trainer.save_every=1")] = "trainer.save_every=0"
    asked_after(place, folder, 5, command, signal.SIGTERM)
    done = processes.run(place, *command)
    assert done.returncode == 0, done.stderr
    assert left(folder) == expected


SIGNALS = """
import os, signal, time
from echoink.common import signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which pytest itself may have been told to ignore, by nohup
signals.install()
def after(seconds, number):
    if os.fork() == 0:
        time.sleep(seconds); os.kill(os.getppid(), number); os._exit(0)
"""


@pytest.mark.parametrize(
    ("code", "status", "printed"),
    [
        ("after(0.2, signal.SIGTERM)\ntime.sleep(9)", 143, ""),
        ("after(0.2, signal.SIGINT)\ntry: time.sleep(9)\nexcept KeyboardInterrupt: print('caught')", 0, "caught"),
        (  # what must not be left half done is done first
            "after(0.2, signal.SIGUSR1)\nwith signals.held():\n  time.sleep(0.5); print('whole')\nprint('not this')",
            143,
            "whole",
        ),
        (  # inside another one too
            "after(0.1, 15)\nwith signals.held():\n  with signals.held(): time.sleep(0.3)\n  print('whole')",
            143,
            "whole",
        ),
        (  # a launcher tells a process and its group: one request
            "after(0.2, 15); after(0.4, 15)\nwith signals.held():\n  time.sleep(0.8); print('whole', flush=True)",
            143,
            "whole",
        ),
        ("after(0.2, 15); after(1.6, 15)\nwith signals.held():\n  time.sleep(9); print('too late')", 143, ""),
        *((f"after(0.2, signal.{name})\ntime.sleep(9)", 143, "") for name in ("SIGHUP", "SIGUSR2")),
        (  # as under nohup
            "signal.signal(signal.SIGHUP, signal.SIG_IGN); signals.install()\nafter(0, signal.SIGHUP)\n"
            "time.sleep(0.3); print('goes on')",
            0,
            "goes on",
        ),
        (  # a terminal that is gone takes no text
            "import pty\nmain, terminal = pty.openpty()\nfor n in (1, 2): os.dup2(terminal, n)\nos.close(main)\n"
            "after(0.2, signal.SIGHUP)\ntry: time.sleep(9)\nfinally: print('saves', flush=True)",
            143,
            "",
        ),
        (  # Python passes over what is raised in the callback of a weak reference; the next step asks again
            "import weakref\nfrom echoink.distributed import collectives\nclass Thing: pass\nthing = Thing()\n"
            "ref = weakref.ref(thing, lambda _: os.kill(os.getpid(), 15))\ndel thing\n"
            "print('passed over', flush=True)\ncollectives.heed()\nprint('not this')",
            143,
            "passed over",
        ),
    ],
)
def test_the_first_signal_waits_for_what_is_held_and_the_second_does_not(place, code, status, printed):
    began = time.monotonic()
    done = processes.run(place, code=SIGNALS + code)
    assert (done.returncode, done.stdout.strip()) == (status, printed), done.stderr
    assert time.monotonic() - began < 8


# --- what is taken up, and what is not ---


def linked(file: str, copy: str) -> None:
    """Large files of a copy are links: they are replaced, never written to."""
    (os.link if file.endswith((".safetensors", "optimizer.pt")) else shutil.copy2)(file, copy)


@pytest.fixture
def stopped(place, plain, tmp_path) -> Path:
    """A copy of a run that was killed after step 5, with checkpoints of 4 and 5."""
    folder = tmp_path / "run"
    shutil.copytree(place / "outputs/plain", folder, copy_function=linked)
    *others, last = checkpoint.steps(folder)
    for path in others:
        shutil.rmtree(path)
    for step in (4, 5):
        made = shutil.copytree(last, folder / f"checkpoints/step-{step}", copy_function=linked)
        (made / "manifest.json").write_text(json.dumps(checkpoint.manifest(made) | {"step": step, "last": False}))
    shutil.rmtree(last)
    write_atomic(folder / "summary.json", json.dumps(read_summary(folder) | {"status": "killed", "ended": 1}))
    return folder


def start(folder: Path, *overrides: str) -> resume.Start:
    """Where a run begins, and its files cut back to that."""
    found = resume.begin(config_of(*SMALL, "resume=auto", *overrides), folder)
    if not found.finished:
        resume.cut_back(folder, found)
    return found


def test_files_are_cut_back_to_the_checkpoint(stopped):
    with open(stopped / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "rew')  # cut off by a kill
    found = start(stopped)
    assert (found.step, found.checkpoint.name, found.again, found.finished) == (5, "step-5", True, False)
    for name in ("metrics.jsonl", "dev.jsonl", "watched.jsonl"):
        steps = [row["step"] for row in read_rows(stopped / name)]
        assert steps and max(steps) <= 5, name
    assert {row["phase"] for row in read_rows(stopped / "predictions.jsonl")} == {"base", "step-4"}
    assert {row["phase"] for row in read_rows(stopped / "eval.jsonl")} == {"base"}
    assert sorted(path.name for path in (stopped / "completions").iterdir()) == [f"step-{s}.jsonl" for s in range(1, 6)]


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "rollout.pt")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("harm", ["deleted", "emptied", "halved", "flipped"])
def test_a_damaged_checkpoint_is_recognized_and_the_one_before_is_used(stopped, capsys, name, harm):
    file = stopped / "checkpoints/step-5" / name
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    file.unlink()
    if harm != "deleted":
        file.write_bytes({"emptied": b"", "halved": content[:middle], "flipped": flipped}[harm])
    found = start(stopped)
    assert (found.step, found.checkpoint.name) == (4, "step-4")
    said = " ".join(capsys.readouterr().out.split())
    assert "is damaged" in said and name in said
    assert (stopped / "checkpoints/damaged-step-5").is_dir() and checkpoint.steps(stopped) == [found.checkpoint]


def test_no_whole_checkpoint_is_an_error_and_never_a_fresh_optimizer(stopped):
    for folder in checkpoint.steps(stopped):
        (folder / "optimizer.pt").unlink()
    with pytest.raises(UserError, match="no checkpoint in .* is whole"):
        start(stopped)
    assert len(checkpoint.steps(stopped)) == 2, "nothing is moved"


def test_what_a_killed_save_left_is_cleared_and_never_chosen(stopped):
    rest = stopped / "checkpoints/.step-6-abc"
    shutil.copytree(stopped / "checkpoints/step-5", rest)
    assert start(stopped).step == 5 and not rest.exists()


@pytest.mark.parametrize(
    "other",
    ["seed=1", "grpo.group_size=2", "trainer.prompts_per_step=8", "adapter=lora", "dataset.seed=3", "model.path=other"],
)
def test_another_configuration_is_refused_with_its_differences(stopped, other):
    before = (stopped / "metrics.jsonl").read_bytes()
    key, _, value = other.partition("=")
    key = "adapter.kind" if key == "adapter" else key
    with pytest.raises(UserError, match=rf"{key}=.*{value}.* \(was .*(.|\n)*resume_allow="):
        start(stopped, other)
    assert (stopped / "metrics.jsonl").read_bytes() == before
    wanted = config_of(*SMALL, "resume=auto", other)
    changed = resume._differences(
        resume.reader.method((stopped / "config.yaml").read_text()),
        resume.reader.method(resume.to_yaml(wanted)),
        [],
    )
    found = start(stopped, other, f"resume_allow=[{','.join(changed)}]")
    assert found.step == 5 and key in found.changed


def test_a_reward_that_has_changed_is_refused_by_its_file_and_begins_anew_beside(stopped, tmp_path):
    mine, words = tmp_path / "mine.py", [f"reward.file={tmp_path / 'mine.py'}", "reward.lambda_file=0"]
    mine.write_text("def reward(completion, sample): return 1.0\n")
    config = config_of(*SMALL, "resume=auto", *words)
    (stopped / "config.yaml").write_text(to_yaml(config))
    (stopped / "rewards").mkdir()
    (stopped / "rewards/custom.py").write_text(mine.read_text())
    assert start(stopped, *words).step == 5 and resume.place(config, stopped.with_name("new")) == stopped
    mine.write_text("def reward(completion, sample): return 0.0\n")
    with pytest.raises(UserError, match=r"mine\.py has changed since .*(.|\n)*resume_allow=\[reward\.file\]"):
        start(stopped, *words)
    assert resume.place(config, stopped.with_name("new")) == stopped.with_name("new")
    assert "reward.file is another" in resume.left_beside(config, stopped.with_name("new"))
    found = start(stopped, *words, "resume_allow=[reward.file]")
    assert (found.step, found.changed) == (5, ("reward.file",))


@pytest.mark.parametrize("other", ["trainer.save_every=3", "trainer.keep_checkpoints=9", "name=x", "tracking=mlflow"])
def test_what_changes_no_number_may_differ(stopped, other):
    assert start(stopped, other).step == 5


def test_another_gpu_is_warned_of_and_what_was_not_written_down_is_not(stopped, capsys):
    manifest = stopped / "checkpoints/step-5/manifest.json"
    said = json.loads(manifest.read_text())
    assert said["device"] == "cpu"
    older = {key: value for key, value in said.items() if key != "device"}
    here = said | {"versions": said["versions"] | {"a library": "1"}, "device": "NVIDIA H200, CUDA 13.0"}
    for kept, warns in ((older, False), (said, True)):
        manifest.write_text(json.dumps(kept))
        resume.check_provenance(resume.begin(config_of(*SMALL, "resume=auto"), stopped), here)
        assert ("device NVIDIA H200, CUDA 13.0 (was cpu)" in " ".join(capsys.readouterr().out.split())) == warns


def test_other_data_or_another_model_is_refused(stopped):
    step = stopped / "checkpoints/step-5"
    said = checkpoint.manifest(step)
    here = {key: said[key] for key in ("model", "settings", "data", "dev", "valid", "versions")}
    here |= {"processes": 1, "commit": None}

    def check(here, *allowed, last=False):
        begins = resume.begin(config_of(*SMALL, "resume=auto", f"resume_allow=[{','.join(allowed)}]"), stopped)
        return resume.check_provenance(replace(begins, last=last), here)

    assert check(here) == []
    for key, name in (("data", "data"), ("data", "dev"), ("model", "model"), ("model", "settings"), ("data", "valid")):
        last = name == "valid"  # answers of a final evaluation stay
        with pytest.raises(UserError, match=rf"{name} 123 \(was .*(.|\n)*resume_allow=\[{key}\]"):
            check(here | {name: "123"}, last=last)
        assert check(here | {name: "123"}, key, last=last) == [key]
    assert check(here | {"dev": None}) == [], "it is no longer evaluated"
    assert check(here | {"valid": "123"}) == [], "the base's answers are compared by themselves"
    older = {key: value for key, value in said.items() if key not in ("settings", "dev", "valid")}
    older["data"] += f" 5f41 {said['valid']}"  # it named the development and the evaluation split too
    (step / checkpoint.MANIFEST).write_text(json.dumps(older))
    assert check(here, last=True) == []
    with pytest.raises(UserError, match=r"another run: valid 123 \(was"):
        check(here | {"valid": "123"}, last=True)
    with pytest.raises(UserError, match=r"another run: model 123 \(was \w+\)\n"):  # not "settings (was None)"
        check(here | {"model": "123"})


@contextmanager
def written_by_another(folder: Path):
    """Another process holds the folder's lock."""
    folder.mkdir(exist_ok=True)
    code = f"""
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from echoink.run_folder.folder import take
take(Path({str(folder)!r}))
print("holds", flush=True)
time.sleep(60)
"""
    started = processes.start(folder, code=code)
    while "holds" not in started.text()[0]:
        time.sleep(0.02)
        assert started.running(), started.text()
    yield
    started.kill()
    started.wait()


def test_another_processes_run_is_left_alone(stopped):
    before = (stopped / "metrics.jsonl").read_bytes()
    with written_by_another(stopped):
        with pytest.raises(UserError, match="another process is writing"):
            start(stopped)
        with pytest.raises(UserError, match="another process"), RunFolder(stopped, "train", "x", 0):
            pass
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_a_plan_leaves_a_run_alone(stopped, tmp_path):
    assert place_of(tmp_path / "new", "resume=auto", "dry_run=true") == tmp_path / "new"
    with pytest.raises(UserError, match="holds a run"):
        start(stopped, "dry_run=true")


def test_a_run_that_may_go_further_loses_the_evaluation_that_ended_it(stopped, place):
    whole = stopped.parent / "whole"
    shutil.copytree(place / "outputs/plain", whole)
    assert start(whole).finished
    found = start(whole, "trainer.steps=16", "resume_allow=[trainer.steps]")
    assert found.changed == ("trainer.steps",), "the learning rate's schedule follows them"
    assert not found.finished and found.step == 8
    assert {row["phase"] for row in read_rows(whole / "predictions.jsonl")} == {"base", "step-4", "step-8"}
    start(whole, "trainer.steps=16", "generation.top_p=0.7", "resume_allow=[trainer.steps,generation.top_p]")
    assert {row["phase"] for row in read_rows(whole / "predictions.jsonl")} == {"step-4", "step-8"}


def test_answers_in_another_precision_are_no_base_of_a_run(stopped, place):
    whole = stopped.parent / "whole"
    shutil.copytree(place / "outputs/plain", whole)
    start(whole, "trainer.bf16=true", "resume_allow=[trainer.bf16]")
    assert "base" not in {row["phase"] for row in read_rows(whole / "predictions.jsonl")}


def held_by(folder: Path) -> dict[str, bytes]:
    """All small files of a run, but for the log and the load of the machine."""
    files = [path for path in folder.rglob("*") if path.is_file() and "step-" not in str(path.relative_to(folder))]
    passing = ("train.log", "system.jsonl", ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in passing}


def finished(place: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(place / "outputs/plain", folder)
    return folder


@pytest.mark.parametrize(
    ("words", "allowed", "says"),
    [
        (["trainer.steps=4"], "trainer.steps", "is of step 8, and this run ends at step 4"),
        (["trainer.steps=null", "trainer.epochs=1"], "trainer.steps,trainer.epochs", "ends at step 3"),
        (["dataset.seed=9"], "dataset.seed", r"is of another run: data \w+ \(was"),
        (["dataset.path=nowhere", "dataset=rows"], "dataset.path,dataset.source", "dataset folder not found: nowhere"),
        (["trainer.steps=16"], "trainer.steps", "has answers .base. of other data"),
    ],
)
def test_a_finished_run_that_refuses_to_go_on_keeps_its_results(
    tmp_path, place, plain, words, allowed, says, capsys, monkeypatch
):
    folder = finished(place, tmp_path)
    if "other data" in says:
        answered = json.loads((folder / "answered.json").read_text())
        answered["base"]["data"] = "of other questions"
        (folder / "answered.json").write_text(json.dumps(answered))
    before = held_by(folder)
    assert ".hydra/overrides.yaml" in before and "environment.json" in before and "summary.json" in before
    monkeypatch.chdir(place)
    words = [*SMALL, "resume=auto", *words]
    if "dataset.seed=9" in words:
        words.append(f"dataset.path={tmp_path}/other")
    with pytest.raises(UserError, match=says):
        run(config_of(*words, f"resume_allow=[dataset.path,{allowed}]"), folder)
    assert held_by(folder) == before
    assert "is kept; resume=auto goes on from it" not in capsys.readouterr().out


def test_a_refused_command_line_does_not_stay_as_the_runs_own(tmp_path, place, plain):
    folder = finished(place, tmp_path)
    before = held_by(folder)
    words = [*SMALL, "trainer.steps=4", "resume_allow=[trainer.steps]", "resume=auto", f"hydra.run.dir={folder}"]
    done = processes.run(place, *words)
    assert done.returncode == 2 and "this run ends at step 4" in done.stderr
    assert held_by(folder) == before


def test_a_run_that_is_stopped_while_it_is_taken_up_is_what_it_was(tmp_path, place, plain):
    """In the middle of cutting its files."""
    folder = finished(place, tmp_path)
    before = held_by(folder)
    code = """
from echoink.run_folder import resume
from echoink.train import main
cut = resume.cut
def stopped(*words, **more):
    cut(*words, **more)
    raise KeyboardInterrupt
resume.cut = stopped
main()
"""
    words = [*SMALL, "trainer.steps=16", "resume_allow=[trainer.steps]", "resume=auto", f"hydra.run.dir={folder}"]
    assert processes.run(place, *words, code=code).returncode == 130
    assert held_by(folder) == before


def test_a_run_that_was_killed_while_it_was_taken_up_goes_on_with_either_configuration(tmp_path, place, plain):
    """The evaluation that ended it is made again."""
    folder = finished(place, tmp_path)
    longer = ["trainer.steps=16", "resume_allow=[trainer.steps]"]
    code = f"""
import os, signal
from pathlib import Path
from echoink.run_folder import resume
from echoink.run_folder.folder import RunFolder
from tests.helpers.configs import config_of
from tests.run_folder.test_resume import SMALL
config, folder = config_of(*SMALL, "resume=auto", *{longer!r}), Path({str(folder)!r})
start = resume.begin(config, folder)
with RunFolder(folder, "train", "x", 0) as files:
    resume.take_up(files, start)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert processes.run(place, code=code).returncode == -9
    assert "final" not in {row["phase"] for row in read_rows(folder / "predictions.jsonl")}
    (left,) = folder.glob(".before-*")
    assert [each.folder for each in reader.find([tmp_path])] == [folder], "what is kept is no run"
    with suppress(UserError), RunFolder(folder, "train", "x", 0) as files:
        assert not left.exists()
        files.append("metrics.jsonl", [{"step": 9}])
        assert not list(folder.glob(".before-*")), "there is a new result"
        raise UserError("in the middle")
    assert start(folder, *longer).step == 8
    (folder / "config.yaml").write_text(to_yaml(config_of(*SMALL)))
    assert start(folder).step == 8 and not start(folder).finished


def test_another_length_at_a_constant_rate_is_the_same_run_and_so_are_other_evaluations(tmp_path, place, plain):
    folder = tmp_path / "run"
    shutil.copytree(place / "outputs/plain", folder)
    constant = config_of(*SMALL, "trainer.schedule=constant")
    (folder / "config.yaml").write_text(to_yaml(constant))
    longer = [
        "trainer.schedule=constant",
        "trainer.steps=16",
        "eval.limit=3",
        "resume_allow=[trainer.steps,eval.limit]",
    ]
    assert start(folder, *longer).changed == ()


def test_whoever_permits_other_data_has_the_base_asked_anew(stopped):
    assert start(stopped, "resume_allow=[data]").step == 5
    assert "base" not in {row["phase"] for row in read_rows(stopped / "predictions.jsonl")}


def test_a_run_whose_data_changed_half_way_says_so(stopped, tmp_path, monkeypatch):
    def stop(job, files, *_, **__):
        files.append("metrics.jsonl", [{"step": 6}])
        raise UserError("far enough")

    monkeypatch.setattr("echoink.training.fit.train", stop)
    words = [*SMALL, "resume=auto", "eval.base=false", f"dataset.path={tmp_path}/other", "dataset.seed=9"]
    with pytest.raises(UserError, match="far enough"):
        run(config_of(*words, "resume_allow=[data,dataset.path,dataset.seed,eval.base]"), stopped)
    assert read_summary(stopped)["changed"] == ["data", "dataset.path", "dataset.seed"]


def test_half_of_a_development_evaluation_is_not_gone_on_with_under_other_settings(stopped):
    rows = read_rows(stopped / "predictions.jsonl")
    cut_lines(stopped / "dev.jsonl", lambda row: False)  # killed in the evaluation of step 4
    assert start(stopped).step == 5 and "step-4" in {row["phase"] for row in rows}
    assert "step-4" in {row["phase"] for row in read_rows(stopped / "predictions.jsonl")}
    start(stopped, "generation.temperature=0.2", "resume_allow=[generation.temperature]")
    assert "step-4" not in {row["phase"] for row in read_rows(stopped / "predictions.jsonl")}


@pytest.mark.parametrize("key", ["trainer.learning_rate", "trainer.weight_decay", "trainer.steps"])
def test_deepspeed_refuses_what_it_would_not_take_up_and_an_evaluation_does_not_ask(stopped, key):
    words = ["trainer.sharding=zero2", f"{key}=9", f"resume_allow=[trainer.sharding,{key}]"]
    with pytest.raises(UserError, match=f"DeepSpeed goes on with the {key} that"):
        start(stopped, *words)
    evaluation = config_of(*SMALL, "task=eval", *words)
    (stopped / "config.yaml").write_text(to_yaml(config_of(*SMALL, "task=eval")))
    assert resume.begin(evaluation, stopped).again


def test_a_copied_job_is_not_gone_on_with_in_the_original_runs_checkpoints(stopped):
    write_atomic(stopped / "summary.json", json.dumps(read_summary(stopped) | {"shared": "/runs/original"}))
    with pytest.raises(UserError, match="is a copy of /runs/original(.|\n)*resume=/runs/original"):
        start(stopped)


def test_the_end_of_a_run_that_died_is_when_it_last_wrote(stopped, tmp_path):
    said = read_summary(stopped) | {"status": "running", "ended": None}
    write_atomic(stopped / "summary.json", json.dumps(said))
    there = json.loads((stopped / "environment.json").read_text())
    (stopped / "environment.json").write_text(json.dumps(there | {"process_started": 0.0}))
    resume.close_dead(tmp_path / "new", STORE)
    assert abs(read_summary(stopped)["ended"] - 1000 * time.time()) < 60_000


def test_the_seconds_of_all_its_processes_are_a_runs(tmp_path):
    for _ in range(2):
        with RunFolder(tmp_path, "train", "x", 0):
            pass
        said = read_summary(tmp_path)
        write_atomic(tmp_path / "summary.json", json.dumps(said | {"seconds": said["seconds"] + 100}))
    assert 200 <= read_summary(tmp_path)["seconds"] < 230


def test_what_changed_is_on_disk_before_the_configuration_that_shows_it(stopped, monkeypatch):
    """A process killed in between must not leave a run that seems to have begun with these settings."""
    seen = []

    class Killed(Exception):
        pass

    write_text = RunFolder.write_text

    def killed(self, name, text):
        if name == "config.yaml":
            seen.append(read_summary(stopped).get("changed"))
            raise Killed
        write_text(self, name, text)

    monkeypatch.setattr(RunFolder, "write_text", killed)
    words = [*SMALL, "resume=auto", "trainer.learning_rate=1e-9", "resume_allow=[trainer.learning_rate]"]
    with pytest.raises(Killed):
        run(config_of(*words), stopped, words)
    assert seen == [["trainer.learning_rate"]]


def test_a_run_that_is_shortened_to_its_checkpoint_is_done_then(stopped):
    words = ["trainer.steps=5", "resume_allow=[trainer.steps]"]
    assert not start(stopped, *words).finished, "it has still to be evaluated"
    write_atomic(stopped / "config.yaml", resume.to_yaml(config_of(*SMALL, "trainer.steps=5")))
    write_atomic(stopped / "summary.json", json.dumps(read_summary(stopped) | {"status": "finished", "ended": 1}))
    assert start(stopped, *words).finished


def test_a_run_that_died_after_its_last_number_is_not_taken_for_ended(stopped, tmp_path):
    said = read_summary(stopped) | {"status": "finished", "ended": None}
    write_atomic(stopped / "summary.json", json.dumps(said))
    assert place_of(tmp_path / "new", "resume=auto") == stopped
    assert not start(stopped).finished


def test_what_the_first_step_left_is_cut_too(tmp_path, stopped):
    """Killed in its first step, without a base evaluation."""
    folder = tmp_path / "early"
    (folder / "completions").mkdir(parents=True)
    shutil.copy(stopped / "config.yaml", folder)
    shutil.copy(stopped / "summary.json", folder)
    for name in ("completions/step-1.jsonl", "traces.jsonl"):
        (folder / name).write_text('{"step": 1}\n')
    assert start(folder).step == 0
    assert not list((folder / "completions").iterdir()) and (folder / "traces.jsonl").read_text() == ""
    (folder / "traces.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="seed=1"):
        start(folder, "seed=1")
    with pytest.raises(UserError, match="holds a run already"):
        start(folder, "resume=never")


def test_a_run_that_cannot_go_on_is_no_dead_end_and_what_cannot_be_read_is_passed_over(stopped, tmp_path):
    for folder in checkpoint.steps(stopped):
        (folder / "manifest.json").unlink()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/summary.json").write_text("{")
    assert place_of(tmp_path / "new", "resume=auto") == tmp_path / "new"
    assert resume.close_dead(tmp_path / "new", STORE) == []


def place_of(folder: Path, *overrides: str) -> Path:
    return resume.place(config_of(*SMALL, *overrides), folder)


def test_auto_takes_this_folder_else_the_newest_unfinished_run_like_it_else_none(stopped, tmp_path, plain):
    new = tmp_path / "new"
    assert place_of(new, "resume=never") == new
    assert place_of(new, "resume=auto") == stopped
    assert place_of(new, "resume=auto", "seed=1") == new, "of another configuration"
    assert place_of(new, "resume=auto", "name=other") == new
    later = read_summary(stopped) | {"started": read_summary(stopped)["started"] + 9}
    with written_by_another(tmp_path / "busy"):
        shutil.copy(stopped / "config.yaml", tmp_path / "busy/config.yaml")
        (tmp_path / "busy/summary.json").write_text(json.dumps(later))
        assert place_of(new, "resume=auto") == stopped, "that one is in use"
    assert place_of(new, "resume=auto") == tmp_path / "busy"
    shutil.rmtree(tmp_path / "busy")
    ended = {"status": "finished", "ended": 1}
    write_atomic(stopped / "summary.json", json.dumps(read_summary(stopped) | ended))
    assert place_of(new, "resume=auto") == new
    assert place_of(stopped, "resume=auto") == stopped
    assert place_of(new, f"resume={stopped}") == stopped
    with pytest.raises(UserError, match="no folder of a run"):
        place_of(new, f"resume={tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="is of training"):
        place_of(new, "resume=auto", "task=eval")


def test_a_fresh_start_names_the_unfinished_run_beside_it_and_what_differs(stopped, tmp_path):
    def left(*overrides):
        return resume.left_beside(config_of(*SMALL, *overrides), tmp_path / "new")

    assert left() is None, "the same run is taken up and not named"
    text = left("grpo.group_size=8", "seed=1")
    assert f"unfinished beside it: {stopped} (grpo.group_size is 4 there, 8 here, seed is 0 there, 1 here)" in text
    assert f"resume={stopped}" in text
    assert left("name=other") is None


def test_the_list_of_runs_says_how_to_go_on_with_the_unfinished(stopped, place, capsys, monkeypatch):
    command = runs.going_on(reader.read(stopped))
    assert command.startswith(f"cd {place} && python -m echoink.train"), (
        "where it began: relative paths count from there"
    )
    monkeypatch.chdir(place)
    runs.main([str(stopped.parent), "status=unfinished"])
    text = capsys.readouterr().out
    assert str(stopped) in text.replace("\n", "") and "killed" in text
    command = runs.going_on(reader.read(stopped))
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "echoink.train"] and words[-1] == f"resume={stopped}"
    assert set(SMALL) <= set(words), "with all that it was started with"
    for name, old, new in (
        ("config.yaml", "  processes: 1", "  processes: 16"),
        ("environment.json", '"processes_per_host": null', '"processes_per_host": 8'),
    ):
        text = (stopped / name).read_text()
        assert old in text
        (stopped / name).write_text(text.replace(old, new))
    words = shlex.split(runs.going_on(reader.read(stopped)))
    assert words[:5] == ["torchrun", "--nnodes", "2", "--nproc_per_node", "8"], "on each of two machines"
    (stopped / "environment.json").unlink()
    assert shlex.split(runs.going_on(reader.read(stopped)))[:3] == ["torchrun", "--nproc_per_node", "16"]
    (stopped / "config.yaml").write_text((stopped / "config.yaml").read_text().replace("processes: 16", "processes: 1"))
    assert runs.going_on(reader.read(place / "outputs/plain")) is None, "that one has ended"
    shutil.rmtree(stopped / "checkpoints")
    assert runs.going_on(reader.read(stopped)), "it was killed before it had a checkpoint"
    failed = json.loads((stopped / "summary.json").read_text()) | {"status": "failed"}
    (stopped / "summary.json").write_text(json.dumps(failed))
    assert runs.going_on(reader.read(stopped)) is None, "it would fail again"


def test_runs_behind_links_are_found_once_and_a_damaged_sweep_hides_nothing(tmp_path, capsys):
    kept = tmp_path / "large disk/tiny"
    make_run(kept / "one")
    (kept / "circle").symlink_to(kept)
    outputs = tmp_path / "outputs"
    make_run(outputs / "sweep/0")
    (outputs / "sweep/sweep.json").write_text('{"status": "fini')
    (outputs / "tiny").symlink_to(kept)
    (outputs / "best").mkdir()
    (outputs / "best/mine").symlink_to(outputs / "sweep/0")
    assert [run.folder for run in reader.find([outputs])] == [outputs / "sweep/0", outputs / "tiny/one"]
    runs.main([str(outputs)])
    assert "tiny/one" in "".join(capsys.readouterr().out.split())


def test_the_list_leaves_mlflows_copies_out_and_calls_a_dead_run_killed(tmp_path, capsys):
    run = make_run(tmp_path / "outputs/tiny/now")
    copied = make_run(tmp_path / "outputs/mlartifacts/tiny/abc/artifacts")
    (copied / "sweep.json").write_text(json.dumps({"status": "finished", "jobs": 2, "overrides": []}))
    summary = json.loads((run / "summary.json").read_text()) | {"status": "running"}
    (run / "summary.json").write_text(json.dumps(summary))
    runs.main([str(tmp_path / "outputs")])
    text = capsys.readouterr().out
    assert "mlartifacts" not in text and "killed" in text and "running" not in text


def test_a_run_that_has_ended_is_not_running_where_nobody_may_write(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "in_use", lambda folder: True)
    run = make_run(tmp_path / "run")
    assert runs.status(reader.read(run)) == "finished"
    summary = json.loads((run / "summary.json").read_text()) | {"status": "running", "ended": None}
    (run / "summary.json").write_text(json.dumps(summary))
    assert runs.status(reader.read(run)) == "running"


def test_the_list_shows_first_what_a_job_has_otherwise_than_its_siblings(tmp_path):
    words = ["trainer.steps=6", "dataset.train=100", "dataset.valid=50", "eval.limit=50", "grpo.beta=0"]
    run = make_run(tmp_path / "sweep/0", words)
    assert "grpo.beta" not in runs.changed(reader.read(run))
    (tmp_path / "sweep/sweep.json").write_text(json.dumps({"swept": ["grpo.beta"]}))
    assert runs.changed(reader.read(run)).startswith("grpo.beta=0, trainer.steps=6")


def test_the_list_knows_a_sweep_whose_last_jobs_were_never_begun(tmp_path, capsys):
    sweep = tmp_path / "outputs/tiny/sweep_1"
    make_run(sweep / "0", ["seed=0"])
    gone = {"host": "elsewhere", "process": 1, "process_started": 0.0}
    definition = {"status": "killed", "jobs": 3, "overrides": [], **gone}
    (sweep / "sweep.json").write_text(json.dumps(definition))
    runs.main([str(tmp_path / "outputs"), "status=unfinished"])
    assert f"sweep.resume={sweep}" in capsys.readouterr().out.replace("\n", "")
    (sweep / "sweep.json").write_text(json.dumps({**definition, "jobs": 1}))
    runs.main([str(tmp_path / "outputs"), "status=unfinished"])
    assert "sweep.resume" not in capsys.readouterr().out


def test_a_finished_run_is_not_run_again(place, plain):
    before = {path: path.stat().st_mtime_ns for path in (place / "outputs/plain").rglob("*.jsonl")}
    done = processes.run(place, *SMALL, "resume=auto", "hydra.run.dir=outputs/plain")
    assert done.returncode == 0 and "this run has finished" in done.stdout, done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (place / "outputs/plain").rglob("*.jsonl")}


def test_a_run_that_died_is_called_killed_at_the_next_start(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from echoink.run_folder.environment import environment
from echoink.run_folder.folder import RunFolder
folder = Path({str(tmp_path)!r}) / "dead"
with RunFolder(folder, "train", "x", 0) as files:
    files.write_json("environment.json", environment())
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert processes.run(tmp_path, code=code).returncode == -9
    assert read_summary(tmp_path / "dead")["status"] == "running"
    with RunFolder(tmp_path / "alive", "train", "x", 0) as files:
        files.write_json("environment.json", environment())
        dead = tmp_path / "dead/summary.json"
        dead.write_text(json.dumps(read_summary(tmp_path / "dead") | {"mlflow": {"run_id": "abc"}}))
        assert resume.close_dead(tmp_path / "new", None) == [], "left for a start that can tell MLflow"
        (tmp_path / "dead/config.yaml").write_text("tracking: {uri: 'http://elsewhere'}")
        assert resume.close_dead(tmp_path / "new", STORE) == [], "left for a start that logs to its store"
        (tmp_path / "dead/config.yaml").write_text(f"tracking: {{uri: '{STORE}'}}")
        assert resume.close_dead(tmp_path / "new", STORE) == [tmp_path / "dead"]
        assert resume.close_dead(tmp_path / "new", STORE) == []
        assert read_summary(tmp_path / "alive")["status"] == "running"
    assert read_summary(tmp_path / "dead")["status"] == "killed"


# --- a disk that is full, numbers that are not finite ---


def files(folder: Path) -> None:
    for name in ("model.safetensors", *checkpoint.STATE):
        (folder / name).write_text(name)


def test_only_the_newest_keep_what_training_goes_on_from(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, files, keep=3)
    found = {path.name: sorted(each.name for each in path.iterdir()) for path in checkpoint.steps(tmp_path)}
    assert found["step-2"] == ["manifest.json", "model.safetensors"]
    assert found["step-3"] == found["step-4"] == sorted(["manifest.json", "model.safetensors", *checkpoint.STATE])
    assert all(checkpoint.damage(path) is None for path in checkpoint.steps(tmp_path))
    for step in (3, 4):
        (tmp_path / f"checkpoints/step-{step}/optimizer.pt").unlink()
    assert checkpoint.newest(tmp_path)[0] is None, "weights alone are no place to go on from"


@pytest.mark.parametrize("at", ["model", "optimizer", "rollout", "manifest", "rename"])
def test_a_full_disk_costs_no_checkpoint_that_existed(tmp_path, monkeypatch, at):
    def write(folder: Path) -> None:
        for name in ("model", "optimizer", "rollout"):
            if name == at:
                raise RuntimeError("unexpected pos 64 vs 0: No space left on device")
            (folder / name).write_text(name)

    def full(*_):
        raise OSError(28, "No space left on device")

    kept = checkpoint.save(tmp_path, 1, files, keep=1)
    if at in ("manifest", "rename"):
        monkeypatch.setattr(checkpoint, "as_json" if at == "manifest" else "_flush", full)
    with pytest.raises((OSError, RuntimeError), match="No space left"):
        checkpoint.save(tmp_path, 2, write, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]
    assert checkpoint.newest(tmp_path) == (kept, {})


def test_at_every_instant_of_a_save_there_is_one_whole_checkpoint(tmp_path, monkeypatch):
    """keep=1, watched at every call to the file system that a save makes."""
    checkpoint.save(tmp_path, 1, files, keep=1)
    seen = []

    def watched(function):
        def call(*arguments, **named):
            seen.append(checkpoint.newest(tmp_path)[0])
            result = function(*arguments, **named)
            seen.append(checkpoint.newest(tmp_path)[0])
            return result

        return call

    for module, name in ((checkpoint.os, "rename"), (checkpoint.os, "fsync"), (checkpoint.shutil, "rmtree")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    checkpoint.save(tmp_path, 2, files, keep=1)
    assert len(seen) > 8 and None not in seen
    assert {path.name for path in seen} == {"step-1", "step-2"}


def test_pickles_in_a_checkpoint_are_never_run(stopped, place):
    """A payload in each file that torch writes, its manifest made to fit: loading refuses it, nothing is run."""
    import pickle

    class Payload:
        def __reduce__(self):
            return (Path.touch, (stopped / "owned",))

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rollout.pt"):
        (stopped / "checkpoints/step-5" / name).unlink()
        with open(stopped / "checkpoints/step-5" / name, "wb") as file:
            torch.save({"x": Payload()}, file, pickle_module=pickle)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(stopped / "checkpoints/step-5" / name, weights_only=True)
        said = checkpoint.manifest(stopped / "checkpoints/step-5")
        said["files"][name] = checkpoint._seen(stopped / "checkpoints/step-5" / name)
        (stopped / "checkpoints/step-5/manifest.json").write_text(json.dumps(said))
    done = processes.run(place, *SMALL, "resume=auto", f"hydra.run.dir={stopped}")
    assert done.returncode != 0 and not (stopped / "owned").exists()


def test_a_refused_command_leaves_the_runs_folder_as_it_was(place, plain):
    """Hydra writes what a command line is before the run begins; `runs` tells from it how to go on."""
    folder = place / "outputs/plain"
    before = (folder / ".hydra/overrides.yaml").read_text()
    done = processes.run(place, "grpo.beta=0.5", "tracking=off", f"hydra.run.dir={folder}")
    assert done.returncode == 2 and "holds a run already" in done.stderr
    assert (folder / ".hydra/overrides.yaml").read_text() == before


def test_another_learning_rate_that_is_allowed_is_gone_on_with(place, plain):
    folder = place / "outputs/faster"
    shutil.copytree(place / "outputs/plain", folder)
    shutil.rmtree(folder / "checkpoints/step-8")
    rates = [row["train/lr"] for row in read_rows(folder / "metrics.jsonl")]
    other = ["trainer.learning_rate=5e-4", "trainer.weight_decay=0.5", "eval.base=false"]
    allow = "resume_allow=[trainer.learning_rate,trainer.weight_decay,eval.base]"
    done = processes.run(place, *SMALL, *other, allow, "resume=auto", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    found = [row["train/lr"] for row in read_rows(folder / "metrics.jsonl")]
    assert found[:7] == rates[:7] and found[7] == pytest.approx(rates[7] / 2)
    groups = torch.load(folder / "checkpoints/step-8/optimizer.pt", weights_only=True)["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert {group["initial_lr"] for group in groups} == {5e-4}
