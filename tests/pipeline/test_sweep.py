"""The parts of a sweep; `test_train.py` runs whole ones."""

import json
import math
import multiprocessing
import os
import shlex
import shutil
import time
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from echoink import runs, train
from echoink.common.errors import UserError
from echoink.config.compose import SWEPT, _expand, compose
from echoink.config.overrides import quoted
from echoink.config.paths import TINY
from echoink.pipeline import sweep, sweep_job, sweep_run
from echoink.run_folder import checkpoint, inputs_on_disk, reader, reward_files
from echoink.run_folder.environment import environment
from echoink.run_folder.folder import read_summary
from tests.helpers.configs import config_of
from tests.helpers.entry import refused
from tests.helpers.runs import make_run


def config(*overrides):
    return config_of(*overrides)


def test_swept_keys_are_those_that_differ():
    jobs = compose(["experiment=ablate_beta", "grpo.beta=0,0.1", "seed=0,1"], multirun=True)
    assert len(jobs) == 4 and sweep_run._keys(jobs, ["experiment=ablate_beta"]) == ["grpo.beta", "seed"]
    search = ["reward.lambda_fmt=interval(0,2)", "seed=1"]
    assert sweep_run._keys(compose(search, multirun=True), search) == ["reward.lambda_fmt"]


@pytest.mark.parametrize(
    ("experiment", "arms", "seeds", "default"),
    [
        ("ablate_lambda_fmt", 5, 3, ["reward.lambda_fmt=1"]),
        ("ablate_reward_scale", 10, 3, ["grpo.scale=group", "reward.lambda_fmt=1"]),
        ("ablate_group_size", 4, 3, ["grpo.group_size=8"]),
        ("ablate_beta", 3, 3, ["grpo.beta=0.001"]),
        ("ablate_loss", 4, 3, ["grpo.loss=grpo"]),
        ("control_reward", 3, 5, ["reward=accuracy_format"]),
        ("control_rejection", 2, 5, ["grpo.advantage=group"]),
    ],
)
def test_every_ablation_has_its_arms_and_seeds_and_the_default_among_them(experiment, arms, seeds, default):
    jobs = _expand([f"experiment={experiment}"], [])
    ours = [tuple(one for one in job if not one.startswith(("seed=", "experiment="))) for job in jobs]
    assert len(jobs) == arms * seeds and len(set(ours)) == arms and set(default) in map(set, ours)
    assert {one for job in jobs for one in job if one.startswith("seed=")} == {f"seed={seed}" for seed in range(seeds)}
    found = config(f"experiment={experiment}", *default)
    assert (found.reward, found.grpo, found.trainer) == (config().reward, config().grpo, config().trainer)


def test_a_name_says_what_differs(monkeypatch):
    monkeypatch.setenv(SWEPT, "reward.lambda_fmt seed")
    given = ["experiment=x", "reward.lambda_fmt=0.5", "seed=1", "dataset.path=a,b", "hydra.x=1"]
    assert sweep_job.run_name(given) == "reward.lambda_fmt=0.5, seed=1"
    monkeypatch.delenv(SWEPT)
    assert sweep_job.run_name(given) == "experiment=x, reward.lambda_fmt=0.5, seed=1"


def test_the_parameters_of_a_run_are_whole_values_of_its_configuration(monkeypatch):
    given = ["dataset.kinds=[ear, eye]", "seed=1", "checkpoint=/runs/a", f"prompt.system={'long ' * 30}", "hydra.x=1"]
    values = {"dataset.kinds": ["ear", "eye"], "seed": 1}
    assert sweep_job.params(given, values) == values
    monkeypatch.setenv(SWEPT, "checkpoint")
    monkeypatch.setenv(sweep_job.BELOW, json.dumps({"checkpoint": "/runs"}))
    assert sweep_job.params(given, values)["checkpoint"] == "a", "as in its name"


