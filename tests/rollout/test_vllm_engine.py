"""Rollouts by an engine: what it is given, what comes back, what the trainer makes of it, how it fails.

In most tests `stand_in_engine.py` is at the other end, which decodes with transformers. vLLM itself is asked where
ECHOINK_VLLM names an interpreter that has it:
`ECHOINK_VLLM=engine/bin/python pytest -m slow tests/rollout/test_vllm_engine.py`.
"""

import importlib.util
import json
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors import safe_open
from trl.trainer.utils import add_fused_lm_head

from echoink.common.errors import UserError, last_error
from echoink.config.paths import TINY
from echoink.config.schema import Correction, Variant
from echoink.data.ablations import without
from echoink.data.samples import DataType
from echoink.models import loading, qwen2_5_omni
from echoink.models.logprobs import packed_logprobs
from echoink.models.registry import family_of
from echoink.pipeline import canary
from echoink.rewards.terms import make_rewards
from echoink.rollout import parity, vllm_engine, vllm_environment, weight_transfer
from echoink.rollout.sampling import Sampling
from echoink.run_folder.folder import RunFolder
from echoink.tracking.client import Record
from echoink.tracking.logger import Tracker
from echoink.training import engine_metrics, grpo
from echoink.training.callbacks import Recorder
from echoink.training.host import Policy, Scoring
from echoink.training.trainer import EchoInkTrainer
from echoink.training.trl_config import arguments
from tests.helpers import files, processes, stand_in_engine
from tests.helpers.configs import config_of
from tests.helpers.entry import SMALL, lines
from tests.helpers.paths import ROOT
from tests.helpers.several import COMMAND as MAIN
from tests.helpers.several import DIES_AFTER_STEP_2, logged, start
from tests.helpers.tiny import tiny_model, tiny_reference
from tests.helpers.trainers import Catch

STAND_IN = ROOT / "tests/helpers/stand_in_engine.py"
G, LENGTH = 4, 24
VLLM = os.environ.get("ECHOINK_VLLM")


@pytest.fixture
def make_engine(tmp_path, monkeypatch):
    """An engine for a model; the stand-in where no interpreter is named."""
    started = []

    def make(model, processor, temperature=1.0, python=None, rows=64, near=True, bf16=False, rank=0):
        if python is None:
            monkeypatch.setattr(vllm_engine, "WORKER", STAND_IN)
            python = processes.interpreter()
            if near:
                monkeypatch.setattr(vllm_engine, "_start", lambda *_: (None, stand_in_engine.Near()))
        one = vllm_engine.Engine(
            model,
            processor.processor,
            vllm_engine.EngineSetup(
                python=python,
                sampling=Sampling(temperature, 0.95, 50, LENGTH, loading.end_ids(model, processor.processor)),
                rows=rows,
                longest=400,
                bf16=bf16,
                device=torch.device("cpu"),
                sleeps=True,
                adapter_rank=rank,
            ),
            log=tmp_path / "engine.log",
            weights=tmp_path / f"weights-{len(started)}.safetensors",
        )
        started.append(one)
        return one

    yield make
    for one in started:
        one.close()


@pytest.fixture
def of_all_kinds(samples, processor, tmp_path):
    """Prompts with picture and sound, a video, a video with its sound woven in, a sound alone, nothing."""
    shown = {"video": files.video(tmp_path / "clip.mp4"), "image": None, "data_type": DataType.video}
    asked = [
        samples[0],
        replace(samples[1], **shown, audio=None),
        replace(samples[2], **shown),
        without(samples[3], Variant.no_image),
        without(samples[4], Variant.text_only),
    ]
    prompts = [processor(sample) for sample in asked]
    assert [sorted(prompt.media) for prompt in prompts][2] == sorted(
        ["pixel_values_videos", "video_grid_thw", "input_features", "feature_attention_mask"]
    )
    return prompts


