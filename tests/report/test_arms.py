"""Arms of an ablation, and differences paired by seed."""

import json

import pytest

from echoink.common.errors import UserError
from echoink.pipeline.sweep_job import shared
from echoink.report import arms as report_arms
from echoink.report.build import write
from echoink.run_folder import reader, reward_files
from echoink.run_folder.folder import RunFolder, read_summary
from tests.helpers.configs import config_of
from tests.helpers.runs import make_run

ACCURACY = {(0, 0): 0.70, (0, 1): 0.74, (0.04, 0): 0.60, (0.04, 1): 0.66, (0.001, 0): 0.71, (0.001, 1): 0.75}


@pytest.fixture
def sweep(tmp_path):
    for number, ((beta, seed), accuracy) in enumerate(ACCURACY.items()):
        make_run(tmp_path / str(number), [f"grpo.beta={beta}", f"seed={seed}"], accuracy)
    return tmp_path


def test_runs_are_found_in_the_order_of_a_sweep(sweep):
    for number in range(6, 11):
        make_run(sweep / str(number), [f"seed={number}"])
    make_run(sweep / "unfinished/3-1", ["seed=99"], status="killed")
    found = reader.find([sweep])
    assert [run.folder.name for run in found] == [str(n) for n in range(11)]
    assert reader.find([sweep, sweep / "3"]) == found, "each once"
    assert [path.name for path in reader.jobs(sweep)] == [str(n) for n in range(11)]


def test_arms_differ_in_more_than_the_seed(sweep):
    arms = report_arms.arms(reader.find([sweep]))
    assert [arm.label for arm in arms] == ["β 0", "β 0.04", "β 0.001"]
    assert arms[0].of_seed("accuracy") == {0: 0.70, 1: 0.74}
    reference = report_arms.reference(arms)
    assert reference.label == "β 0.001", "the default"


def test_differences_are_paired_by_seed_and_adjusted(sweep):
    arms = report_arms.arms(reader.find([sweep]))
    zero, four = report_arms.differences(arms, arms[2])
    assert zero.seeds.values == pytest.approx((-0.01, -0.01)) and four.seeds.values == pytest.approx((-0.11, -0.09))
    assert four.seeds.p_value == pytest.approx(0.0635, abs=1e-3) and four.adjusted_p == pytest.approx(
        four.seeds.p_value
    )
    assert zero.adjusted_p is None, "equal differences say nothing of their spread"


def test_a_run_that_did_not_finish_counts_in_no_mean(sweep):
    file = sweep / "1/summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "failed", "final": None}))
    arms = report_arms.arms(reader.find([sweep]))
    assert arms[0].of_seed("accuracy") == {0: 0.70}
    zero, _ = report_arms.differences(arms, arms[2])
    assert zero.seeds is None and zero.adjusted_p is None, "one shared seed says nothing"
    make_run(sweep / "6", ["grpo.beta=0", "seed=1"], 0.9)
    assert report_arms.arms(reader.find([sweep]))[0].of_seed("accuracy") == {0: 0.70, 1: 0.9}, "it was run again"


def test_a_key_that_an_older_run_does_not_know_had_its_default(tmp_path):
    """An old run of the default, one that says so, and another method of the same seed: two arms."""
    for number, overrides in enumerate([[], ["seed=1"], ["grpo.advantage=rejection"]]):
        make_run(tmp_path / str(number), overrides, 0.8 - number / 10)
    file = tmp_path / "0/config.yaml"
    file.write_text(file.read_text().replace("  advantage: group\n", ""))
    arms = report_arms.arms(reader.find([tmp_path]))
    assert [arm.label for arm in arms] == ["advantage group", "advantage rejection"]
    assert arms[0].of_seed("accuracy") == pytest.approx({0: 0.8, 1: 0.7})


