"""The terms of the total reward: a new one is three edits and is seen everywhere; several files of one's own."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

from echoink.common.errors import UserError
from echoink.config.compose import compose
from echoink.config.schema import to_yaml
from echoink.rewards import terms
from echoink.rewards.types import ROW_FIELDS
from tests.helpers import processes
from tests.helpers.entry import SMALL, lines
from tests.helpers.paths import ROOT

BREVITY = """
def reward(completion, sample):
    return 1.0 if len(completion.split()) < 100 else 0.0
"""


@pytest.fixture(scope="module")
def with_brevity(tmp_path_factory):
    """A copy of the package with one more reward: its file, a field of the schema, a line of YAML."""
    copy = tmp_path_factory.mktemp("package")
    for folder in ("echoink", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "echoink/rewards/brevity.py").write_text(BREVITY)
    for file, line, added in (
        ("echoink/config/schema.py", "    lambda_int: float", '    lambda_brevity: float = key("of short texts")\n'),
        ("conf/reward/accuracy_format.yaml", "lambda_int: 0", "lambda_brevity: 0\n"),
    ):
        text = (copy / file).read_text()
        assert text.count(line) == 1
        (copy / file).write_text(text.replace(line, added + line))
    return copy


def test_a_first_class_reward_is_three_edits_and_is_seen_everywhere(with_brevity, tmp_path):
    run = tmp_path / "run"
    words = [*SMALL, "reward.lambda_brevity=0.5", "trainer.completions_every=1", f"hydra.run.dir={run}"]

    def command(module: str, *words: str):
        # The fork server has imported some of the package as it is here.
        own = f"""
import runpy, sys
from omegaconf import OmegaConf
OmegaConf.clear_resolver("conf")
for name in [name for name in sys.modules if name.partition(".")[0] == "echoink"]:
    del sys.modules[name]
sys.path.insert(0, {str(with_brevity)!r})
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
        return processes.run(tmp_path, *words, code=own, PYTHONPATH=str(with_brevity))

    done = command("echoink.train", *words)
    assert done.returncode == 0, done.stderr
    assert "λ_brevity 0.5" in done.stdout and "reward brevity" in done.stdout
    first = lines(run / "metrics.jsonl")[0]
    parts = first["reward/accuracy"] + first["reward/format"] + 0.5 * first["reward/brevity"]
    assert first["reward/brevity"] > 0 and first["reward/total"] == pytest.approx(parts)
    assert "brevity" in lines(next((run / "completions").iterdir()))[0]
    assert json.loads((run / "summary.json").read_text())["final"]["rewards"]["brevity"] > 0
    assert "brevity" in lines(run / "predictions.jsonl")[0]["rewards"]
    assert '"brevity"' in (run / "traces.jsonl").read_text()
    assert "brevity" in (run / "report.md").read_text() and ">brevity<" in (run / "report.html").read_text()
    done = command("echoink.export", f"checkpoint={run}", "output=out")
    assert done.returncode == 0, done.stderr
    assert "λ_brevity = 0.5" in (tmp_path / "out/README.md").read_text()


def test_several_files_each_have_a_name_and_a_weight_and_a_negative_one_punishes(tmp_path):
    for name, value in (("one", 1.0), ("two", 0.5)):
        (tmp_path / f"{name}.py").write_text(f"def reward(completion, sample):\n    return {value}\n")
    run = tmp_path / "run"
    files = "reward.files=[{path: one.py, weight: 0.25}, {path: two.py, weight: -1, name: penalty}]"
    short = ["eval.base=false", "eval.greedy=false", "eval.limit=2"]
    done = processes.run(tmp_path, *SMALL, *short, files, "tracking=off", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert "one 0.25, penalty -1" in done.stdout
    (row, *_) = lines(run / "completions/step-1.jsonl")
    assert set(row) - {"accuracy", "format", "one", "penalty"} == set(ROW_FIELDS)
    first = lines(run / "metrics.jsonl")[0]
    assert (first["reward/one"], first["reward/penalty"]) == (1.0, 0.5)
    parts = first["reward/accuracy"] + first["reward/format"] + 0.25 - 0.5
    assert first["reward/total"] == pytest.approx(parts)
    assert json.loads((run / "summary.json").read_text())["final"]["rewards"] == {"one": 1.0, "penalty": 0.5}
    assert (run / "rewards/penalty.py").read_text() == (tmp_path / "two.py").read_text()


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ("[{path: gone.py}]", r"reward\.files\[0\]\.path=gone\.py: no such file"),
        ("[{path: one.py}, {path: one.py}]", r"reward\.files\[1\]: the name one is taken"),
        ("[{path: one.py, name: format}]", r"the name format is taken"),
        ("[{path: one.py, name: tokens}]", r"the name tokens is taken"),
        ("[{path: one.py, name: a/b}]", r"the name a/b is not valid"),
        ("[{file: one.py}]", "reward.files: unknown key file(.|\n)*known: path, weight, name"),
    ],
)
def test_a_list_of_files_that_cannot_be_is_refused(files, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.py").write_text("def reward(completion, sample):\n    return 1.0\n")
    with pytest.raises(UserError, match=problem):
        compose([f"reward.files={files}"])


def test_the_terms_of_a_run_are_listed_from_its_file_too_also_from_one_that_had_fewer_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.py").write_text("def reward(completion, sample):\n    return 1.0\n")
    (made,) = compose(["reward=integration", "reward.lambda_int=0.3", "reward.files=[{path: one.py, weight: -1}]"])
    expected = [("λ_acc", 1), ("λ_fmt", 1), ("λ_int (counterfactual)", 0.3), ("one", -1)]
    written = OmegaConf.create(to_yaml(made.config)).reward
    assert terms.listed(made.config.reward) == terms.listed(written) == expected
    assert terms.listed(OmegaConf.create({"lambda_acc": 1, "lambda_fmt": 0.5})) == [("λ_acc", 1), ("λ_fmt", 0.5)]