@pytest.mark.parametrize(
    ("other", "taken"),
    [
        ([], True),
        (["tracking=off", "name=y", "eval.cache=null", "eval.watched=0", "sweep.share=x"], True),
        (["trainer.save_every=5", "trainer.patience=9"], True),
        (["trainer.push_to_hub=me/model"], False),
        (["seed=1"], False),
        (["grpo.beta=0"], False),
        (["trainer.steps=7"], False),
    ],
)
def test_a_finished_run_of_the_same_configuration_is_taken(tmp_path, other, taken):
    made = make_run(tmp_path / "old/0", ["reward.lambda_fmt=0.5"])
    make_run(tmp_path / "old/1", ["reward.lambda_fmt=0.5"], status="failed")
    found = sweep_job.shared(config("reward.lambda_fmt=0.5", *other), tmp_path, tmp_path / "new/0")
    assert (found and found.folder) == (made if taken else None)


def test_an_older_run_without_a_key_is_taken_where_the_key_has_its_default(tmp_path):
    file = make_run(tmp_path / "old") / "config.yaml"
    file.write_text(file.read_text().replace("  advantage: group\n", ""))
    assert sweep_job.shared(config(), tmp_path, tmp_path / "new")
    assert not sweep_job.shared(config("grpo.advantage=rejection"), tmp_path, tmp_path / "new")


def test_a_job_that_is_shared_or_finished_starts_no_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep_job, "_device", lambda *_: pytest.fail("a process was about to start"))
    old = make_run(tmp_path / "old")
    (old / "checkpoints/step-2").mkdir(parents=True)
    new = tmp_path / "sweep/0"
    for _ in range(2):
        assert sweep_job.run_job(config(f"sweep.share={tmp_path}"), [], new, flags=[], side_by_side=1) == 0.8
    assert (new / "metrics.jsonl").read_text() == (old / "metrics.jsonl").read_text()
    assert (new / "checkpoints/step-2").is_dir(), "behind a link"
    (old / "checkpoints/step-4").mkdir()
    assert [path.name for path in checkpoint.steps(new)] == ["step-2"], "what that run learns later is not this job's"
    assert read_summary(new)["shared"] == str(old)
    records = [json.loads((place / "tracking.json").read_text()) for place in (old, new)]
    assert records[0]["id"] != records[1]["id"], "a run of its own in MLflow"
    assert "from " in (said := capsys.readouterr().out) and "finished before" in said


class Starts(Exception):
    """A job would be started."""


def starts(*_):
    raise Starts


def test_a_job_that_died_on_another_machine_is_run_again_and_one_that_lives_there_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_job, "_device", starts)
    job = make_run(tmp_path / "3")
    summary = read_summary(job) | {"status": "running", "ended": None}
    (job / "summary.json").write_text(json.dumps(summary))
    (job / "environment.json").write_text(json.dumps({"host": "another", "process": 1, "process_started": 1.0}))
    monkeypatch.setattr(sweep_job, "in_use", lambda folder: True)
    with pytest.raises(UserError, match="job 3 is still running"):
        sweep_job.run_job(config(), [], job, flags=[], side_by_side=1)
    monkeypatch.setattr(sweep_job, "in_use", lambda folder: False)
    with pytest.raises(Starts):
        sweep_job.run_job(config(), [], job, flags=[], side_by_side=1)


def test_a_job_is_finished_only_with_its_own_configuration(tmp_path, monkeypatch):
    """The experiment's file changed since: the number of the job is not enough."""
    monkeypatch.setattr(sweep_job, "_device", starts)
    job = make_run(tmp_path / "3", ["grpo.beta=0"])
    assert sweep_job.run_job(config("grpo.beta=0"), [], job, flags=[], side_by_side=1) == 0.8
    with pytest.raises(Starts):
        sweep_job.run_job(config("grpo.beta=0.04"), [], job, flags=[], side_by_side=1)
    assert len(list((tmp_path / "unfinished").iterdir())) == 1


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("key", ["model.path", "checkpoint"])
def test_a_job_whose_weights_were_replaced_is_run_again_and_not_shared(tmp_path, monkeypatch, capsys, key, kind):
    monkeypatch.setattr(sweep_job, "_device", starts)
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / f"model.{kind}").write_bytes(bytes(3 * 2**20))
    (base / f"pruned.{kind}").symlink_to(tmp_path / "gone")
    job = make_run(tmp_path / "3", words := [f"{key}={base}"])
    began = read_summary(job) | {"weights": inputs_on_disk.weights_of(config(*words))}
    (job / "summary.json").write_text(json.dumps(began))
    os.utime(base / f"model.{kind}", (2**33, 2**33))  # the same weights, copied anew
    assert sweep_job.run_job(config(*words), [], job, flags=[], side_by_side=1) == 0.8
    assert sweep_job.shared(config(*words), tmp_path, tmp_path / "4").folder == job
    (base / f"model.{kind}").write_bytes(bytes(range(256)) * (3 * 2**12))
    assert sweep_job.shared(config(*words), tmp_path, tmp_path / "4") is None
    assert "began with other weights than" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(Starts):
        sweep_job.run_job(config(*words), [], job, flags=[], side_by_side=1)


