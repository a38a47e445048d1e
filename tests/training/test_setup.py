import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from echoink.data.samples import DataType, Sample
from echoink.data.splits import Splits
from echoink.models.loading import load_model, load_processor, lora
from echoink.models.rounding import bf16_slowdown
from echoink.planning import memory
from echoink.training import setup
from tests.helpers.configs import config_of

BF16 = ["trainer.bf16=true"]


@pytest.mark.parametrize(
    ("words", "slower", "warned"),
    [(["trainer.bf16=true"], 4.2, True), (["trainer.bf16=true"], 0.4, False), (["trainer.bf16=false"], 4.2, False)],
)
def test_bfloat16_on_a_cpu_that_is_slow_with_it_is_warned_of(words, slower, warned, samples, monkeypatch, capsys):
    monkeypatch.setattr(setup, "bf16_slowdown", lambda: slower)
    setup.build_job(config_of(*words), Splits(samples, [], samples), "tiny")
    said = "this CPU multiplies bfloat16 about 4 times as slowly as float32; faster: trainer.bf16=false"
    assert (said in " ".join(capsys.readouterr().out.split())) == warned


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (["adapter=lora", "trainer.bf16=true"], True),
        (["adapter=lora", "trainer.bf16=false"], False),
        (["task=eval", "trainer.bf16=true"], False),
    ],
)
def test_an_adapter_that_is_merged_in_half_precision_to_learn_on_is_warned_of(
    words, warned, samples, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(setup, "bf16_slowdown", lambda: 1)
    get_peft_model(load_model("tiny"), lora(4, 8, 0.0, ["q_proj"])).save_pretrained(tmp_path)
    load_processor("tiny", 12_544, 12_544).save_pretrained(tmp_path)
    setup.build_job(config_of(*words), Splits(samples, [], samples), str(tmp_path))
    said = "which is merged before the next one learns: in bfloat16 this loses much of a small update"
    assert (said in " ".join(capsys.readouterr().out.split())) == warned


def test_a_gain_between_two_precisions_is_warned_of():
    """DeepSpeed rounds the weights when training begins, after the base was evaluated."""
    for words, warned in (
        (["trainer=zero2", "trainer.bf16=true"], True),
        (["trainer=zero2", "trainer.bf16=true", "eval.base=false"], False),
        (["trainer=zero2", "trainer.bf16=false"], False),
        (["trainer=zero2", "trainer.bf16=true", "model.dtype=bfloat16"], False),
        (["trainer=zero2", "trainer.bf16=true", "adapter=lora"], False),
        (["trainer=fsdp2", "trainer.bf16=true"], False),
    ):
        assert bool(setup.precision_note(config_of(*words, "trainer.processes=2"))) == warned, words


def test_the_slowdown_is_a_ratio_of_times():
    assert 0 < bf16_slowdown() < math.inf


@pytest.mark.parametrize(
    ("words", "copies"),
    [
        ([], 0),
        (BF16, 1),
        ([*BF16, "adapter=lora"], 0),
        ([*BF16, "trainer.sharding=fsdp2"], 0),
    ],
)
def test_an_evaluation_leaves_room_for_the_decoder_of_training_and_its_cache(model, monkeypatch, words, copies):
    asked = {}
    of = replace(memory.model_of(model), joins_keys=False)
    job = SimpleNamespace(config=config_of(*words), model=SimpleNamespace(device=torch.device("cuda"), parameters=list))
    monkeypatch.setattr(memory, "model_of", lambda _: of)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 2**35))

    def fitting(_, beside, draws, **room):
        asked.update(beside=beside, draws=draws)
        return 7

    monkeypatch.setattr(memory, "prompts_that_fit", fitting)
    assert setup.evaluation_batch_prompts(job, longest=300) == 7
    needs = memory.of_run(job.config, of, 0, longest=300)
    beside = needs.weights + needs.reference + needs.optimizer + needs.cache + 2 * copies * of.dimensions.linear
    if "adapter=lora" in words:
        beside = max(beside, of.weight_bytes + 2 * of.parameters)
    assert needs.cache > 0 and asked["beside"] == beside
    assert asked["draws"] == 2, "a sampled and a greedy answer"
    job.config = config_of(*words, "eval.dev_samples=5")
    setup.evaluation_batch_prompts(job, longest=300)
    assert asked["draws"] == 5


@pytest.mark.parametrize(("trainer", "among"), [("fsdp2", 8), ("zero3", 64), ("none", 64)])
def test_fsdp2_divides_a_model_within_a_machine_and_zero3_among_all(monkeypatch, trainer, among):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    config = config_of("experiment=echoink_r1_7b", "dataset.path=x", f"trainer.sharding={trainer}")
    assert setup.divided_among(replace(config.trainer, processes=64)) == among


def test_prompts_that_will_have_another_samples_media_are_counted_before_anything_is_computed(capsys):
    """A long question with a short sound, and a short one with a long sound."""
    text, seconds = {"a": 300, "b": 20}, {"a": 0.4, "b": 8.0}
    trained, evaluated = ([Sample(id, "Q?", ("A. x", "B. y"), "A", data_type=DataType.audio) for id in text],) * 2
    evaluated = [*evaluated]
    infos = {
        f"{split} {id}": SimpleNamespace(image=None, kept=seconds[id], frame=None)
        for split in ("train", "valid")
        for id in text
    }
    splits = SimpleNamespace(train=trained, dev=[], valid=evaluated, media_info=infos)
    processor = SimpleNamespace(text_tokens=lambda sample: text[sample.id], check_length=lambda sample, tokens: None)
    longest = lambda *words: setup.longest_prompt(  # noqa: E731
        SimpleNamespace(config=config_of(*words), splits=splits, processor=processor)
    )
    assert longest() == 299 + 10 and longest("eval.ablations=[no_audio,silent_audio,swapped_image]") == 299 + 10
    for words in (["eval.ablations=[swapped_audio]"], ["reward.lambda_int=0.3", "reward.integration=twin"]):
        assert longest(*words) == 299 + 200 and "warning" not in capsys.readouterr().out
        assert longest(*words, "model.max_prompt_tokens=450") == 450
        assert "may have 499 tokens, over model.max_prompt_tokens=450" in " ".join(capsys.readouterr().out.split())
