"""The entry point as a person uses it: processes in folders of their own."""

import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from echoink.common.errors import UserError
from echoink.pipeline.run import run
from echoink.tracking.client import absolute_uri, connect
from tests.helpers import processes, several
from tests.helpers.configs import config_of
from tests.helpers.entry import SMALL, lines, mlflow_runs, refused, until
from tests.helpers.paths import ROOT
from tests.helpers.runs import make_run

echoink = processes.run


def fresh(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m echoink.train` in a folder, from the very start of the interpreter."""
    return subprocess.run(
        [sys.executable, "-m", "echoink.train", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def first(place) -> tuple[subprocess.CompletedProcess, Path]:
    """One run and its folder."""
    done = echoink(place, *SMALL, "trainer.save_every=1")
    assert done.returncode == 0, done.stderr
    (folder,) = (place / "outputs/quickstart").iterdir()
    return done, folder


def test_the_run_folder_has_everything(first):
    _, folder = first
    assert {path.name for path in folder.iterdir()} == {
        ".hydra",
        ".lock",
        "config.yaml",
        "environment.json",
        "answered.json",
        "dataset.json",
        "flips.jsonl",
        "train.log",
        "metrics.jsonl",
        "completions",
        "checkpoints",
        "predictions.jsonl",
        "summary.json",
        "figures",
        "eval.jsonl",
        "tracking.json",
        "traces.jsonl",
        "watched.jsonl",
        "report.html",
        "report.md",
    } | ({"system.jsonl"} if (folder / "system.jsonl").exists() else set())
    assert [row["step"] for row in lines(folder / "metrics.jsonl")] == [1, 2]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-1", "step-2"]
    assert {path.name for path in (folder / "completions").iterdir()} == {"step-1.jsonl", "step-2.jsonl"}
    assert (folder / "figures/curves.png").stat().st_size > 10_000
    told = (folder / "report.md").read_text()
    assert "Not finished" not in told and "p = " in told and told.count("Step ") >= 2


def test_the_summary_agrees_with_the_predictions(first):
    _, folder = first
    summary, predictions = json.loads((folder / "summary.json").read_text()), lines(folder / "predictions.jsonl")
    assert summary["status"] == "finished" and summary["steps"] == 2
    assert (folder / summary["checkpoint"] / "model.safetensors").is_file()
    assert len(predictions) == 2 * 2 * 6
    for phase in ("base", "final"):
        for draw, key in (("sampled", "accuracy"), ("greedy", "greedy_accuracy")):
            rows = [row for row in predictions if (row["phase"], row["draw"]) == (phase, draw)]
            assert summary[phase][key] == sum(row["correct"] for row in rows) / 6
    flips = {(row["id"], row["phase"]): row["correct"] for row in predictions if row["draw"] == "sampled"}
    ids = {id for id, _ in flips}
    assert summary["paired"]["gained"] == sum(flips[id, "final"] > flips[id, "base"] for id in ids)
    greedy = summary["final"]["greedy_accuracy"] - summary["base"]["greedy_accuracy"]
    assert summary["paired"]["greedy"]["difference"] == pytest.approx(greedy)
    rewards = [row["reward/accuracy"] for row in lines(folder / "metrics.jsonl")]
    assert (summary["train"]["accuracy_first"], summary["train"]["accuracy_last"]) == (rewards[0], rewards[-1])


def test_the_screen_says_what_happens_in_order(first):
    done, folder = first
    said = [line.split(" ")[0] for line in done.stdout.splitlines()]
    order = [
        "EchoInk",
        "config",
        "data",
        "model",
        "base",
        "train",
        "final",
        "gain",
        "figure",
        "sample",
        "MLflow",
    ]
    positions = [said.index(label) for label in order]
    assert positions == sorted(positions)
    assert str(folder.name) in done.stdout and "mlflow ui --backend-store-uri sqlite:////" in done.stdout
    assert "Warning" not in done.stdout + done.stderr


def test_mlflow_has_the_run(first, place):
    _, folder = first
    summary = json.loads((folder / "summary.json").read_text())
    client = connect(absolute_uri("sqlite:///outputs/mlflow.db", place))
    run = client.get_run(summary["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    weights = {key for key in run.data.params if key.startswith("reward.lambda_")}
    assert weights == {"reward.lambda_acc", "reward.lambda_fmt", "reward.lambda_int"}, "that of no file is none"
    assert run.data.params["grpo.group_size"] == "4" and run.data.tags["folder"] == str(folder)
    for row in lines(folder / "metrics.jsonl"):
        for name, value in row.items():
            if name not in ("step", "epoch", "timestamp"):
                history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
                assert history[row["step"]] == pytest.approx(value), name
    evaluations = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "eval/accuracy")}
    assert evaluations == {0: summary["base"]["accuracy"], 2: summary["final"]["accuracy"]}
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    copy = Path(client.download_artifacts(run.info.run_id, "summary.json"))
    assert json.loads(copy.read_text())["status"] == "finished"
    assert {"config.yaml", "environment.json", "summary.json", "figures", "report.html"} <= artifacts
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    scores = {metric.key: metric.value for metric in model.metrics}
    assert scores["eval/accuracy"] == summary["final"]["accuracy"]
    (trace,) = client.search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id)
    assert (
        len([a for a in trace.info.assessments if a.name == "advantage"])
        == 4
        == int(run.data.params["grpo.group_size"])
    )
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["synthetic train", "synthetic valid"]


def test_the_record_of_a_run_knows_the_contents_of_its_files(first):
    """By these a report tells apart runs on other pictures and sounds behind the same names."""
    _, folder = first
    inputs = {one["context"]: one for one in json.loads((folder / "tracking.json").read_text())["inputs"]}
    answered = json.loads((folder / "answered.json").read_text())["base"]["data"]
    assert inputs["valid"]["digest"] == answered[:16]


def test_evaluating_its_checkpoint_gives_its_final_numbers(first, place):
    _, folder = first
    done = echoink(place, *SMALL, "task=eval", f"checkpoint={folder}", "name=again")
    assert done.returncode == 0, done.stderr
    (again,) = (place / "outputs/again").iterdir()
    trained, evaluated = (json.loads((path / "summary.json").read_text()) for path in (folder, again))
    assert evaluated["final"] == trained["final"]
    assert evaluated["base"] is None and evaluated["paired"] is None and not (again / "metrics.jsonl").exists()


def test_an_adapter_is_trained_saved_and_evaluated_from_its_checkpoint(place):
    """The checkpoint is the adapter alone; evaluated, it is merged into the model that it names."""
    learning = ["adapter=lora", "trainer.learning_rate=1e-2", "tracking=off"]
    done = echoink(place, *SMALL, *learning, "name=adapter", "eval.base=false", "trainer.steps=1")
    assert done.returncode == 0, done.stderr
    assert "lora of rank 16" in done.stdout
    (folder,) = (place / "outputs/adapter").iterdir()
    (step,) = (folder / "checkpoints").iterdir()
    assert (step / "adapter_model.safetensors").is_file() and not (step / "model.safetensors").exists()
    assert json.loads((step / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    done = echoink(place, *SMALL, "task=eval", f"checkpoint={folder}", "name=merged", "tracking=off")
    assert done.returncode == 0, done.stderr
    (again,) = (place / "outputs/merged").iterdir()

    def answers(path):
        return [json.loads(line)["completion"] for line in (path / "predictions.jsonl").read_text().splitlines()]

    same = [one == other for one, other in zip(answers(folder), answers(again), strict=True)]
    assert sum(same) >= 0.95 * len(same)  # merging rounds differently


@pytest.mark.slow  # test_resume.py compares runs of separate processes byte for byte
def test_the_same_command_gives_the_same_run(first, place):
    _, folder = first
    done = echoink(place, *SMALL, "trainer.save_every=1", "name=twin", "tracking=off")
    assert done.returncode == 0, done.stderr
    (twin,) = (place / "outputs/twin").iterdir()
    for name in ("predictions.jsonl", "completions/step-2.jsonl", "checkpoints/step-2/model.safetensors"):
        assert (twin / name).read_bytes() == (folder / name).read_bytes(), name
    assert json.loads((twin / "summary.json").read_text())["mlflow"]["run_id"] is None


def test_bfloat16_several_updates_accumulation_and_checkpointing_go_through(place):
    """Settings of the paper's run that the default run does not use, on the whole pipeline."""
    done = echoink(
        place,
        *SMALL,
        "name=paper",
        "trainer.bf16=true",
        "trainer.gradient_checkpointing=true",
        "trainer.micro_batch_prompts=1",
        "grpo.updates_per_rollout=2",
        "model.freeze=[audio]",
        "model.attention=eager",
        "reward.match=exact",
        "eval.base=false",
        "eval.greedy=false",
        "eval.samples=2",
        "generation.top_k=0",
        "tracking=off",
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (place / "outputs/paper").iterdir()
    metrics = lines(folder / "metrics.jsonl")
    assert [row["completions_seen"] for row in metrics] == [16, 16]
    assert ["reward/accuracy" in row for row in metrics] == [True, False]
    assert all(row["train/grad_norm"] > 0 for row in metrics)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["final"]["samples"]["k"] == 2 and summary["final"]["greedy_accuracy"] is None


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_a_true_status(place, number, code):
    name = f"signal{int(number)}"
    started = processes.start(place, *SMALL, f"name={name}", "trainer.steps=500", "eval.base=false")
    until(lambda: list(place.glob(f"outputs/{name}/*/metrics.jsonl")), started)
    started.send(number)
    assert started.wait(60).returncode == code
    (folder,) = (place / "outputs" / name).iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "killed"
    (run,) = [run for run in mlflow_runs(place) if run.info.run_id == summary["mlflow"]["run_id"]]
    assert run.info.status == "KILLED"


@pytest.mark.parametrize(
    "arguments",
    [
        ["reward.lamda_fmt=1"],
        ["--multirun", "grpo.beta=0,-1"],
    ],  # test_compose.py has all that is refused
    ids=" ".join,
)
def test_a_bad_configuration_is_refused_at_once_and_leaves_nothing(tmp_path, arguments):
    def used() -> float:  # processor time: other work on the machine does not count
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before = used()
    done = fresh(tmp_path, *arguments)
    assert used() - before < 5, "seconds: the libraries alone take longer"
    assert done.returncode == 2 and "error:" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--learning_rate", "1e-5"], "did you mean trainer.learning_rate?"),
        (["--num_generations=8"], "here it is grpo.group_size"),
        (["--multirn", "seed=1,2"], "did you mean --multirun?"),
    ],
)
def test_flags_and_their_typos_lead_to_settings(tmp_path, words, hint):
    done = processes.run(tmp_path, *words)
    assert done.returncode == 2 and f"{words[0]} is no flag: settings are key=value" in done.stderr
    assert hint in done.stderr and not list(tmp_path.rglob("summary.json"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["hydra/launcher=submitit_slurm"], "is about a sweep\n  → add --multirun"),
        (["hydra/sweeper=optuna"], "is about a sweep\n  → add --multirun"),
        (["--multirun", "seed=0,1", "resume=auto"], "resume=auto is of one run"),
        (["--config-name", "mine"], "--config-name and --config-path are not supported"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true is not supported"),
    ],
)
def test_what_hydra_would_take_and_pass_over_is_refused(tmp_path, words, says, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert says in refused(words, monkeypatch, capsys) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=avqa_r1_6k", "dataset.path=nowhere"], "dataset folder not found: nowhere"),
        (["checkpoint=nowhere/step-3/x"], "no such folder"),
        (["model.path=no_model"], "cannot load a model from no_model"),
    ],
)
def test_bad_input_is_one_clear_error(place, arguments, message):
    done = echoink(place, *SMALL, "name=bad", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    newest = sorted((place / "outputs/bad").iterdir())[-1]
    summary = json.loads((newest / "summary.json").read_text())
    assert summary["status"] == "failed" and message in summary["error"]
    assert not [run for run in mlflow_runs(place) if run.data.tags["folder"] == str(newest)]


def test_a_folder_made_with_other_settings_is_not_taken_for_this_one(first, place, tmp_path):
    data = place / "outputs/data/synthetic_seed0_16_3_6"
    with pytest.raises(UserError, match="was made as"):
        run(config_of(*SMALL, f"dataset.path={data}", "dataset.seed=5"), tmp_path / "run")


def test_too_few_samples_are_found_before_the_model_is_loaded(tmp_path, capsys):
    with pytest.raises(UserError, match="3 training samples are fewer"):
        run(config_of(*SMALL, f"dataset.path={tmp_path / 'set'}", "dataset.train=3"), tmp_path / "run")
    assert "\nmodel " not in capsys.readouterr().out


def test_what_the_surroundings_ask_for_and_do_not_get_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    words = ["dataset=rows", "dataset.path=nowhere", "grpo.loss=dr_grpo"]
    with pytest.raises(UserError, match="nowhere"):
        run(config_of(*words, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"), tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "8 processes were started, and each is a run of its own" in said
    assert f"sqlite:///{tmp_path}/mlflow.db; for the store of MLFLOW_TRACKING_URI: tracking.uri=" in said
    assert "loss dr_grpo, scale group" in said and "Dr. GRPO divides advantages by nothing: grpo.scale=none" in said


def test_the_development_split_is_for_choosing(place):
    done = echoink(place, *SMALL, "name=dev", "task=eval", "eval.split=dev")
    assert done.returncode == 0, done.stderr
    (folder,) = (place / "outputs/dev").iterdir()
    assert json.loads((folder / "summary.json").read_text())["base"]["n"] == 3


def test_an_exception_is_in_the_log(place):
    code = "from echoink.models import loading; loading.describe = None; from echoink.train import main; main()"
    done = processes.run(place, *SMALL, "name=broken", code=code)
    assert done.returncode == 1
    (folder,) = (place / "outputs/broken").iterdir()
    (log,) = folder.glob("*.log")
    assert "TypeError" in log.read_text()
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"


def test_two_processes_evaluate_what_one_does_in_one_folder(first, place):
    _, folder = first
    words = [*SMALL, "task=eval", f"checkpoint={folder}", "name=two", "eval.batch_prompts=2", "tracking=off"]
    done, other = (one.wait() for one in several.start(place, words))
    assert done.returncode == other.returncode == 0, done.stderr
    (two,) = (place / "outputs/two").iterdir()
    rows = [row for row in lines(folder / "predictions.jsonl") if row["phase"] == "final"]
    key = lambda row: (row["id"], row["draw"])  # noqa: E731
    assert sorted(lines(two / "predictions.jsonl"), key=key) == sorted(rows, key=key)
    trained, evaluated = (json.loads((path / "summary.json").read_text()) for path in (folder, two))
    assert evaluated["final"] == trained["final"] and evaluated["status"] == "finished"
    assert evaluated["base"] is None and evaluated["paired"] is None and not (two / "metrics.jsonl").exists()
    assert done.stdout.count("final     accuracy") == 1 and not other.stdout, "one process speaks"


def test_help_and_cfg(place):
    done = echoink(place, "--help")
    assert done.returncode == 0 and "reward.lambda_fmt" in done.stdout and "python -m echoink.train" in done.stdout
    done = echoink(place, "seed=3", "--cfg", "job", "experiment=quickstart")
    assert done.returncode == 0 and "group_size: 4" in done.stdout


def test_a_wheel_holds_all_that_the_package_needs_and_finds_it(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    for name, places in {"echoink": "site/echoink", "conf": "site/echoink/conf"}.items():
        there = [path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*") if path.is_file()]
        shipped = [path for path in there if "__pycache__" not in path.parts]
        assert len(shipped) > 10 and all((tmp_path / places / path).is_file() for path in shipped)
    done = fresh(tmp_path, "experiment=quickstart", "--info", "searchpath", PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0 and str(tmp_path / "site/echoink/conf") in done.stdout, done.stderr


@pytest.mark.slow  # test_evaluator.py cuts the file at several lines, test_resume.py stops a base evaluation
def test_an_evaluation_that_is_killed_goes_on_where_it_was(place):
    """kill -9 in the middle; the same command in the same folder ends as if nothing had been."""
    folder = place / "outputs/interrupted"
    words = [*SMALL, "task=eval", "tracking=off", "eval.batch_prompts=1", f"hydra.run.dir={folder}"]
    file = folder / "predictions.jsonl"
    started = processes.start(place, *words)
    until(lambda: file.is_file() and file.read_bytes().count(b"\n") >= 3, started)
    started.kill()
    started.wait()
    stood = file.read_bytes()
    with open(file, "ab") as torn:
        torn.write(b'{"phase": "ba')
    done = echoink(place, *words)
    assert done.returncode == 0, done.stderr
    whole_rounds = b"".join(line + b"\n" for line in stood.split(b"\n")[: stood.count(b"\n") // 2 * 2])
    assert file.read_bytes().startswith(whole_rounds) and "samples were already answered" in done.stdout
    rows = lines(file)
    assert len(rows) == len({(row["id"], row["draw"]) for row in rows}) == 2 * 6  # greedy and sampled
    again = echoink(place, *words[:-1], "name=whole")
    assert again.returncode == 0, again.stderr
    (whole,) = (place / "outputs/whole").iterdir()
    key = lambda row: (row["id"], row["draw"])  # noqa: E731
    assert sorted(rows, key=key) == sorted(lines(whole / "predictions.jsonl"), key=key)
    summaries = [json.loads((path / "summary.json").read_text())["base"] for path in (folder, whole)]
    assert summaries[0] == summaries[1]
    other = echoink(place, *words, "seed=1")
    assert other.returncode == 2 and "holds another run; here seed=1 (was 0)" in other.stderr


def test_base_and_checkpoint_are_compared_under_a_public_protocol(first, place):
    _, folder = first
    done = echoink(place, *SMALL, "task=compare", f"checkpoint={folder}", "eval.protocol=release", "name=release")
    assert done.returncode == 0, done.stderr
    (release,) = (place / "outputs/release").iterdir()
    rows = lines(release / "predictions.jsonl")
    assert {(row["phase"], row["thinks"], row["draw"]) for row in rows} == {
        ("base", False, "sampled"),
        ("final", True, "sampled"),
    }
    summary = json.loads((release / "summary.json").read_text())
    assert summary["paired"]["test"] == "McNemar" and summary["final"]["n"] == 6
    refused = echoink(place, *SMALL, "task=compare", "name=alone")
    assert refused.returncode == 2 and "task=compare needs checkpoint=" in refused.stderr


def test_a_training_folder_is_not_written_over(first, place):
    _, folder = first
    done = echoink(place, *SMALL, f"hydra.run.dir={folder}")
    assert done.returncode == 2 and "holds a run already" in done.stderr


def test_a_prompt_over_its_cap_is_found_before_training(place):
    done = echoink(place, *SMALL, "model.max_prompt_tokens=60", "eval.base=false", "name=long", "tracking=off")
    assert done.returncode == 2 and "tokens, the cap is 60" in done.stderr
    (folder,) = (place / "outputs/long").iterdir()
    assert not (folder / "predictions.jsonl").exists()


def test_open_serves_the_page_of_a_run_wherever_it_is_asked_from(first, place, tmp_path):
    from urllib.request import urlopen

    _, folder = first
    started = processes.start(tmp_path, str(folder), "browser=false", module="echoink.open")
    try:
        until(lambda: "Ctrl-C ends it" in started.text()[0], started)
        said = started.text()[0]
        address = next(word for word in said.split() if word.startswith("http://127.0.0.1:"))
        (run,) = [run for run in mlflow_runs(place) if run.data.tags["folder"] == str(folder)]
        assert address.endswith(f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
        assert str(folder / "report.html") in said
        with urlopen(address.partition("#")[0]) as answer:
            assert answer.status == 200 and b"MLflow" in answer.read()
        started.send(signal.SIGHUP)  # its terminal is closed; Ctrl-C and a kill are handled alike
        done = started.wait(120)
        assert done.returncode == 0 and "ended" in done.stdout and "Traceback" not in done.stderr
    finally:
        started.kill()
    assert not list((tmp_path).iterdir()), "nothing is made where it is asked from"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no folder of a run or a sweep"),
        (["."], "was not logged to MLflow"),
        ([".", "prot=5000"], "did you mean port=?"),
        (["a", "b"], "give one folder"),
        ([], "no such folder: outputs"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_error(tmp_path, monkeypatch, words, message):
    from echoink import open as opening

    (tmp_path / "summary.json").write_text('{"status": "finished"}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        opening.main(words)


def test_the_newest_run_is_a_job_only_where_there_is_a_sweep(tmp_path):
    from echoink import open as opening

    run = make_run(tmp_path / "7")
    assert opening.newest(tmp_path) == run
    (tmp_path / "sweep.json").write_text("{}")
    assert opening.newest(tmp_path) == tmp_path


def test_the_store_above_a_run_goes_before_that_of_the_current_folder(tmp_path, monkeypatch):
    from echoink import open as opening

    theirs, mine = (tmp_path / name / "outputs" for name in ("theirs", "mine"))
    run = make_run(theirs / "x")
    mine.mkdir(parents=True)
    monkeypatch.chdir(mine.parent)
    for outputs in (mine, theirs):
        (outputs / "mlflow.db").touch()
        assert opening.store_of(run) == f"sqlite:///{outputs}/mlflow.db"
    for outputs in (mine, theirs):
        (outputs / "mlflow.db").unlink()
    with pytest.raises(UserError, match=rf"sync {run} uri=sqlite:///{mine}/mlflow.db rebuilds it"):
        opening.store_of(run)


@pytest.mark.parametrize("port", [99_999, 70_000])
def test_a_port_that_is_none_is_refused(port):
    from echoink import open as opening

    with pytest.raises(UserError, match=f"port={port} cannot be used"):
        opening.serve("sqlite:///x", port)


def test_a_server_that_is_interrupted_while_it_starts_does_not_stay(tmp_path, monkeypatch):
    from echoink import open as opening

    started = []

    def interrupted(server, address):
        started.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "_wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opening.serve(f"sqlite:///{tmp_path}/mlflow.db", 0)
    assert started[0].poll() is not None