def test_a_job_whose_reward_file_has_changed_is_run_again_and_not_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_job, "_device", starts)
    mine = tmp_path / "mine.py"
    mine.write_text("def reward(completion, sample): return 1.0\n")
    words = [f"reward.file={mine}"]
    job = make_run(tmp_path / "3", words)
    reward_files.keep(config(*words).reward, job)
    assert sweep_job.run_job(config(*words), [], job, flags=[], side_by_side=1) == 0.8
    assert sweep_job.shared(config(*words), tmp_path, tmp_path / "4").folder == job
    mine.write_text("def reward(completion, sample): return 0.0\n")
    assert sweep_job.shared(config(*words), tmp_path, tmp_path / "4") is None
    with pytest.raises(Starts):
        sweep_job.run_job(config(*words), [], job, flags=[], side_by_side=1)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_job_that_left_a_checkpoint_goes_on_from_it(tmp_path, monkeypatch, has_checkpoint):
    started = []

    class Process:
        def __init__(self, command, **_):
            started.append(command)

        def wait(self):
            return 1

    monkeypatch.setattr(sweep_job.subprocess, "Popen", Process)
    job = make_run(tmp_path / "3", ["grpo.beta=0"], status="killed")
    if has_checkpoint:
        files = ("model.safetensors", *checkpoint.STATE)
        checkpoint.save(job, 1, lambda folder: [(folder / name).write_text("x") for name in files], keep=1)
    else:
        (job / "checkpoints/step-1").mkdir(parents=True)  # of an older version: no place to go on from
    sweep_job.run_job(config("grpo.beta=0"), ["grpo.beta=0"], job, flags=[], side_by_side=1)
    assert ("resume=auto" in started[0]) == has_checkpoint == (job / "metrics.jsonl").is_file()


@pytest.mark.parametrize(("status", "objective"), [("finished", 0.9), ("failed", None), ("killed", None)])
def test_a_search_sees_a_job_that_did_not_finish_as_failed_whatever_its_base_had(
    tmp_path, monkeypatch, status, objective
):
    def ends(*_):
        summary = {"status": status, "base": {"accuracy": 0.9}, "final": None}
        (tmp_path / "0/summary.json").write_text(json.dumps(summary))
        return status != "finished"

    (tmp_path / "0").mkdir()
    monkeypatch.setattr(sweep_job, "_run", ends)
    found = sweep_job.run_job(config("task=eval"), [], tmp_path / "0", flags=[], side_by_side=1)
    assert math.isnan(found) if objective is None else found == objective


def test_a_job_that_still_runs_is_left_alone(tmp_path):
    job = make_run(tmp_path / "0", status="running")
    (job / "environment.json").write_text(json.dumps(environment()))
    with pytest.raises(UserError, match="job 0 is still running"):
        sweep_job.run_job(config(), [], job, flags=[], side_by_side=1)
    assert (job / "metrics.jsonl").is_file()


def test_a_job_whose_process_died_is_called_killed_and_one_elsewhere_is_not(tmp_path):
    for name, other in (("0", {"process_started": 0.0}), ("1", {"host": "another"})):
        job = make_run(tmp_path / name, status="running")
        (job / "environment.json").write_text(json.dumps(environment() | other))
    assert [sweep_run._closed(tmp_path / name, time.monotonic())["status"] for name in "01"] == ["killed", "running"]


def test_what_an_attempt_left_is_moved_aside(tmp_path):
    job = make_run(tmp_path / "3", status="killed")
    sweep_job._set_aside(job)
    assert [path.name for path in job.iterdir()] == [".hydra"]
    (left,) = (tmp_path / "unfinished").iterdir()
    assert left.name.startswith("3-") and (left / "metrics.jsonl").is_file()
    assert reader.jobs(tmp_path) == [job]