def apart(model, prompts, rows, logps, temperature=1.0) -> torch.Tensor:
    """Differences between an engine's log-probabilities and the model's, of all tokens."""
    add_fused_lm_head(model, temperature=temperature)
    ids = torch.zeros(len(rows), LENGTH, dtype=torch.long)
    scored, told = torch.zeros_like(ids, dtype=torch.bool), torch.zeros(ids.shape)
    for number, (row, own) in enumerate(zip(rows, logps, strict=True)):
        ids[number, : len(row)], scored[number, : len(row)] = torch.tensor(row), True
        told[number, : len(row)] = torch.tensor(own)
    prompt_index = [number // G for number in range(len(rows))]
    with torch.no_grad():
        found, _ = packed_logprobs(
            model.eval(), prompts, None, prompt_index=prompt_index, completion_ids=ids, scored=scored
        )
    return (found - told)[scored].abs()


def test_all_weights_have_their_published_names(model):
    with safe_open(TINY / "model.safetensors", "pt") as file:
        published = {f"thinker.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = dict(vllm_engine.published(model, everything=True))
    assert found.keys() == published.keys()
    assert all(torch.equal(found[name], published[name]) for name in found)


def test_of_a_model_with_frozen_towers_only_what_learns_is_sent_again():
    model = loading.load_model("tiny", freeze=("audio", "vision"))
    again = dict(vllm_engine.published(model, everything=False))
    assert again.keys() == {
        name
        for name, _ in vllm_engine.published(model, everything=True)
        if not name.startswith(("thinker.audio", "thinker.vis"))
    }


def test_an_adapter_is_sent_merged_with_the_projections_that_stand_beside_it(model):
    adapted = get_peft_model(model, loading.lora(4, 8, 0.0, ("q_proj", "up_proj")))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    thinker = adapted.get_base_model()
    everything, again = (dict(vllm_engine.published(thinker, whole)) for whole in (True, False))
    merged = dict(vllm_engine.published(adapted.merge_and_unload(), everything=True))
    assert everything.keys() == merged.keys()
    assert all(torch.allclose(everything[name], merged[name], atol=1e-6) for name in merged)
    beside = {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"}
    beside |= {"o_proj.weight", "gate_proj.weight", "up_proj.weight", "down_proj.weight"}
    assert {".".join(name.split(".")[-2:]) for name in again} == beside
    assert len(again) == len(beside) * 3  # layers
    assert all(torch.equal(again[name], everything[name]) for name in again)


def test_weights_in_4_bits_are_sent_as_what_they_stand_for(prompts):
    pytest.importorskip("bitsandbytes")
    quantized = loading.load_model("tiny", quantized="float32")
    quantized.requires_grad_(False)
    adapted = get_peft_model(quantized, loading.lora(4, 8, 0.0, ("q_proj", "up_proj")))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    whole = tiny_model()
    names = {vllm_engine.published_name(family_of(whole), name): name for name, _ in whole.named_parameters()}
    found = dict(vllm_engine.published(quantized, everything=True))
    assert not torch.equal(
        found["thinker.model.layers.0.self_attn.k_proj.weight"],
        dict(whole.named_parameters())["model.language_model.layers.0.self_attn.k_proj.weight"],
    )
    whole.load_state_dict({names[name]: weight for name, weight in found.items()})
    ids = prompts[0].input_ids[None, :5]
    with torch.no_grad():
        assert torch.allclose(whole(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits, atol=1e-4)


def test_it_is_given_all_media_with_their_places_and_positions(make_engine, model, processor, of_all_kinds):
    one = make_engine(model, processor, temperature=0.7)
    pushed = one.push(model)
    assert pushed.written == len(list(model.parameters())) and pushed.compared == pushed.parts > 10
    rows, logps = one.generate(of_all_kinds, [7, 8, 9, 10, 11], G)
    assert len(rows) == len(of_all_kinds) * G and max(map(len, rows)) <= LENGTH
    assert apart(model, of_all_kinds, rows, logps, 0.7).max() < 1e-4
    assert one.generate(of_all_kinds, [7, 8, 9, 10, 11], G)[0] == rows
    assert one.generate(of_all_kinds, [17, 18, 19, 20, 21], G)[0] != rows


@pytest.mark.parametrize("python", [None, *([VLLM] if VLLM else [])])
def test_weights_that_are_shared_pass_in_chunks_and_arrive(make_engine, model, processor, prompts, python, monkeypatch):
    """As handles to a GPU's memory do; here the values themselves."""
    monkeypatch.setattr(vllm_engine.EngineSetup, "shares_memory", True)
    monkeypatch.setattr(vllm_engine, "CHUNK", 300_000)
    one = make_engine(model, processor, near=False, python=python)
    assert one.push(model).written > 0
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.05)
    sent = []
    monkeypatch.setattr(one, "_send", lambda what, send=one._send: (sent.append(what), send(what))[1])
    pushed = one.push(model)
    assert len(sent) > 10 and sent[-1] == [], "chunks, and their end"
    assert 0 < pushed.compared <= pushed.parts
    rows, logps = one.generate(prompts[:2], [7, 8], G)
    assert apart(model, prompts[:2], rows, logps).max() < 1e-4
    monkeypatch.setattr(one, "_shares", False)  # by a file
    assert one.push(model).written > 0
    folder, process = one._folder, one._process
    assert not one._weights.exists(), "nothing of it is left"
    one.close()
    assert process.poll() == -signal.SIGKILL and not folder.exists()


def spread(model, size) -> None:
    """Give an adapter's B matrices values of one size and of random signs."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(size * torch.randn(weight.shape).sign())


def test_a_bfloat16_sum_loses_an_update_that_an_adapters_matrices_keep(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())  # as a published model is stored
    adapted = get_peft_model(model, loading.lora(4, 8, 0.0, ("q_proj", "up_proj")))
    spread(adapted, 1e-5)
    thinker = adapted.get_base_model()
    base = dict(vllm_engine.published(thinker, everything=True, merges=False))
    kept = lost = 0
    matrices = dict(vllm_engine.adapter_matrices(thinker))
    for name, merged in vllm_engine.published(thinker, everything=True):
        place = name.removesuffix(".weight")
        if f"{place}.lora_A" in matrices:
            update = merged - base[name]
            a, b = (matrices[f"{place}.{kind}"].bfloat16().float() for kind in ("lora_A", "lora_B"))
            assert (b @ a - update).norm() < 0.01 * update.norm()
            lost += ((merged.bfloat16() - base[name].bfloat16()) == 0).sum()
            kept += (update != 0).sum()
        else:
            assert torch.equal(merged, base[name])
    assert lost > 0.9 * kept > 0


@pytest.mark.parametrize("python", [None, *([VLLM] if VLLM else [])])
def test_in_bfloat16_an_adapter_is_sent_alone_and_arrives(make_engine, model, processor, prompts, python):
    adapted = get_peft_model(model, loading.lora(4, 8, 0.0, ("q_proj", "up_proj")))
    thinker, matrices = adapted.get_base_model(), 2 * 2 * 3  # A and B, two projections, three layers
    one = make_engine(model, processor, bf16=True, rank=4, python=python)
    spread(adapted, 0.0)
    first = one.push(thinker)
    assert first.parts > matrices and first.compared == first.parts
    for size in (0.5, 1.0):  # the second adapter takes the place of the first
        rows, logps = one.generate(prompts[:4], [1, 2, 3, 4], G)
        assert apart(thinker, prompts[:4], rows, logps).mean() < 0.05  # bfloat16
        spread(adapted, size)
        assert apart(thinker, prompts[:4], rows, logps).mean() > 0.2
        pushed = one.push(thinker)
        assert pushed.parts == pushed.compared == 2 * 2 * 3, "attention and feed-forward of each layer: A and B"
        assert not one._weights.exists()
    one.forget()
    assert one.push(thinker).parts == first.parts, "another model's base below its adapter"
    rows, logps = one.generate(prompts[:4], [1, 2, 3, 4], G)
    difference = apart(thinker, prompts[:4], rows, logps)
    print(f"mean {difference.mean():.1e}, largest {difference.max():.1e} nats")
    assert difference.mean() < 0.05


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("forgets", r"2 of 6 parts: model\.layers\.1\.self_attn\.lora_A"),
        ("ignores", r"applies no adapter in 2 of 6 parts: model\.layers\.2\.self_attn\.lora_A"),
    ],
)
def test_an_adapter_that_does_not_arrive_stops_the_run(make_engine, model, processor, monkeypatch, fails, says):
    adapted = get_peft_model(model, loading.lora(4, 8, 0.0, ("q_proj",)))
    one = make_engine(model, processor, bf16=True, rank=4)
    one.push(adapted.get_base_model())
    spread(adapted, 0.1)
    monkeypatch.setenv("STAND_IN", fails)
    with pytest.raises(UserError, match=says):
        one.push(adapted.get_base_model())


@pytest.mark.parametrize(
    ("bf16", "rank", "apart"), [(False, 4, 0), (True, 0, 0), (True, 4, 8), (True, 16, 16), (True, 999, 0)]
)
def test_an_adapter_is_apart_in_bfloat16_with_the_next_rank_that_vllm_has(bf16, rank, apart):
    setup = vllm_engine.EngineSetup(None, None, 1, 1, bf16, torch.device("cpu"), sleeps=False, adapter_rank=rank)
    assert setup.rank_apart == apart


@pytest.mark.parametrize("fails", ["forgets", "drops"])
def test_an_engine_that_holds_other_weights_than_it_was_sent_stops_the_run(
    make_engine, model, processor, monkeypatch, fails
):
    one = make_engine(model, processor)
    monkeypatch.setenv("STAND_IN", fails)
    with pytest.raises(UserError) as error:
        one.push(model)
    wanted = "layers.1.self_attn" if fails == "forgets" else "1 buffers of the engine: rotary"
    assert wanted in error.value.problem


@pytest.mark.parametrize("side", ["left", "right"])
def test_vllm_gets_the_features_that_the_mask_names(side):
    heard = torch.arange(1.0, 7).expand(1, 2, 6)
    pads = (2, 0) if side == "left" else (0, 2)
    media = {"input_features": torch.nn.functional.pad(heard, pads)}
    media["feature_attention_mask"] = torch.nn.functional.pad(torch.ones(1, 6, dtype=torch.long), pads)
    found = qwen2_5_omni.vllm_media(media)
    assert (found["input_audio_features"] == heard[0].numpy()).all() and found["audio_feature_lengths"].tolist() == [6]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_memory_for_another_process_is_not_of_an_expandable_segment(name, monkeypatch):
    said = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", said.append)
    with weight_transfer.shareable():
        said.append("allocated")
    assert said == ["allocated"], "as it is by default"
    monkeypatch.setenv(name, "expandable_segments: true,max_split_size_mb:512")
    with pytest.raises(RuntimeError), weight_transfer.shareable():
        raise RuntimeError
    others = ",max_split_size_mb:512"
    assert said[1:] == [f"expandable_segments: False{others}", f"expandable_segments: true{others}"]


def test_a_digest_sees_another_step_another_type_and_what_is_missing_and_not_what_is_joined():
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 8) for _ in range(3))
    names = [f"thinker.model.layers.3.self_attn.{x}_proj.weight" for x in "qkv"]
    sent = weight_transfer.digests(zip(names, (q, k, v), strict=True))
    joined = "language_model.model.layers.3.self_attn.qkv_proj.weight"
    assert weight_transfer.digests([(joined, torch.cat([q, k, v]))]) == sent
    for other in (torch.cat([q, k, 1.001 * v]), torch.cat([q, k, v]).bfloat16(), torch.cat([q, k])):
        assert weight_transfer.differing(sent, weight_transfer.digests([(joined, other)])) == [
            "model.layers.3.self_attn.weight"
        ]
    assert not weight_transfer.differing(sent, weight_transfer.digests([(joined, torch.empty(0))])), "packed: not seen"


@pytest.mark.parametrize("asked", ["one by one", "together"])
def test_room_for_the_cache_is_that_of_all_rows(model, asked):
    rows, length = (64, 500) if asked == "together" else (1, 500)
    text = model.config.get_text_config()
    a_token = 2 * text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * 4
    assert 1.0 <= vllm_engine.cache_bytes(model, rows, length, torch.float32) / (rows * length * a_token) < 1.2


def test_weights_pass_in_memory_where_there_is_room(monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_engine, "MEMORY", tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    left = vllm_engine.passage(run, 1000)
    assert left.parent == tmp_path
    left.touch()  # and is killed
    assert vllm_engine.passage(run, 1 << 60).parent != tmp_path
    assert not left.exists()
    monkeypatch.setattr(vllm_engine, "MEMORY", tmp_path / "nowhere")
    assert vllm_engine.passage(run, 1000).parent != tmp_path


@pytest.mark.parametrize(
    ("fails", "asks", "says"),
    [
        ("cannot", "start", "the engine failed (start): ValueError: no room for the weights"),
        ("dies", "generate", "the engine has ended (status 9)"),
    ],
)
def test_an_engine_that_fails_is_named_with_its_log(
    make_engine, model, processor, prompts, monkeypatch, fails, asks, says
):
    monkeypatch.setenv("STAND_IN", fails)
    with pytest.raises(UserError) as error:
        make_engine(model, processor, near=fails == "cannot").generate(prompts[:1], [0], G)
    assert str(error.value).startswith(says) and "engine.log" in error.value.hint


def test_an_interpreter_without_vllm_is_refused_with_the_way_to_one(tmp_path):
    for python in (sys.executable, str(tmp_path / "nowhere")):
        with pytest.raises(UserError) as error:
            vllm_environment.check(python)
        assert "pip install vllm" in error.value.hint and python in error.value.problem


@pytest.fixture
def train(make_engine, make_processor, samples, tmp_path):
    """Three steps by an engine: the metrics of each and the trainer."""

    def go(*settings, adapter=None, spoil=lambda trainer: None, steps=3):
        config = config_of(
            f"grpo.group_size={G}",
            f"generation.max_new_tokens={LENGTH}",
            "generation.engine=vllm",
            "trainer.prompts_per_step=2",
            "trainer.micro_batch_prompts=1",
            "trainer.learning_rate=1e-2",
            *settings,
        )
        model, catch = tiny_model(), Catch()
        processor = make_processor(model)
        generator = make_engine(model, processor, config.generation.temperature)
        reference = None if adapter else tiny_reference()
        trainer = EchoInkTrainer(
            Policy(
                model,
                reference,
                processor,
                adapter=adapter,
                engine=generator,
                correction=config.generation.vllm.correction,
            ),
            samples[:6],
            Scoring(make_rewards(config.reward, processor.prompt.thinks)),
            arguments(
                config.trainer, config.grpo, config.generation, seed=config.seed, steps=steps, folder=str(tmp_path)
            ),
            config.grpo,
            callbacks=[catch],
        )
        spoil(trainer)
        trainer.train()
        return catch.rows, trainer

    return go


@pytest.mark.parametrize("adapter", [None, loading.lora(4, 64, 0.0, ("q_proj", "v_proj"))], ids=["whole", "lora"])
def test_after_each_update_it_samples_from_the_model_that_learns(train, adapter, capsys):
    rows, trainer = train(adapter=adapter)
    assert capsys.readouterr().out.count("the same positions, embedded text within") == 1
    assert len(rows) == 3 and all(row["engine/logp_difference_max"] < 1e-4 for row in rows)
    assert all(abs(row["engine/ratio_mean"] - 1) < 1e-3 for row in rows)
    assert trainer._pushed == 2  # rollouts of steps 1 to 3 are made after 0, 1 and 2


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("shifts", r"sample \d: the engine and the trainer have different positions for token 0"),
        ("blurs", r"sample \d: the engine embeds its audio differently from the trainer, by 10%"),
    ],
)
def test_a_prompt_of_the_first_rollout_is_compared_with_what_the_engine_makes_of_it(train, monkeypatch, fails, says):
    monkeypatch.setenv("STAND_IN", fails)
    with pytest.raises(UserError, match=says):
        train()


def test_media_that_are_embedded_a_little_otherwise_are_warned_of(train, monkeypatch, capsys):
    """As two kernels of a tower in bfloat16 may."""
    monkeypatch.setenv("STAND_IN", "blurs")
    monkeypatch.setattr(parity, "OTHER", {torch.float32: 0.2})
    train(steps=2)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("the engine embeds its audio differently from the trainer, by 10%; vLLM") == 1


def test_updates_that_share_a_rollout_need_one_push(train):
    rows, trainer = train("grpo.updates_per_rollout=3")
    assert trainer._pushed == 0 and ["engine/ratio_mean" in row for row in rows] == [True, False, False]


def test_weights_that_do_not_arrive_are_warned_of(train, tmp_path, capsys):
    def forget(trainer):
        push = trainer._engine.push
        trainer._engine.push = lambda model: push(model) if trainer._pushed is None else 0

    rows, _ = train(spoil=forget)
    assert rows[0]["engine/logp_difference_mean"] < 1e-4 < 0.05 < rows[2]["engine/logp_difference_mean"]
    with RunFolder(tmp_path / "run", "train", "run", 0) as folder:
        tracker = Tracker(None, Record("x", "x", {}, {}), folder.path)
        recorder = Recorder(config_of("generation.vllm.alarm=0.05"), folder, tracker, 3)
        wanted = dict.fromkeys(("reward/accuracy", "reward/format", "completion/mean_length", "time/step"), 1.0)
        for step, row in enumerate(rows):
            logs = {"loss": 0.0, "engine/logp_difference_mean": row["engine/logp_difference_mean"]}
            state = type("State", (), {"is_world_process_zero": True, "global_step": step + 1, "epoch": 0.0})
            recorder.on_log(None, state, None, logs | wanted)
    said = capsys.readouterr().out
    assert said.count("it samples from a different policy") == 1 and "step 2" in said.replace("\n", " ")


@pytest.mark.parametrize(
    ("mode", "beta"),
    # Without a reference one mode is enough: what is corrected does not depend on it.
    [*((mode, 0.04) for mode in Correction), (Correction.token_truncate, 0)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_an_engines_rollout_is_corrected_in_the_loss_without_a_pass_of_its_own(train, monkeypatch, mode, beta):
    """The stand-in says of each token half its probability: ratios of 2 a token, 2^n a completion."""
    monkeypatch.setenv("STAND_IN", "lies")
    passes = []

    def spoil(trainer):
        compute = trainer._log_probabilities

        def counted(model, *words):
            passes.append(torch.is_grad_enabled())
            return compute(model, *words)

        trainer._log_probabilities = counted

    settings = ["generation=vllm", f"generation.vllm.correction={mode.name}", f"grpo.beta={beta}"]
    logged, _ = train(*settings, spoil=spoil, steps=1)
    assert passes.count(False) == (1 if beta else 0), "only the reference makes passes without a gradient"
    differences = [row["engine/logp_difference_mean"] for row in logged if "engine/logp_difference_mean" in row]
    assert differences and differences == pytest.approx([0.6931] * len(differences), abs=1e-3)
    if beta and mode is not Correction.sequence_mask:  # without it only groups with a signal are compared
        most = {"none": 1, "token_truncate": 2, "token_mask": 2, "sequence_truncate": 3}[mode.name]
        assert logged[0]["engine/ratio_max"] == pytest.approx(most, rel=1e-3)


def test_the_dropout_of_an_adapter_is_no_difference_of_the_engine(train, monkeypatch):
    """The engine has none: without a pass without it, completions would be weighted by what dropout takes."""
    monkeypatch.setattr("echoink.training.trainer.has_dropout", lambda model: False)
    apart, _ = train("grpo.beta=0", adapter=loading.lora(4, 8, 0.3, ("q_proj", "v_proj")))
    monkeypatch.undo()
    rows, _ = train("grpo.beta=0", adapter=loading.lora(4, 8, 0.3, ("q_proj", "v_proj")))
    assert max(row["engine/logp_difference_max"] for row in rows) < 1e-4
    assert max(row["engine/logp_difference_max"] for row in apart) > 1e-2
    assert all(abs(row["engine/ratio_mean"] - 1) < 1e-3 for row in rows)


def test_weights_by_hand():
    logps, told = (
        torch.tensor([[0.0, -1.0, -2.0], [-1.0, -1.0, 9.0]]),
        torch.tensor([[0.0, -2.0, -1.0], [-4.0, -1.0, 0.0]]),
    )
    mask = torch.tensor([[True, True, True], [True, True, False]])
    e = math.e
    wanted = {
        "none": [[1, 1, 1], [1, 1, 1]],
        "token_truncate": [[1, e, 1 / e], [3, 1, 1]],
        "token_mask": [[1, e, 1 / e], [0, 1, 1]],
        "sequence_truncate": [[1], [3]],
        "sequence_mask": [[1], [0]],
    }
    for how in Correction:
        assert torch.allclose(
            grpo.engine_ratio(logps, told, mask, how=how, largest=3.0), torch.tensor(wanted[how.name]).float()
        )
    weights = grpo.engine_ratio(logps, told, mask, how=Correction.token_truncate, largest=3.0)
    empty = engine_metrics.notes(logps, told, torch.zeros_like(mask), weights)
    found = engine_metrics.metrics(torch.stack([engine_metrics.notes(logps, told, mask, weights), empty]))
    assert found["engine/logp_difference_mean"] == pytest.approx((1 + 1 + 3) / 5)
    assert found["engine/logp_difference_max"] == 3
    ratios = [found[f"engine/ratio_{name}"] for name in ("min", "mean", "max")]
    assert ratios == pytest.approx([1 / e, (1 + e + 1 / e + 3 + 1) / 5, 3])
    assert engine_metrics.metrics(empty[None]) == {}


RUN = [*SMALL, "generation=vllm", "trainer.steps=3", "trainer.save_every=1", "trainer.keep_checkpoints=3"]
RUN += ["trainer.completions_every=1", "trainer.micro_batch_prompts=1", "grpo.beta=0.04", "tracking=off"]
RUN += ["eval.base=false", "eval.watched=0", "eval.cache=null", "eval.greedy=false", "eval.limit=2"]
AS_STAND_IN = f"""
import pathlib
from echoink.rollout import vllm_engine as engine, vllm_environment
engine.WORKER = pathlib.Path({str(STAND_IN)!r})
vllm_environment.check = lambda python: "stand-in"
"""
AS_NEAR = """
from echoink.rollout import vllm_engine as engine, vllm_environment
from tests.helpers import stand_in_engine
engine._start = lambda *_: (None, stand_in_engine.Near())
vllm_environment.check = lambda python: "stand-in"
"""
COMMAND = AS_NEAR + MAIN


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run on one process."""
    place = tmp_path_factory.mktemp("engine")
    done = processes.run(place, *RUN, "hydra.run.dir=outputs/whole", code=COMMAND)
    assert done.returncode == 0, done.stderr
    assert "vLLM stand-in" in done.stdout
    return place / "outputs/whole"


def test_a_run_that_is_taken_up_goes_on_the_same(whole):
    place = whole.parent.parent
    words = [*RUN, "hydra.run.dir=outputs/again", "resume=auto"]
    assert processes.run(place, *words, code=DIES_AFTER_STEP_2 + COMMAND).returncode == 3
    done = processes.run(place, *words, code=COMMAND)
    assert done.returncode == 0 and "from step 1" in done.stdout, done.stderr
    assert logged(place / "outputs/again") == logged(whole)
    for step in (1, 2, 3):
        assert lines(place / f"outputs/again/completions/step-{step}.jsonl") == lines(
            whole / f"completions/step-{step}.jsonl"
        )


NO_DEEPSPEED = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed")


@pytest.mark.parametrize(
    "trainer",
    [
        "fsdp2",
        pytest.param("ddp", marks=pytest.mark.slow),
        pytest.param("zero3", marks=[pytest.mark.slow, NO_DEEPSPEED]),
    ],
)
def test_two_processes_with_an_engine_each_do_what_one_does(whole, trainer):
    place = whole.parent.parent
    words = [*RUN, f"trainer={trainer}", f"hydra.run.dir=outputs/{trainer}"]
    for one in start(place, words, dict.fromkeys((0, 1), AS_STAND_IN)):
        assert (done := one.wait()).returncode == 0, done.stderr
    for row, wanted in zip(logged(place / f"outputs/{trainer}"), logged(whole), strict=True):
        assert row == {name: pytest.approx(value, rel=1e-3, abs=1e-4) for name, value in wanted.items()}
    assert (place / f"outputs/{trainer}/engine.rank1.log").is_file()
    assert not list(vllm_engine.MEMORY.glob("echoink-*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(not VLLM, reason="ECHOINK_VLLM names no interpreter that has vLLM")
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_vllm_sees_hears_and_counts_positions_as_the_model_does(make_engine, processor, of_all_kinds, temperature):
    model = tiny_model()
    one = make_engine(model, processor, temperature, VLLM)
    one.push(model)
    for prompt in of_all_kinds:
        if prompt.media:
            positions, embedded = one.given(prompt)
            assert torch.equal(positions, prompt.position_ids)
            assert (embedded - parity.embedded_prompt(model, prompt).detach()).abs().max() < 1e-4
    for _ in range(2):  # the second time with other weights
        rows, logps = one.generate(of_all_kinds, [7, 8, 9, 10, 11], G)
        difference = apart(model, of_all_kinds, rows, logps, temperature)
        print(f"temperature {temperature}: mean {difference.mean():.1e}, largest {difference.max():.1e} nats")
        assert difference.max() < 1e-4
        assert one.generate(of_all_kinds, [7, 8, 9, 10, 11], G)[0] == rows
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.05)
        stale = apart(model, of_all_kinds, rows, logps, temperature)
        assert stale.mean() > 0.01
        one.push(model)
    assert one.cached > 0  # a prompt's whole blocks are computed once for its group


@pytest.mark.slow
@pytest.mark.skipif(not VLLM, reason="ECHOINK_VLLM names no interpreter that has vLLM")
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["adapter=lora"],
        ["adapter=qlora"],
        ["model.freeze=[audio,vision]"],
        ["adapter=lora", "trainer.bf16=true"],
        ["adapter=qlora", "trainer.bf16=true"],
    ],
    ids=["whole", "lora", "qlora", "frozen", "lora apart", "qlora apart"],
)
def test_a_run_by_vllm(tmp_path, words):
    words = [*RUN, *words, f"generation.vllm.python={VLLM}", "trainer.learning_rate=1e-3", "hydra.run.dir=outputs/run"]
    done = processes.run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    rows = logged(tmp_path / "outputs/run")
    largest = 0.05 if "trainer.bf16=true" in words else 1e-4
    assert len(rows) == 3 and all(row["engine/logp_difference_mean"] < largest for row in rows)
    assert json.loads((tmp_path / "outputs/run/summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("engine", ["true", "lies"])
def test_the_parity_table_names_the_layer_where_they_part(model, processor, tmp_path, monkeypatch, engine):
    monkeypatch.setattr(vllm_engine, "WORKER", STAND_IN)
    monkeypatch.setattr(vllm_engine, "_start", lambda *_: (None, stand_in_engine.Near()))
    monkeypatch.setenv("STAND_IN", engine)
    setup = vllm_engine.EngineSetup(
        python=None,
        sampling=Sampling(0.8, 0.95, 50, LENGTH, loading.end_ids(model, processor.processor)),
        rows=1,
        longest=1,
        bf16=False,
        device=torch.device("cpu"),
        sleeps=False,
    )
    rows = list(parity.measure(model, processor, setup, tmp_path))
    kinds = ["text", "image", "audio", "image and audio", "video", "video and audio"]
    assert [(row.kind, row.prefix_cache) for row in rows] == [(kind, on) for on in (True, False) for kind in kinds]
    if engine == "lies":
        assert not any(row.good for row in rows) and all(row.layer.startswith("layer 2, by") for row in rows)
        assert all(abs(row.mean - math.log(2)) < 1e-3 for row in rows)
    else:
        assert all(row.good and not row.layer and row.largest < 1e-4 for row in rows)


@pytest.mark.parametrize("engine", ["true", "stale"])
def test_the_canary_passes_only_where_updates_reach_the_engine(tmp_path, monkeypatch, engine):
    """A stale engine says of each sync that it took the weights."""
    monkeypatch.setattr(canary, "modes", lambda gpu: {"lora": ["adapter=lora"]})

    def train(words, folder):
        done = processes.run(folder, *words, code=AS_NEAR + MAIN, STAND_IN=engine)
        return "" if not done.returncode else done.stderr.strip().splitlines()[-1]

    words = [word for word in SMALL if word.startswith("dataset")] + ["generation.vllm.alarm=100"]
    (found,) = canary.run_all(words, tiny=True, gpu=False, folder=tmp_path, run=train)
    assert found.good == (engine == "true"), found
    assert found.first > 0 and not found.failed


def test_the_canarys_own_words_come_after_the_users_and_its_error_is_whole(tmp_path):
    asked = []

    def train(words, folder):
        asked.append({word.partition("=")[0]: word.partition("=")[2] for word in words})
        return last_error("warning: x\nerror: model.path=/nowhere: no such folder\n  → give a model folder\n")

    words = [
        "trainer.learning_rate=1e-6",
        "reward.file=mine.py",
        "trainer.steps=500",
        "adapter=lora",
        "dataset.train=9",
    ]
    words += ["adapter.rank=64", "trainer=fsdp2", "trainer.epochs=1"]
    found = list(canary.run_all(words, tiny=True, gpu=False, folder=tmp_path, run=train))
    assert {row.failed for row in found} == {"error: model.path=/nowhere: no such folder → give a model folder"}
    for given in asked:
        assert given["reward.file"] == "longer.py" and given["trainer.steps"] == "8" and given["dataset.train"] == "9"
        assert float(given["trainer.learning_rate"]) > 1e-6
        assert given["trainer"] == "single" and not {"adapter.rank", "trainer.epochs"} & {*given}
    assert [given["adapter"] for given in asked][:2] == ["none", "lora"]
    whole = [row.mode for row in canary.run_all(words, True, gpu=False, folder=tmp_path, run=train, halves=True)]
    assert "lora" in whole and "whole" not in whole, "nothing learns in bfloat16 but an adapter"
    assert last_error("") == "it said nothing" and last_error("Killed\n") == "Killed"


def test_the_canary_tries_every_way_in_which_weights_pass():
    pytest.importorskip("bitsandbytes")
    assert list(canary.modes(gpu=False)) == ["whole", "lora", "qlora", "lora, bfloat16"]
    assert list(canary.modes(gpu=True)) == [
        f"{kind}, {state}" for kind in ("whole", "lora", "qlora") for state in ("asleep", "awake")
    ]
    assert {kind.partition(",")[0] for kind in canary.modes(gpu=True)} <= set(canary.RATES)


def test_an_evaluation_by_an_engine_says_how_far_it_is_from_the_models_own(tmp_path):
    """Greedy answers are the model's; sampled ones are other draws, of which each variant has its own."""
    words = [*SMALL, "task=eval", "tracking=off", "eval.cache=null", "eval.ablations=[no_audio]", "eval.samples=2"]
    found = {}
    for engine in ("transformers", "vllm"):
        out = f"hydra.run.dir=outputs/{engine}"
        done = processes.run(tmp_path, *words, f"eval.engine={engine}", out, code=AS_NEAR + MAIN)
        assert done.returncode == 0, done.stderr
        found[engine] = lines(tmp_path / f"outputs/{engine}/predictions.jsonl")
    assert "greedy answers alike in 6 of 6" in done.stdout
    summary = json.loads((tmp_path / "outputs/vllm/summary.json").read_text())
    assert summary["base"]["engine"]["logp_difference_mean"] < 1e-5
    ours, theirs = ({(row["id"], row["variant"], row["draw"]): row for row in rows} for rows in found.values())
    assert ours.keys() == theirs.keys() and len(ours) == 6 * 2 * 3
    greedy = [key for key in ours if key[2] == "greedy"]
    assert all(ours[key]["completion"] == theirs[key]["completion"] for key in greedy)
    assert any(ours[key]["completion"] != theirs[key]["completion"] for key in ours)


@pytest.mark.parametrize("freeze", [(), ("audio",), ("vision",), ("audio", "vision")])
def test_what_is_sent_again_is_compared_with_all_that_is_called_like_it(freeze):
    """Two towers have a `proj`: what one of them learns is not to be compared with both."""
    model = loading.load_model("tiny", freeze=freeze)
    sent = weight_transfer.digests(vllm_engine.published(model, everything=False))
    held = weight_transfer.digests(vllm_engine.published(model, everything=True))
    assert not weight_transfer.differing(sent, held) and sent.keys() <= held.keys()


@pytest.mark.parametrize("does", ["packs", "renames"])
def test_what_an_engine_packs_is_not_seen_and_names_that_it_does_not_know_stop_the_run(
    make_engine, model, processor, monkeypatch, does
):
    """On a CPU vLLM packs linear layers; an adapter on these alone leaves nothing to compare."""
    one = make_engine(model, processor)
    monkeypatch.setenv("STAND_IN", does)
    if does == "packs":
        pushed = one.push(model)
        assert pushed.compared == 0 < pushed.parts
    else:
        with pytest.raises(UserError, match="nothing of what the engine was sent can be found"):
            one.push(model)
