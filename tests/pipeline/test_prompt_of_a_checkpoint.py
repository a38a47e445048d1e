"""A checkpoint that was trained with another prompt than the one it is asked with."""

from echoink.common.files import as_lines
from echoink.data.splits import read_split
from echoink.pipeline.run import other_hold_out, other_prompt
from tests.helpers.configs import config_of
from tests.helpers.runs import make_run


def test_another_prompt_is_named_and_the_same_is_not(tmp_path):
    run = make_run(tmp_path / "run", ["prompt=cued"])
    step = run / "checkpoints/step-2"
    step.mkdir(parents=True)
    said = other_prompt(config_of(f"checkpoint={step}", "task=eval"))
    assert str(run) in said and "was trained with another prompt" in said and "prompt=<its file>" in said
    assert other_prompt(config_of(f"checkpoint={step}", "task=eval", "prompt=cued")) is None
    assert other_prompt(config_of(f"checkpoint={tmp_path}/a/model", "task=eval")) is None


def test_a_development_split_that_the_checkpoint_may_have_learned_is_named(tmp_path, dataset):
    """It is held out of train by dataset.dev and dataset.seed: with others it is another one."""
    rows = read_split(dataset, "train")
    place = tmp_path / "rows"
    place.mkdir()
    lines = [{"id": s.id, "question": s.problem, "options": s.options, "answer": s.solution} for s in rows]
    for split in ("train", "valid"):
        (place / f"{split}.jsonl").write_text(as_lines(lines))
    words = ["dataset=rows", f"dataset.path={place}", "dataset.dev=4"]
    run = make_run(tmp_path / "run", words)
    asks = [f"checkpoint={run}/checkpoints/step-2", "task=eval", "eval.split=dev"]
    assert other_hold_out(config_of(*words, *asks)) is None
    assert "trained with dataset.dev=4: " in other_hold_out(config_of(*words, *asks, "dataset.dev=6"))
    (place / "dev.jsonl").write_text(as_lines(lines[:3]))
    assert other_hold_out(config_of(*words, *asks, "dataset.dev=6")) is None, "it has a split of its own"