def hold(folder, seconds, found):
    with sweep_job._device(folder, alone=False) as device:
        found.append((device["CUDA_VISIBLE_DEVICES"], time.monotonic()))
        time.sleep(seconds)
        found.append((device["CUDA_VISIBLE_DEVICES"], time.monotonic()))


def test_jobs_side_by_side_have_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with multiprocessing.get_context("fork").Manager() as manager:
        found = manager.list()
        context = multiprocessing.get_context("fork")
        jobs = [context.Process(target=hold, args=(tmp_path, 1.5, found)) for _ in range(3)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(30)
        spans = {}
        for device, when in found:
            spans.setdefault(device, []).append(when)
    assert {device: len(times) for device, times in spans.items()} in ({"4": 4, "7": 2}, {"4": 2, "7": 4})
    for times in spans.values():
        starts, ends = sorted(times)[::2], sorted(times)[1::2]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False)), "one job at a time on each"
    with sweep_job._device(tmp_path, alone=True) as device:
        assert device == {}, "a job by itself has all of them"


@pytest.mark.parametrize(("launcher", "jobs", "at_once"), [("joblib", 1, 1), ("joblib", 8, 2), ("basic", None, 1)])
def test_a_launcher_of_one_job_runs_none_beside_it(monkeypatch, launcher, jobs, at_once):
    """Then a job may have several processes, and writes to the screen."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5})
    settings = OmegaConf.create({"runtime": {"choices": {"hydra/launcher": launcher}}, "launcher": {"n_jobs": jobs}})
    assert sweep_job.side_by_side(settings) == at_once


def test_torchrun_passes_a_schedulers_signals_on_to_a_job(tmp_path, monkeypatch):
    """By itself it would end by SIGUSR1, and leave the job's processes behind."""
    commands = []
    monkeypatch.setattr(sweep_job, "_run", lambda command, *_: commands.append(command) or 1)
    words = ["trainer=ddp", "trainer.processes=2", "trainer.prompts_per_step=4", "trainer.micro_batch_prompts=1"]
    (tmp_path / "0").mkdir()
    sweep_job.run_job(compose(words)[0].config, words, tmp_path / "0", flags=[], side_by_side=1)
    (command,) = commands
    passed = command[command.index("--signals-to-handle") + 1].split(",")
    assert {"SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"} <= {*passed} and command.index(
        "--signals-to-handle"
    ) < command.index("-m", 2)