def test_equal_differences_are_no_certainty(tmp_path):
    for number, (beta, seed) in enumerate([(0.001, 0), (0.001, 1), (0, 0), (0, 1)]):
        make_run(tmp_path / str(number), [f"grpo.beta={beta}", f"seed={seed}"], 0.8 + (beta == 0) * 0.05)
    arms = report_arms.arms(reader.find([tmp_path]))
    (found,) = report_arms.differences(arms, arms[0])
    assert found.seeds.mean == pytest.approx(0.05) and found.seeds.interval is None and found.adjusted_p is None


def test_what_a_run_keeps_and_how_it_is_started_makes_no_arm(tmp_path):
    words = ["trainer.save_every=20", "trainer.keep_checkpoints=9", "dataset.workers=0", "generation.vllm.sleep=false"]
    make_run(tmp_path / "0", ["seed=0", *words])
    make_run(tmp_path / "1", ["seed=1"])
    (arm,) = report_arms.arms(reader.find([tmp_path]))
    assert [run.seed for run in arm.runs] == [0, 1]


def test_a_run_whose_settings_changed_between_steps_is_no_seed_of_an_arm_and_is_not_shared(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), [f"seed={seed}"])
    with RunFolder(tmp_path / "0", "train", "x", 0) as files:
        files.summary = read_summary(files.path)
        files.changed(["trainer.learning_rate"])
    first, second = report_arms.arms(reader.find([tmp_path]))
    assert (first.label, second.label) == ("changed between steps: trainer.learning_rate", "changed between steps: –")
    with RunFolder(tmp_path / "0", "train", "x", 0) as files:
        files.changed(["reward.file"])
        assert files.summary["changed"] == ["reward.file", "trainer.learning_rate"], "it is kept"
    assert shared(config_of("seed=0"), tmp_path, tmp_path / "new") is None
    assert shared(config_of("seed=1"), tmp_path, tmp_path / "new").folder == tmp_path / "1"


def test_labels_are_short(tmp_path):
    for number, reward in enumerate(("accuracy_format", "random")):
        make_run(tmp_path / str(number), [f"reward={reward}"])
    labels = [arm.label for arm in report_arms.arms(reader.find([tmp_path]))]
    assert labels == ["λ_acc 1 · λ_fmt 1 · reward –", "λ_acc 0 · λ_fmt 0 · reward random_reward"]


def test_runs_of_two_versions_of_a_reward_file_are_two_arms(tmp_path):
    for number, text in enumerate(["return 1.0", "return 0.5", "return 1.0"]):
        mine = tmp_path / "mine.py"
        mine.write_text(f"def reward(completion, sample): {text}\n")
        words = [f"reward.file={mine}", f"seed={number}"]
        reward_files.keep(config_of(*words).reward, make_run(tmp_path / str(number), words))
    first, second = report_arms.arms(runs := reader.find([tmp_path]))
    assert [run.seed for run in first.runs] == [0, 2] and [run.seed for run in second.runs] == [1]
    assert first.label == f"reward file {runs[0].contents['rewards/']}" != second.label
    assert len(report_arms.arms(reader.find([tmp_path / "0", tmp_path / "2"]))) == 1


def test_runs_of_two_states_of_the_data_behind_one_path_are_two_arms(tmp_path):
    for number, digest in enumerate(["one", "two", "one"]):
        file = make_run(tmp_path / str(number), [f"seed={number}"]) / "tracking.json"
        inputs = [{"context": "train", "digest": digest}, {"context": "valid", "digest": "same"}]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"inputs": inputs}))
    first, second = report_arms.arms(reader.find([tmp_path]))
    assert [run.seed for run in first.runs] == [0, 2] and [run.seed for run in second.runs] == [1]
    assert second.label == "data train two valid same"
    other = [make_run(tmp_path / "other", ["dataset.train=5"]), tmp_path / "0"]
    assert not [arm.label for arm in report_arms.arms(reader.find(other)) if "data one" in arm.label], "they say so"


