"""A checkpoint that was trained with another prompt than the one it is asked with."""

from echoink.pipeline.run import other_prompt
from tests.helpers.configs import config_of
from tests.helpers.runs import make_run


def test_another_prompt_is_named_and_the_same_is_not(tmp_path):
    run = make_run(tmp_path / "run", ["prompt=cued"])
    step = run / "checkpoints/step-2"
    step.mkdir(parents=True)
    said = other_prompt(step, config_of().prompt)
    assert str(run) in said and "was trained with another prompt" in said and "prompt=<its file>" in said
    assert other_prompt(step, config_of("prompt=cued").prompt) is None
    assert other_prompt(tmp_path / "a/model", config_of().prompt) is None
