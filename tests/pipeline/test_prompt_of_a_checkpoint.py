"""A checkpoint that was trained with another prompt than the one it is asked with."""

from echoink import predict
from echoink.common.files import as_lines
from echoink.data.splits import read_split
from echoink.pipeline.run import other_data, other_hold_out, other_model, other_prompt
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
    said = other_prompt(config_of(f"checkpoint={step}", "task=eval", "prompt=cued", "prompt.options='{options}'"))
    assert "options" in said and "template" not in said


def test_another_way_to_see_and_to_compute_is_named(tmp_path):
    run = make_run(tmp_path / "run", ["model.max_pixels=50176", "adapter=qlora", "trainer.bf16=true"])
    (run / "checkpoints/step-2").mkdir(parents=True)
    asks = [f"checkpoint={run}", "task=eval"]
    said = other_model(config_of(*asks))
    assert "model.max_pixels=50176" in said and "adapter=qlora" in said and "trainer.bf16=True" in said
    same = [*asks, "model.max_pixels=50176", "adapter=qlora", "trainer.bf16=true"]
    assert other_model(config_of(*same)) is None
    assert "reward.match=lenient" in other_model(config_of(*same, "reward.match=exact"))
    assert "generation.temperature=1.0" in other_model(config_of(*same, "generation.temperature=0.5"))
    assert other_model(config_of(f"checkpoint={run}")) is None, "training goes its own way"


def test_the_default_data_are_not_taken_for_those_of_the_run(tmp_path):
    run = make_run(tmp_path / "run", ["dataset=rows", "dataset.path=mine"])
    (run / "checkpoints/step-2").mkdir(parents=True)
    asks = [f"checkpoint={run}", "task=eval"]
    said = other_data(config_of(*asks))
    assert "was trained on dataset.path=mine" in said and "synthetic_seed0" in said
    for named in (["dataset=rows", "dataset.path=mine"], ["dataset=rows", "dataset.path=a_benchmark"]):
        assert other_data(config_of(*asks, *named)) is None
    assert other_data(config_of(f"checkpoint={run}")) is None, "training goes its own way"


def test_a_folder_that_is_no_run_says_nothing_of_a_model_below_it(tmp_path):
    """Another program's config.yaml, or the one of the folder in which somebody works."""
    (tmp_path / "config.yaml").write_text("prompt: a text\n")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "weights/m").mkdir(parents=True)
    asks = config_of(f"checkpoint={tmp_path}/weights/m", "task=eval")
    assert other_prompt(asks) is None and other_model(asks) is None
    assert predict.configuration(
        predict.parser().parse_args(["--question", "What?", "--checkpoint", f"{tmp_path}/weights/m"])
    ) == config_of(f"generation.max_new_tokens={predict.LONGEST}")


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
    (run / "checkpoints/step-2").mkdir(parents=True)
    asks = [f"checkpoint={run}/checkpoints/step-2", "task=eval", "eval.split=dev"]
    assert other_hold_out(config_of(*words, *asks)) is None
    assert "trained with dataset.dev=4: " in other_hold_out(config_of(*words, *asks, "dataset.dev=6"))
    training = [asks[0], "task=train", "dataset.dev=6"]
    assert other_hold_out(config_of(*words, *training)) is None
    chooses = other_hold_out(config_of(*words, *training, "eval.every=2"))
    assert "trained with dataset.dev=4: " in chooses, "its best checkpoint is chosen on what the first stage learned"
    (place / "dev.jsonl").write_text(as_lines(lines[:3]))
    assert other_hold_out(config_of(*words, *asks, "dataset.dev=6")) is None, "it has a split of its own"