def test_arms_that_answered_other_questions_are_not_compared(tmp_path):
    for number, (path, seed, accuracy, digest) in enumerate(
        [("easy", 0, 0.9, "v1"), ("easy", 1, 0.91, "v1"), ("hard", 0, 0.5, "v2"), ("hard", 1, 0.52, "v2")]
    ):
        run = make_run(tmp_path / str(number), [f"dataset.path=data/{path}", f"seed={seed}"], accuracy)
        record = json.loads((run / "tracking.json").read_text()) | {"inputs": [{"context": "valid", "digest": digest}]}
        (run / "tracking.json").write_text(json.dumps(record))
    arms = report_arms.arms(reader.find([tmp_path]))
    (found,) = report_arms.differences(arms, arms[0])
    assert found.seeds is None and not found.same_questions
    text = write([tmp_path], tmp_path)[1].read_text()
    assert "other questions were evaluated than with" in text and "points better" not in text
    for number in ("2", "3"):
        record = json.loads((tmp_path / number / "tracking.json").read_text())
        record["inputs"][0]["digest"] = "v1"
        (tmp_path / number / "tracking.json").write_text(json.dumps(record))
    (found,) = report_arms.differences(arms := report_arms.arms(reader.find([tmp_path])), arms[0])
    assert found.seeds.mean < 0, "only their path differs"


def test_how_work_is_divided_makes_no_arm(tmp_path):
    make_run(tmp_path / "0", ["seed=0", "eval.batch_prompts=16", "trainer.gradient_checkpointing=true"])
    make_run(tmp_path / "1", ["seed=1", "trainer.micro_batch_prompts=1"])
    (arm,) = report_arms.arms(reader.find([tmp_path]))
    assert [run.seed for run in arm.runs] == [0, 1]
    for number, batch in enumerate((1, 2, 4)):
        make_run(tmp_path / f"swept/{number}", ["seed=0", f"trainer.micro_batch_prompts={batch}"], 0.7 + number / 10)
    swept = report_arms.arms(reader.find([tmp_path / "swept"]))
    assert [arm.label for arm in swept] == [f"trainer.micro_batch_prompts {batch}" for batch in (1, 2, 4)]
    make_run(tmp_path / "2", ["seed=2", "grpo.loss=bnpo"])
    make_run(tmp_path / "3", ["seed=3", "grpo.loss=bnpo", "trainer.micro_batch_prompts=1"])
    assert len(report_arms.arms(reader.find([tmp_path / "2", tmp_path / "3"]))) == 2, "BNPO depends on it"


def test_a_damaged_run_is_passed_over_by_name(tmp_path, capsys):
    for name in ("whole", "empty", "torn", "no method"):
        make_run(tmp_path / name)
    (tmp_path / "empty/summary.json").write_text("")
    (tmp_path / "torn/summary.json").write_text('{"status": "fini')
    (tmp_path / "no method/config.yaml").write_text("")
    assert [run.folder.name for run in reader.find([tmp_path])] == ["whole"]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("is passed over: its summary.json or config.yaml is empty or damaged") == 3
    with pytest.raises(UserError, match="holds no run"):
        reader.find([tmp_path / "torn"])


def test_an_earlier_run_of_the_same_settings_and_seed_is_named(tmp_path):
    for name, status in (("0", "finished"), ("1", "finished"), ("2", "failed")):
        make_run(tmp_path / name, ["seed=3"], status=status)
    (arm,) = report_arms.arms(reader.find([tmp_path]))
    assert [run.folder.name for run in arm.runs] == ["1"] and [run.folder.name for run in arm.repeated] == ["0"]
    newer = json.loads((tmp_path / "0/summary.json").read_text()) | {"started": 2000}
    (tmp_path / "0/summary.json").write_text(json.dumps(newer))
    (arm,) = report_arms.arms(reader.find([tmp_path]))
    assert [run.folder.name for run in arm.runs] == ["0"], "whatever the folders are called"
    (tmp_path / "0/summary.json").write_text(json.dumps(newer | {"started": 1000}))
    write([tmp_path], tmp_path)
    for page in ("report.md", "report.html"):
        text = (tmp_path / page).read_text()
        assert "a later run has the same settings and the same seed" in text and f"{tmp_path}/0" in text.replace(
            "\\", ""
        )


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        reader.find([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        reader.find([tmp_path / "nowhere"])