@pytest.mark.parametrize(("value", "gpus"), [("0,1", ["0", "1"]), ("", []), ("-1", []), ("GPU-a", ["GPU-a"])])
def test_visible_devices(monkeypatch, value, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert sweep_job.devices() == gpus


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n", ["0", "1"]),
        (
            "GPU 0: NVIDIA H200 (UUID: GPU-1)\n"
            "  MIG 3g.71gb     Device  0: (UUID: MIG-a)\n  MIG 3g.71gb     Device  1: (UUID: MIG-b)\n",
            ["MIG-a", "MIG-b"],
        ),
        ("", []),
    ],
)
def test_listed_devices(monkeypatch, listed, gpus):
    """As nvidia-smi lists them; a GPU that is divided is not used as a whole."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sweep_job.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(sweep_job.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=listed))
    assert sweep_job.devices() == gpus


def test_a_sweep_is_taken_up_with_its_own_overrides(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"overrides": ["seed=0,1", "grpo.beta=0"]}))
    again = [f"sweep.resume={tmp_path}"]
    assert sweep.settled(["seed=0,1"]) == (["seed=0,1"], None, None)
    assert sweep.settled(again) == (["seed=0,1", "grpo.beta=0"], tmp_path, None)
    assert sweep.settled([*again, "hydra/launcher=joblib"])[0][-1] == "hydra/launcher=joblib"
    with pytest.raises(UserError, match=r"not with grpo\.beta=1"):
        sweep.settled([*again, "grpo.beta=1"])
    with pytest.raises(UserError, match=r"has a sweep\.json"):
        sweep.settled(["sweep.resume=nowhere"])
    odd = tmp_path / "it's here"
    shutil.copytree(tmp_path, odd, ignore=shutil.ignore_patterns("it*"))
    assert sweep.settled([f"sweep.resume={quoted(odd)}"]).folder == odd
    (tmp_path / "sweep.json").write_text(json.dumps({"overrides": ["hydra/sweeper=optuna"]}))
    with pytest.raises(UserError, match="a search"):
        sweep.settled(again)


def test_a_folder_that_holds_another_sweep_is_refused(tmp_path):
    sweep.refuse(["seed=0,1"], tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"overrides": ["seed=0,1", "hydra.sweep.dir=x"]}))
    sweep.refuse(["hydra.sweep.dir=y", "seed=0,1", "hydra/launcher=joblib"], tmp_path)
    with pytest.raises(UserError, match="holds another sweep: seed=0,1"):
        sweep.refuse(["seed=0,1,2"], tmp_path)
    drawn = ["reward.lambda_fmt=interval(0,1)"]
    (tmp_path / "sweep.json").write_text(json.dumps({"overrides": drawn, "search": True}))
    with pytest.raises(UserError, match="holds another sweep"):
        sweep.refuse(drawn, tmp_path)


def test_a_search_is_known_by_its_sweeper_wherever_it_was_chosen_and_is_not_told_to_go_on(tmp_path, capsys):
    (tmp_path / "experiment").mkdir()
    lines = ["# @package _global_", "defaults:", "  - override /hydra/sweeper: optuna", "hydra:", "  sweeper:"]
    lines += ["    direction: maximize", "    params:", "      reward.lambda_fmt: interval(0, 2)"]
    (tmp_path / "experiment/mine.yaml").write_text("\n".join(lines))
    (job,) = compose(["experiment=mine"], multirun=True, config_dir=str(tmp_path))
    assert job.is_search and sweep_run._keys([job], ["experiment=mine"]) == ["reward.lambda_fmt"]
    train._check_grid([job], multirun=True)
    assert not compose(["seed=0,1"], multirun=True)[0].is_search
    folder = make_run(tmp_path / "sweep/0", status="killed").parent
    definition = {"status": "killed", "overrides": ["experiment=mine"], "jobs": 1, "search": True}
    (folder / "sweep.json").write_text(json.dumps(definition))
    assert sweep_run._failed([folder / "0"], {folder / "0": {"status": "killed"}}, folder, definition) == 1
    assert "only these" not in capsys.readouterr().err
    assert runs.unfinished_sweeps([tmp_path]) == [] and runs.going_on(reader.read(folder / "0")) is None
    with pytest.raises(UserError, match="is a search"):
        sweep.settled([f"sweep.resume={folder}"])


def test_settings_of_hydra_that_would_be_passed_over_are_refused(monkeypatch):
    with pytest.raises(UserError, match="finds its jobs by their numbers"):
        train._check_hydra(["hydra.sweep.subdir=s${hydra.job.num}"], multirun=True)
    with pytest.raises(UserError, match=r"hydra\.sweep\.dir=x is about a sweep\n.*--multirun"):
        train._check_hydra(["hydra.sweep.dir=x"], multirun=False)
    train._check_hydra(["hydra.sweep.dir=x"], multirun=True)
    with pytest.raises(UserError, match=r"sweep\.resume=x is about a sweep\n.*--multirun"):
        train._check_hydra(["sweep.resume=x"], multirun=False)
    monkeypatch.setenv(SWEPT, "seed")
    train._check_hydra(["hydra.sweep.dir=x", "sweep.share=y"], multirun=False)  # a job of such a sweep


def test_an_experiment_that_is_a_grid_is_not_run_without_its_grid():
    train._check_grid(compose(["experiment=ablate_beta"], multirun=True), multirun=True)
    train._check_grid(compose(["experiment=ablate_beta", "grpo.beta=0", "seed=1"]), multirun=False)
    with pytest.raises(UserError, match=r"grid over grpo\.beta, seed, and this is one run"):
        train._check_grid(compose(["experiment=ablate_beta"]), multirun=False)
    for some in ("experiment=ablate_beta,ablate_loss", "experiment=glob(ablate_bet*)"):
        with pytest.raises(UserError, match="leaves out their own grids"):
            train._check_grid(compose([some], multirun=True), multirun=True)
    train._check_grid(compose(["experiment=quickstart,open_media", "dataset.path=x"], multirun=True), multirun=True)


def test_a_sweep_remembers_the_folder_of_configuration_that_it_was_started_with(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"overrides": ["seed=0,1"], "config_dir": str(tmp_path / "mine")}))
    assert sweep.settled([f"sweep.resume={tmp_path}"]).config_dir == str(tmp_path / "mine")


def test_jobs_that_were_never_begun_are_counted_and_the_way_on_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "my sweep"
    jobs = {folder / str(n): {"status": "killed", "error": "interrupted by Ctrl-C"} for n in range(1)}
    assert sweep_run._failed(list(jobs), jobs, folder, {"jobs": 4, "search": False}) == 1
    text = capsys.readouterr().err
    assert "4 of 4 jobs did not finish, 3 of them not begun" in text and "job 0: killed, interrupted by Ctrl-C" in text
    pasted = shlex.split(text.partition("only these: ")[2])
    assert pasted[:4] == ["python", "-m", "echoink.train", "--multirun"]
    word = OverridesParser.create().parse_overrides(pasted[4:])[0]
    assert (word.key_or_group, word.value()) == ("sweep.resume", str(folder))


def test_a_sweep_over_paths_shows_what_differs_between_them(monkeypatch):
    jobs = [[f"checkpoint=/runs/tiny/{name}/checkpoints/step-8", "seed=1"] for name in ("a", "b")]
    assert sweep_job.common_folders(["checkpoint"], jobs) == {"checkpoint": "/runs/tiny"}
    monkeypatch.setenv(SWEPT, "checkpoint")
    monkeypatch.setenv(sweep_job.BELOW, json.dumps(sweep_job.common_folders(["checkpoint"], jobs)))
    names = [sweep_job.run_name(job) for job in jobs]
    assert names == ["checkpoint=a/checkpoints/step-8", "checkpoint=b/checkpoints/step-8"]
    jobs = [[f"checkpoint='/my runs/{name}'"] for name in ("a", "b")]  # quoted, for the blank
    monkeypatch.setenv(sweep_job.BELOW, json.dumps(sweep_job.common_folders(["checkpoint"], jobs)))
    assert [sweep_job.run_name(job) for job in jobs] == ["checkpoint=a", "checkpoint=b"]
    monkeypatch.delenv(SWEPT)
    assert sweep_job.run_name(["checkpoint=outputs/a", "seed=1"]) == "seed=1", "outside a sweep it is no part of a name"


def test_values_that_are_no_paths_or_have_nothing_in_common_stay():
    assert sweep_job.common_folders(["grpo.beta"], [["grpo.beta=0"], ["grpo.beta=1"]]) == {}
    assert sweep_job.common_folders(["dataset.path"], [["dataset.path=a/x"], ["dataset.path=b/x"]]) == {}
    assert sweep_job.common_folders(["dataset.path"], [["dataset.path=a/x"], ["dataset.path=/a/y"]]) == {}


def test_weights_are_recognized_by_files_and_settings_and_as_earlier_versions_did(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    own = config_of(f"model.path={folder}")
    before = inputs_on_disk.weights_of(own)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("1e-06", "1e-05"))
    after = inputs_on_disk.weights_of(own)
    assert inputs_on_disk.differ(before, after) and not inputs_on_disk.differ(before, before)
    assert not inputs_on_disk.differ(before.split()[0], after), "earlier versions digested the weights alone"
    assert not inputs_on_disk.differ(None, after)


def sweep_of(folder, **more):
    definition = {"status": "running", "overrides": ["seed=0,1"], "jobs": 2, "search": False, **environment(), **more}
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(definition))
    return folder


def test_a_sweep_that_runs_is_not_resumed_and_no_command_says_so(tmp_path, capsys):
    folder = sweep_of(tmp_path / "sweep")
    make_run(folder / "0", status="failed")
    with pytest.raises(UserError, match="is still running"):
        sweep.settled([f"sweep.resume={folder}"])
    assert runs.going_on(reader.read(folder / "0")) is None
    sweep_of(folder, process_started=0.0)
    assert sweep.settled([f"sweep.resume={folder}"]).folder == folder
    assert "sweep.resume" in runs.going_on(reader.read(folder / "0"))


def test_a_sweep_goes_on_with_another_launcher_without_the_settings_of_the_first(tmp_path):
    begun = ["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=4", "hydra.sweep.dir=x"]
    folder = sweep_of(tmp_path / "sweep", overrides=begun, status="failed")
    again = sweep.settled([f"sweep.resume={folder}", "hydra/launcher=basic"]).overrides
    assert again == ["seed=0,1", "hydra.sweep.dir=x", "hydra/launcher=basic"]
    assert sweep.settled([f"sweep.resume={folder}"]).overrides == begun


def test_what_several_jobs_cannot_have_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"sweep\.share=outptus: no such folder"):
        sweep.check_jobs([config("sweep.share=outptus")], is_search=False)
    sweep.check_jobs([config(f"sweep.share={tmp_path}")], is_search=False)
    pushing = [config("trainer.push_to_hub=me/x", f"seed={seed}") for seed in (0, 1)]
    for jobs, is_search in ((pushing, False), (pushing[:1], True)):
        with pytest.raises(UserError, match="would replace what another has pushed to me/x"):
            sweep.check_jobs(jobs, is_search)
    sweep.check_jobs(pushing[:1], is_search=False)


def test_a_store_that_cannot_be_used_stops_a_sweep_before_its_jobs(tmp_path):
    jobs = compose(["seed=0,1", "tracking.uri=nonsense://x"], multirun=True)
    with pytest.raises(UserError, match="the tracking store nonsense://x cannot be opened"):
        sweep_run.run(lambda: pytest.fail("launched"), jobs, tmp_path / "sweep", overrides=["seed=0,1"], flags=[])
    assert not (tmp_path / "sweep").exists()


def test_deepspeed_with_one_process_is_started_by_torchrun_too(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(sweep_job, "_run", lambda command, folder, beside: commands.append(command) or 0)
    monkeypatch.setenv("RANK", "0")  # as torchrun does
    sweep_job.run_job(config("trainer=zero2", "trainer.processes=1"), [], tmp_path / "0", flags=[], side_by_side=1)
    assert "torch.distributed.run" in commands[0]
    job = make_run(tmp_path / "1", ["trainer.sharding=zero2", "trainer.processes=1"], status="killed")
    assert runs._launcher(reader.read(job))[0] == "torchrun"


def test_gpus_are_reserved_where_a_run_folders_disk_has_no_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with sweep_job._device(tmp_path, alone=False) as one, sweep_job._device(tmp_path, alone=False) as other:
        assert {one["CUDA_VISIBLE_DEVICES"], other["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
    assert not list(tmp_path.iterdir())


def test_a_search_is_for_the_highest_accuracy(tmp_path, monkeypatch, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.chdir(tmp_path)
    search = ["--multirun", "hydra/sweeper=optuna", "reward.lambda_fmt=interval(0,2)"]
    assert "this search is for the lowest accuracy (direction minimize)" in refused(search, monkeypatch, capsys)
    search += ["hydra.sweeper.direction=maximize", "hydra.sweeper.storage=sqlite:///s.db"]
    assert "hydra.sweeper.storage is not supported" in refused(search, monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "place", ["train.jsonl", "data/train-0.parquet", "AVQA-R1-6K/AVQA_R1/train/omni_rl_format_train.json"]
)
def test_a_job_whose_rows_have_changed_is_run_again_and_not_shared(tmp_path, monkeypatch, capsys, place):
    monkeypatch.setattr(sweep_job, "_device", starts)
    rows = tmp_path / "mine" / place
    rows.parent.mkdir(parents=True)
    rows.write_text("{}")
    words = ["dataset=rows", f"dataset.path={tmp_path / 'mine'}"]
    job = make_run(tmp_path / "3", words)
    began = read_summary(job) | {"rows": inputs_on_disk.rows_of(config(*words))}
    (job / "summary.json").write_text(json.dumps(began))
    os.utime(rows, (2**33, 2**33))  # the same rows, copied anew
    assert sweep_job.shared(config(*words), tmp_path, tmp_path / "4").folder == job
    rows.write_text("[]")
    os.utime(rows, (1, 1))  # unpacked from an archive, which keeps times
    assert sweep_job.shared(config(*words), tmp_path, tmp_path / "4") is None
    assert "began with other rows than" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(Starts):
        sweep_job.run_job(config(*words), [], job, flags=[], side_by_side=1)
