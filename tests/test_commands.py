"""The commands around a run: plan, doctor, predict, export, rescore, preflight."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from huggingface_hub.errors import RepositoryNotFoundError
from omegaconf import OmegaConf
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor

from echoink import doctor, predict, rescore, tiny
from echoink import open as opening
from echoink.common import startup
from echoink.common.errors import UserError
from echoink.common.files import as_lines
from echoink.config.paths import TINY
from echoink.curate import __main__ as curating
from echoink.data import __main__ as datasets_of_ours
from echoink.data import synthetic
from echoink.data.samples import Sample
from echoink.data.splits import load
from echoink.models.loading import load_model, load_processor, lora
from echoink.pipeline import export
from echoink.planning import memory, plan, preflight
from echoink.report import __main__ as reporting
from echoink.rewards.types import Match, ProblemType
from tests.helpers import processes
from tests.helpers.configs import config_of
from tests.helpers.files import picture, sound, video
from tests.helpers.runs import make_run


def command(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return processes.run(cwd or Path.cwd(), *words[1:], module=words[0])


# --- the plan ---


def planned(dataset, *overrides):
    config = config_of(f"dataset.path={dataset}", *overrides)
    return plan.make(config, load(config.dataset, config.eval, config.model, train=True))


SMALL = ("dataset.train=24", "dataset.dev=6", "dataset.valid=12")


def test_the_plan_names_the_processes_that_divide_the_weights(dataset):
    several = ("trainer.processes=16", "trainer.prompts_per_step=16", "trainer.micro_batch_prompts=1")
    for sharding, said in (("fsdp2", "sharded over the 8 of a node"), ("zero3", "sharded over 16")):
        found = planned(dataset, f"trainer={sharding}", *several, *SMALL)
        assert said in found["memory_bytes_per_process"], sharding


def test_the_plan_of_the_tiny_model_is_what_happens(dataset, model, processor, samples):
    found = planned(dataset, *SMALL)
    assert found["parameters"]["total"] == found["parameters"]["learning"] == model.num_parameters()
    assert (found["steps"], found["prompts_per_step"], found["completions_per_step"]) == (120, 8, 64)
    assert found["epochs"] == 40 and found["world_size"] == 1 and found["completions"] == 7680
    images = {16}
    assert {found["prompt_tokens"]["image"][name] for name in ("least", "median", "most")} == images
    assert found["prompt_tokens"]["audio"]["most"] == 25 and found["prompt_tokens"]["video"]["most"] == 0
    text = [processor.text_tokens(sample) - 2 for sample in samples]
    estimated = found["prompt_tokens"]["text (estimated)"]
    assert estimated["median"] == pytest.approx(sorted(text)[12], rel=0.35)
    size = 4 * model.num_parameters()
    disk = {"checkpoint": size, "optimizer": 2 * size, "first_process": 3 * size}
    disk |= {"kept": 1, "export": 0, "total": 6 * size}
    assert found["disk_bytes"] == disk
    parts = dict(found["memory_bytes_per_process"]["not sharded"])
    total = parts.pop("total")
    assert parts["optimizer"] == 8 * model.num_parameters()
    always = parts["weights"] + parts["reference"] + parts["optimizer"] + parts["cache"]
    assert total == always + parts["gradients"] + parts["activations"]


@pytest.mark.parametrize(("words", "said"), [([], True), (["trainer.bf16=true"], False)])
def test_hours_in_float32_are_said_to_be_those_of_bfloat16(dataset, words, said):
    lines = plan.lines(planned(dataset, *SMALL, "model=qwen2_5_omni_7b", *words))
    assert any("in float32 they are several times as many" in text for _, text in lines) == said


def test_the_tiny_dimensions_are_the_models(model):
    sizes = config_of().model.architecture
    found = memory.model_of(model).dimensions
    assert (sizes.layers, sizes.width, sizes.feed_forward, sizes.heads, sizes.key_heads) == (
        found.layers,
        found.width,
        found.feed_forward,
        found.heads,
        found.key_heads,
    )
    parts = plan.count_parameters(config_of())
    assert parts["language"] == sum(p.numel() for p in model.model.language_model.parameters())
    assert parts["audio"] == sum(p.numel() for p in model.model.audio_tower.parameters())
    assert parts["vision"] == sum(p.numel() for p in model.model.visual.parameters())
    assert parts["head"] == model.lm_head.weight.numel()


@pytest.mark.parametrize("name", ["qwen2_5_omni_7b", "qwen2_5_omni_3b"])
def test_the_published_dimensions_give_the_parameters_of_their_architecture(name):
    """Built without weights; what conf/ does not say is the published configuration's."""
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    config = config_of("dataset.path=x", f"model={name}", "trainer.bf16=true")
    sizes = config.model.architecture
    with torch.device("meta"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(
            Qwen2_5OmniThinkerConfig(
                text_config={
                    "vocab_size": sizes.vocabulary,
                    "hidden_size": sizes.width,
                    "intermediate_size": sizes.feed_forward,
                    "num_hidden_layers": sizes.layers,
                    "num_attention_heads": sizes.heads,
                    "num_key_value_heads": sizes.key_heads,
                },
                audio_config={"output_dim": sizes.width},
                vision_config={"hidden_size": 1280, "out_hidden_size": sizes.width},
            )
        )
    parts = plan.count_parameters(config)
    assert parts["total"] == model.num_parameters()
    assert parts["audio"] == model.model.audio_tower.num_parameters()
    for name, module in (("audio", model.model.audio_tower.proj), ("vision", model.model.visual.merger)):
        assert getattr(sizes, f"{name}_projection_parameters") == sum(p.numel() for p in module.parameters())
    assert sizes.linear == sum(
        module.weight.numel() for module in model.model.language_model.modules() if isinstance(module, torch.nn.Linear)
    )


def test_the_small_models_dimensions_are_those_of_its_parts():
    """SmolLM2-135M's and Whisper tiny.en's published sizes, without weights."""
    from transformers import LlamaConfig, Qwen2_5OmniThinkerForConditionalGeneration

    from echoink.models.pretrained_parts import Parts
    from echoink.models.small_architecture import thinker_config
    from echoink.models.tiny_architecture import make_tokenizer, processor_around

    config = config_of("model=small")
    language = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )  # fmt: skip
    heard = {"conv1.weight": torch.empty(384, 80, 3), "layers.0.fc1.weight": torch.empty(1536, 384)}
    heard |= {f"layers.{number}.fc2.weight": torch.empty(384, 1536) for number in range(4)}
    tokenizer = make_tokenizer(["user"])
    sizes = thinker_config(
        Parts("", tokenizer, language, language={}, audio=heard), processor_around(tokenizer, mels=80)
    )
    sizes.text_config.vocab_size = config.model.architecture.vocabulary  # 49,152 words and the names of media
    with torch.device("meta"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(sizes)
    parts, base = plan.count_parameters(config), model.model
    assert parts["total"] == model.num_parameters() == 146_363_904
    assert parts["language"] == base.language_model.num_parameters()
    assert (parts["audio"], parts["vision"]) == (base.audio_tower.num_parameters(), base.visual.num_parameters())
    for name, module in (("audio", base.audio_tower.proj), ("vision", base.visual.merger)):
        projection = getattr(config.model.architecture, f"{name}_projection_parameters")
        assert projection == sum(p.numel() for p in module.parameters())


def test_an_adapters_parameters_are_counted_as_peft_makes_them(model):
    from peft import get_peft_model

    for targets in (
        ["q_proj", "v_proj"],
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ):
        config = config_of("adapter=lora", f"adapter.targets=[{','.join(targets)}]", "adapter.rank=4")
        made = get_peft_model(load_model("tiny"), lora(4, 8, 0.0, targets))
        learning, total = made.get_nb_trainable_parameters()
        counted = plan.count_parameters(config)
        assert (counted["learning"], counted["total"]) == (learning, total)


def test_frozen_towers_and_sharding(dataset):
    eight = [*SMALL, "model.freeze=[audio,vision]", "trainer.processes=8", "trainer.micro_batch_prompts=1"]
    frozen = planned(dataset, *eight, "trainer.sharding=fsdp2")
    parameters = frozen["parameters"]
    assert parameters["learning"] == parameters["language"] + parameters["head"]
    whole, part = frozen["memory_bytes_per_process"].values()
    assert part["optimizer"] == whole["optimizer"] // 8 and part["activations"] == whole["activations"]
    assert part["gathered"] == 4 * parameters["total"]
    assert frozen["accumulation"] == 1
    whole, part = planned(dataset, *eight, "trainer.sharding=none")["memory_bytes_per_process"].values()
    assert part["gradients"] == 2 * whole["gradients"], "and the buckets in which DDP sums them"
    assert all(part[name] == whole[name] for name in whole if name not in ("gradients", "total"))
    (zero,) = planned(dataset, *eight, "trainer.sharding=zero2")["memory_bytes_per_process"].values()
    assert zero["optimizer"] == 12 * parameters["learning"] // 8 and zero["weights"] == whole["weights"]


def test_the_papers_run_is_planned_without_weights_and_without_a_hub(dataset, tmp_path):
    """On a tenth of its samples; that 4,490 are 562 steps is shown beside the sampler."""
    rows = json.loads((dataset / "omni_rl_format_train.json").read_text())
    many = [{**rows[number % 24], "problem_id": number} for number in range(449)]
    root = tmp_path / "AVQA_R1"
    shutil.copytree(dataset, root)
    (root / "omni_rl_format_train.json").write_text(json.dumps(many))
    done = command(
        "echoink.train",
        "experiment=echoink_r1_7b",
        f"dataset.path={root}",
        "dry_run=true",
        "name=planned",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs/planned").iterdir()
    found = json.loads((folder / "plan.json").read_text())
    assert (found["steps"], found["world_size"], found["prompts_per_step"], found["completions_per_step"]) == (
        57,
        8,
        8,
        128,
    )
    assert found["parameters"]["total"] == 8_931_813_888
    assert found["disk_bytes"]["checkpoint"] == 4 * 8_931_813_888
    assert found["samples"]["train"] == 449
    assert "57 of 8 prompts, 128 completions" in done.stdout
    assert not (folder / "predictions.jsonl").exists()


# --- preflight ---


def test_preflight_names_what_would_fail_later(tmp_path, monkeypatch):
    preflight.check_disk(tmp_path / "run", 1)
    preflight.check_store(f"sqlite:///{tmp_path}/mlflow.db", "x")
    with pytest.raises(UserError, match=r"GiB free; the checkpoints need about .* GiB"):
        preflight.check_disk(tmp_path, 2**60)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        preflight.check_disk(tmp_path / "file", 1)
    with pytest.raises(UserError, match="tracking=off"):
        preflight.check_store("nosuchscheme://x", "x")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"needs the package psycopg\n.*psycopg, or .* postgresql\+psycopg2"):
        preflight.check_store("postgresql://localhost/x", "x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="cannot push to me/mine"):
        preflight.check_hub("me/mine")


def test_a_kernel_that_is_not_installed_is_refused_before_anything_is_loaded(tmp_path):
    done = command(
        "echoink.train", "model.attention=flash_attention_2", "trainer.bf16=true", "trainer.steps=1", cwd=tmp_path
    )
    assert done.returncode == 2 and "needs the package flash-attn, which is not installed" in done.stderr
    assert "model.attention=sdpa needs nothing" in done.stderr and not (tmp_path / "outputs/data").exists()


def test_gpus_that_pytorch_cannot_use_are_refused_under_bf16_and_named_without(tmp_path, monkeypatch):
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(preflight, "NVIDIA_GPUS", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="2 GPUs there, and PyTorch .* cannot use them"):
        preflight.check_gpus(bf16=True)
    assert "needs a newer driver" in preflight.check_gpus(bf16=False)
    verdict, text = doctor.gpu(config_of())
    assert verdict is doctor.Verdict.bad and "2 GPUs there" in text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert preflight.check_gpus(bf16=True) is None, "somebody wants the CPU"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    for place in (tmp_path, tmp_path / "nowhere"):  # under WSL there is no such folder
        monkeypatch.setattr(preflight, "NVIDIA_GPUS", place)
        with pytest.raises(UserError, match="Tesla T4 has no bfloat16 of its own"):
            preflight.check_gpus(bf16=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setenv("CC", str(tmp_path / "no compiler"))
    assert "no C compiler" in preflight.check_gpus(bf16=True)
    monkeypatch.setenv("CC", "sh -x")
    monkeypatch.setattr(preflight.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert f"no {tmp_path}/Python.h" in preflight.check_gpus(bf16=True)
    (tmp_path / "Python.h").touch()
    assert preflight.check_gpus(bf16=True) is None


def test_more_processes_on_a_machine_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    preflight.check_devices()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    preflight.check_devices()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="2 processes were started on this machine, and each sees 1 GPU\n"):
        preflight.check_devices()


# --- doctor ---


def test_the_doctor_finds_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    free = {"bytes": 6 * 2**30}  # the verdict on this machine's own disk would change from day to day
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free["bytes"]))
    found = {finding.what: finding for finding in doctor.examine(config_of())}
    for what in ("torch", "picture", "sound", "video", "disk", "tracking", "model", "data"):
        assert found[what].verdict is doctor.Verdict.good, found[what]
    sick = config_of("dataset=rows", "dataset.path=nowhere", "model.path=me/mine")
    bad = {finding.what: finding.text for finding in doctor.examine(sick) if finding.verdict is doctor.Verdict.bad}
    assert set(bad) == {"model", "data"}
    assert "model.path=<folder>" in bad["model"] and "dataset folder not found" in bad["data"]
    (tmp_path / "file").touch()
    placed = config_of("tracking.uri=sqlite:///file/mlflow.db", "dataset.path=file/set")
    bad = {finding.what: finding.text for finding in doctor.examine(placed) if finding.verdict is doctor.Verdict.bad}
    assert set(bad) == {"tracking", "data"} and all(f"cannot be made: {tmp_path}/file" in text for text in bad.values())
    free["bytes"] = 2 * 2**30
    full = {finding.what: finding for finding in doctor.examine(config_of())}["disk"]
    assert full.verdict is doctor.Verdict.bad and full.text == f"2 GiB free in {tmp_path}"


def test_the_doctor_says_which_staged_files_are_missing(tmp_path):
    """For a machine without a network: shards of a model that were not copied, a sound of a dataset."""
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(TINY, model)
    synthetic.write(data, seed=0, sizes={"train": 6, "dev": 2, "valid": 4})

    def found(*words) -> dict:
        config = config_of("dataset=rows", f"dataset.path={data}", f"model.path={model}", *words)
        return {finding.what: (finding.verdict, finding.text) for finding in doctor.examine(config)}

    assert found()["model"][0] is found()["data"][0] is doctor.Verdict.good
    shards = {f"model-{number}-of-3.safetensors" for number in (1, 2, 3)}
    (model / "model.safetensors").rename(model / "model-1-of-3.safetensors")
    index = {"weight_map": {f"weight {number}": shard for number, shard in enumerate(sorted(shards))}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "tokenizer.json").unlink()
    gone = sorted((data / "train").glob("**/*.wav"))[0]
    gone.unlink()
    verdict, text = found()["model"]
    assert verdict is doctor.Verdict.bad
    assert text.endswith("lacks model-2-of-3.safetensors, model-3-of-3.safetensors, tokenizer.json or vocab.json")
    verdict, text = found()["data"]
    assert verdict is doctor.Verdict.bad and "1 cannot be used" in text and gone.name in text
    assert found("dataset.max_skipped=0.5")["data"][0] is doctor.Verdict.good
    (data / "omni_rl_format_train.json").unlink()
    (data / "train.jsonl").touch()
    assert found()["data"] == (doctor.Verdict.bad, f"{data}: train has no rows")
    verdict, text = found("generation=vllm")["engine"]
    assert verdict is doctor.Verdict.bad and "has no vLLM" in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RepositoryNotFoundError("404: no such model", response=Mock(headers={})),
            "does not give it (404: no such model)",
        ),
        (ConnectionError("no route"), "cannot be reached (no route)"),
    ],
)
def test_the_doctor_tells_a_model_that_is_not_on_the_hub_from_a_hub_that_is_away(error, said, monkeypatch):
    def raising(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", raising)
    found = {finding.what: finding for finding in doctor.examine(config_of("model.path=me/not-there"))}
    assert found["model"].verdict is doctor.Verdict.bad and said in found["model"].text


def test_the_doctor_looks_for_an_adapters_base_and_for_the_model_that_a_checkpoint_is_compared_with(tmp_path):
    adapter = tmp_path / "adapter"
    get_peft_model(load_model("tiny"), lora(4, 8, 0.0, ["q_proj"])).save_pretrained(adapter)
    load_processor("tiny", 12_544, 12_544).save_pretrained(adapter)

    def verdict(*words):
        return next(each for each in doctor.examine(config_of(*words)) if each.what == "model").verdict

    settings = adapter / "adapter_config.json"
    for base, wanted in (("tiny", doctor.Verdict.good), ("me/nowhere", doctor.Verdict.bad)):
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": base}))
        assert verdict(f"checkpoint={adapter}") is wanted
    assert verdict("task=compare", f"checkpoint={TINY}", "model.path=me/nowhere") is doctor.Verdict.bad
    assert verdict("task=compare", f"checkpoint={TINY}", "model.path=tiny") is doctor.Verdict.good


@pytest.mark.parametrize("words", [[], ["task=eval", f"checkpoint={TINY}"], ["task=sft"], ["generation=vllm"]])
def test_the_doctor_compares_an_engine_for_every_task_and_gives_the_canary_the_users_own_words(words, monkeypatch):
    given = []
    monkeypatch.setattr(doctor, "examine", lambda config: given.append(config.uses_vllm) or ())
    monkeypatch.setattr(doctor, "parity", lambda config: given.append(config.generation.vllm.python) or ())
    monkeypatch.setattr(doctor, "canary", lambda config, overrides, _: given.append(overrides) or ())
    words = [*words, "generation.vllm.python=engine/bin/python"]
    assert doctor.main([*words, "engine=true", "canary=true"]) == 0
    assert given == [True, "engine/bin/python", words]


def test_the_canary_of_a_checkpoint_is_given_no_other_weights(monkeypatch):
    seen = []
    monkeypatch.setattr("echoink.pipeline.canary.run_all", lambda words, *_, **__: seen.extend(words) or ())
    words = ["model=tiny", f"checkpoint={TINY}"]
    assert not list(doctor.canary(config_of(*words), words))
    assert f"checkpoint={TINY}" in seen and not any(word.startswith("model.path") for word in seen)


def test_the_doctor_takes_no_run_without_checkpoints_for_a_model(tmp_path):
    evaluated = make_run(tmp_path / "evaluated", ["task=eval"])
    found = {finding.what: finding for finding in doctor.examine(config_of(f"checkpoint={evaluated}"))}
    assert found["model"].verdict is doctor.Verdict.bad and "nor a run with checkpoints" in found["model"].text
    assert doctor.examine(config_of(f"checkpoint={TINY}")), "a model folder is one"


def test_the_doctor_compares_versions(monkeypatch):
    real = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.0" if name == "trl" else real(name))
    found = {finding.what: finding for finding in doctor.versions()}
    assert found["trl"].verdict is doctor.Verdict.bad and "is needed" in found["trl"].text


# --- after training ---


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run with an evaluation on the development split."""
    place = tmp_path_factory.mktemp("run")
    done = command(
        "echoink.train",
        "experiment=quickstart",
        *(
            "dataset.train=16",
            "dataset.dev=6",
            "dataset.valid=8",
            "trainer.steps=3",
            "eval.every=1",
            "eval.dev_samples=2",
        ),
        *("trainer.keep_checkpoints=1", "generation.max_new_tokens=48", "name=short", "trainer.learning_rate=1e-3"),
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (place / "outputs/short").iterdir()
    return folder


def test_the_best_checkpoint_is_kept(run):
    summary = json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "dev.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    best = max(rows, key=lambda row: (row["dev/accuracy"], row["step"]))
    assert summary["best"] == {"step": best["step"], "accuracy": best["dev/accuracy"]}
    assert {path.name for path in (run / "checkpoints").glob("step-*")} == {f"step-{best['step']}", "step-3"}
    from echoink.run_folder.checkpoint import resolve

    assert resolve(str(run)).endswith(f"step-{best['step']}")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 3 and "dev/accuracy" not in metrics[0]


def test_evaluating_during_training_changes_nothing(run, tmp_path):
    done = command(
        "echoink.train",
        "experiment=quickstart",
        *("dataset.train=16", "dataset.dev=6", "dataset.valid=8", "trainer.steps=3", "eval.base=false", "tracking=off"),
        *("generation.max_new_tokens=48", "name=without", "trainer.learning_rate=1e-3"),
        f"dataset.path={run.parent.parent}/data/synthetic_seed0_16_6_8",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (other,) = (tmp_path / "outputs/without").iterdir()
    name = "checkpoints/step-3/model.safetensors"
    assert (other / name).read_bytes() == (run / name).read_bytes()


def logits(model, processor, text="user: what is heard?"):
    inputs = processor.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def program_of(folder):
    """The program on a model's card, beside which a picture and a sound are put, and the words that ask us the same."""
    scene, _ = synthetic.draw(synthetic.generator(3, "valid", 0), "ear")
    rng = np.random.default_rng(0)
    synthetic.render_picture(rng, scene).save(folder / "picture.jpg", quality=92)
    soundfile.write(folder / "sound.wav", synthetic.render_sound(rng, scene), 16_000)
    media = ("--image", str(folder / "picture.jpg"), "--audio", str(folder / "sound.wav"))
    options = ("--options", "a dog", "a bell", "a car", "the rain")
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    return code, [*media, "--question", "What is making the sound?", *options]


def test_an_exported_model_and_the_program_on_its_card_need_nothing_of_ours(run, tmp_path):
    """Copied out of the card into a folder with a picture and a sound: it answers as we do, from the same logits."""
    folder = export.export(run, tmp_path / "export")
    card = (folder / "README.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert f"| final | 8 | {100 * summary['final']['accuracy']:.1f} %" in card and "train 16" in card
    with pytest.raises(UserError, match="is there already"):
        export.export(run, tmp_path / "export")
    program, asks = program_of(folder)
    assert "sound = sound[: 160000]" in program, "the first 10 s, as in training"
    code = program + (
        "\nimport sys, torch\n"
        "assert 'echoink' not in sys.modules\n"
        "text = processor.tokenizer('user: what is heard?', return_tensors='pt')\n"
        "torch.save((model(**text).logits.detach(), model.generation_config.eos_token_id), 'logits.pt')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs, ends = torch.load(folder / "logits.pt", weights_only=True)
    ours = logits(load_model(str(folder)).eval(), load_processor(str(folder), 12_544, 12_544))
    assert (theirs - ours).abs().max() <= 1e-4
    assert len(ends) == 2, "both tokens that end a completion"
    assert done.stdout.partition(" → ")[0].strip() == asked("--checkpoint", str(run), *asks)[0]


def test_an_exported_processor_hears_as_much_as_training_did(run, tmp_path):
    longer = shutil.copytree(run, tmp_path / "run", symlinks=True)
    config = (longer / "config.yaml").read_text()
    assert "max_audio_seconds: 10.0" in config
    (longer / "config.yaml").write_text(config.replace("max_audio_seconds: 10.0", "max_audio_seconds: 40.5"))
    folder = export.export(longer, tmp_path / "export")
    extractor = AutoProcessor.from_pretrained(folder).feature_extractor
    heard = extractor(np.ones(16_000 * 40, np.float32), sampling_rate=16_000, return_attention_mask=True)
    assert heard["attention_mask"].sum() == 4_000, "40 s of 100 frames"
    assert "sounds of 40.5 s and videos of" in (folder / "README.md").read_text()


def test_an_export_for_vllm_has_the_published_names_and_is_the_same_model(run, tmp_path):
    folder, plain = (export.export(run, tmp_path / str(vllm), vllm=vllm) for vllm in (True, False))
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2_5OmniModel"]
    names = load_file(folder / "model.safetensors")
    assert names and all(name.startswith("thinker.") for name in names)
    ours, theirs = load_model(str(folder)).state_dict(), load_model(str(plain)).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    program, asks = program_of(folder)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.stdout.partition(" → ")[0].strip() == asked("--checkpoint", str(plain), *asks)[0]
    assert "vllm serve" in (folder / "README.md").read_text() and "vllm=true" in (plain / "README.md").read_text()
    with pytest.raises(UserError, match="vllm=true exports a whole model"):
        export.export(run, tmp_path / "both", vllm=True, merge=False)


def test_an_export_answers_as_it_was_measured_whatever_its_base_would_decode_with(tmp_path, monkeypatch, capsys):
    """A base whose generation_config.json has no end token, a rule, and sampling that transformers refuses to save."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    processor = load_processor("tiny", 12_544, 12_544)
    load_model("tiny").save_pretrained(base)
    processor.save_pretrained(base)
    rules = {"repetition_penalty": 5.0, "temperature": 0.7, "no_repeat_ngram_size": 0}
    (base / "generation_config.json").write_text(json.dumps(rules))
    made = get_peft_model(load_model(str(base)), lora(4, 8, 0.0, ["q_proj", "v_proj"]))
    assert "asks for repetition_penalty=5.0 in its generation_config.json" in " ".join(capsys.readouterr().out.split())
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    made.save_pretrained(adapter)
    processor.save_pretrained(adapter)
    for merge in (True, False):
        folder = export.export(adapter, tmp_path / f"merge_{merge}", merge=merge)
        program, asks = program_of(folder)
        ours = asked("--checkpoint", str(adapter), *asks)[0]
        monkeypatch.chdir(folder)
        capsys.readouterr()
        exec(program, {})
        assert ours.endswith("</answer>") and capsys.readouterr().out.partition(" → ")[0] == ours


def test_an_export_that_the_hub_does_not_take_is_whole_and_says_how_to_push_it(tmp_path, monkeypatch):
    class Hub:
        create_repo = upload_folder = Mock(side_effect=OSError("quota"))

    monkeypatch.setattr(export, "HfApi", Hub)
    monkeypatch.setattr(preflight, "check_hub", lambda repository: None)
    model, folder = tmp_path / "model", tmp_path / "whole"
    load_model("tiny").save_pretrained(model)
    load_processor("tiny", 12_544, 12_544).save_pretrained(model)
    with pytest.raises(UserError, match=rf"whole, but .*: quota\n  → hf upload me/x {folder}"):
        export.export(model, folder, push_to="me/x")
    assert (folder / "model.safetensors").is_file()


def test_a_card_says_what_its_numbers_are_of(run):
    summary = json.loads((run / "summary.json").read_text())
    summary["paired"]["draws"] = 4
    text = "\n".join(export._numbers(summary, protocol="matched", quantized=False))
    assert f"The last line is of the run's last step ({summary['steps']})." in text
    assert "one sampled answer to each sample." in text and "points (means of 4 draws)" in text
    text = "\n".join(
        export._numbers({"base": summary["base"], "final": None, "paired": None}, protocol="may19", quantized=True)
    )
    assert "of the weights it began with" in text and "eval.protocol=may19" in text and "None" not in text
    assert "a base in 4 bits" in text


def test_a_card_has_the_development_number_of_its_own_step(tmp_path):
    """Of a checkpoint that is not the last one the table says nothing."""
    folder = make_run(tmp_path / "run")
    step = folder / "checkpoints/step-2"
    step.mkdir(parents=True)
    assert export._development(step) == []
    rows = [{"step": 1, "dev/accuracy": 0.9}, {"step": 2, "dev/accuracy": 0.5}, {"step": 2, "dev/accuracy": 0.625}]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert export._development(step) == ["Step 2 on the development split: 62.5 % right.", ""]
    assert export._development(tmp_path) == []


def test_an_exported_adapter_loads_with_peft_and_differs_from_its_base(tmp_path):
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    made = get_peft_model(load_model("tiny"), lora(4, 8, 0.0, ["q_proj", "v_proj"]))
    processor = load_processor("tiny", 12_544, 12_544)
    made.save_pretrained(tmp_path / "blank")
    processor.save_pretrained(tmp_path / "blank")
    with pytest.raises(UserError, match="changes nothing"):
        export.export(tmp_path / "blank", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    ours = logits(made.eval(), processor)
    merged = export.export(tmp_path / "adapter", tmp_path / "merged")
    plain = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(merged).eval()
    assert (logits(plain, processor) - ours).abs().max() <= 1e-4
    apart = export.export(tmp_path / "adapter", tmp_path / "apart", merge=False)
    assert (apart / "adapter_model.safetensors").is_file() and not (apart / "model.safetensors").exists()
    base_path = json.loads((apart / "adapter_config.json").read_text())["base_model_name_or_path"]
    base = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(base_path).eval()
    before = logits(base, processor)
    theirs = logits(PeftModel.from_pretrained(base, apart).eval(), processor)
    assert (theirs - ours).abs().max() <= 1e-4 and (theirs - before).abs().max() > 0.1
    # Earlier versions of PEFT saved a pickle.
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    torch.save(weights, tmp_path / "adapter/adapter_model.bin")
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    again = export.export(tmp_path / "adapter", tmp_path / "again", merge=False)
    again = load_file(again / "adapter_model.safetensors")
    assert again.keys() == weights.keys() and all(again[name].equal(weights[name]) for name in weights)


def asked(*words: str) -> list[str]:
    return predict.predict(predict.parser().parse_args(list(words)))


def test_predict_answers_about_files_of_ones_own(run, tmp_path):
    files = ["--image", str(picture(tmp_path / "it's, [my] p.png")), "--audio", str(sound(tmp_path / "s.wav"))]
    question = ["--question", 'What\'s heard, "or" seen?', "--options", "beep", "hiss, or so"]
    (base,) = asked(*files, *question)
    (trained,) = asked(*files, *question, "--checkpoint", str(run))
    assert base and trained and "<" in base
    assert len(asked(*files, *question, "--samples", "3")) == 3
    (seen,) = asked("--video", str(video(tmp_path / "v.mp4")), "--question", "How many?", "--type", "counting")
    assert isinstance(seen, str)
    files[-1] = str(sound(tmp_path / "long.wav", seconds=12))
    done = command("echoink.predict", *files, *question)
    assert done.returncode == 0 and "→" in done.stdout
    assert "only the first 10 of 12 s are heard" in " ".join(done.stdout.split())


def test_predict_leaves_a_videos_sound_out_where_the_run_did_and_reads_media_of_folders_that_are_named(
    run, tmp_path, monkeypatch
):
    clip, seen = video(tmp_path / "media/v.mp4"), []
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    text = (mine / "config.yaml").read_text()
    (mine / "config.yaml").write_text(text.replace("soundtrack: true", "soundtrack: false"))
    monkeypatch.setattr(predict, "with_soundtrack", lambda *words: seen.append(words[2]) or words[0])
    for each in (run, mine):
        asked("--checkpoint", str(each), "--video", str(clip), "--question", "How many?", "--type", "counting")
    assert seen == [True, False]
    rows = tmp_path / "rows/mine.jsonl"
    rows.parent.mkdir()
    rows.write_text(json.dumps({"problem": "How many?", "problem_type": "counting", "path": {"video": str(clip)}}))
    with pytest.raises(UserError) as error:
        predict.questions(rows)
    assert "--outside" in error.value.hint
    assert predict.questions(rows, [str(clip.parent)])[0].video == clip


def test_predict_says_when_an_answer_is_cut_and_takes_a_longer_limit(run, capsys):
    words = ["--checkpoint", str(run), "--question", "How many?", "--type", "counting", "--max-new-tokens"]
    (cut,) = asked(*words, "2")
    assert "the answer is cut at 2 tokens (--max-new-tokens)" in capsys.readouterr().out
    (longer,) = asked(*words, "90")
    assert ("is cut at 90 tokens" in capsys.readouterr().out) == (not longer.endswith("</answer>"))
    assert len(longer) > len(cut) and longer.startswith(cut[:3])


def test_a_real_model_without_a_run_is_asked_for_as_many_tokens_as_in_the_paper():
    def limit(*words) -> int:
        arguments = predict.parser().parse_args(["--question", "What?", *words])
        return predict.configuration(arguments).generation.max_new_tokens

    assert (limit(), limit("--model", "qwen2_5_omni_3b"), limit("--checkpoint", "me/mine")) == (96, 768, 768)
    assert limit("--model", "qwen2_5_omni_3b", "--max-new-tokens", "5") == 5
    with pytest.raises(UserError, match="max_new_tokens=0 must be"):
        limit("--max-new-tokens", "0")


def test_predict_answers_a_file_of_questions_and_goes_on_where_it_was(run, dataset, tmp_path, capsys):
    rows = json.loads((dataset / "omni_rl_format_valid.json").read_text())[:4]
    for row in rows:
        row["path"] = {name: str(dataset / "valid" / path) for name, path in row["path"].items()}
    without = [{key: value for key, value in row.items() if key != "solution"} for row in rows]
    shutil.copytree(dataset / "valid", tmp_path / "valid")
    for row, asked_row in zip(rows, without, strict=True):
        asked_row["path"] = {
            name: f"valid/{Path(path).parent.name}/{Path(path).name}" for name, path in row["path"].items()
        }
    without[3] = {"problem": "How many?", "problem_type": "counting", "path": {"audio": without[3]["path"]["audio"]}}
    without[0]["solution"], without[1]["solution"] = "B", "<answer>Z</answer>"  # not looked at
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, without)))
    words = [
        "--checkpoint",
        str(run),
        "--questions",
        str(tmp_path / "mine.jsonl"),
        "--output",
        str(tmp_path / "a.jsonl"),
    ]
    predict.main(words)
    whole = (tmp_path / "a.jsonl").read_text()
    found = [json.loads(line) for line in whole.splitlines()]
    assert len(found) == 4 and all(len(row["completions"]) == 1 for row in found)
    media = ("--image", rows[0]["path"]["image"], "--audio", rows[0]["path"]["audio"])
    options = [option[3:] for option in rows[0]["options"]]
    alone = asked("--checkpoint", str(run), *media, "--question", rows[0]["problem"], "--options", *options)
    assert found[0]["completions"] == alone and found[0]["options"] == rows[0]["options"]
    (tmp_path / "a.jsonl").write_text("".join(line + "\n" for line in whole.splitlines()[:2]) + '{"id": "2", "prob')
    predict.main(words)
    assert (tmp_path / "a.jsonl").read_text() == whole
    said = " ".join(capsys.readouterr().out.split())
    assert "2 questions left of 4" in said and "answered 4 questions" in said
    for others in (["--seed", "5"], ["--samples", "3"], ["--prompt", "direct"]):
        with pytest.raises(UserError, match="other media, or of another model, prompt, setting, seed"):
            predict.main([*words, *others])
    with pytest.raises(UserError, match="another question 0, or with other media, or of another model"):
        predict.main(words[2:])
    with pytest.raises(UserError, match="needs --output"):
        predict.main(words[:4])
    (tmp_path / "mine.jsonl").write_text('{"problem": "?"}\n{"problem": 3}')
    with pytest.raises(UserError, match=r"row 1[^$]*row 2"):
        predict.main(words)


def test_predict_does_not_take_an_answer_about_a_picture_that_was_replaced_under_its_name(tmp_path):
    picture(tmp_path / "a.png")
    row = {"problem": "What?", "problem_type": "free-form", "path": {"image": "a.png"}}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--questions", f"{tmp_path}/q.jsonl", "--output", f"{tmp_path}/a.jsonl", "--max-new-tokens", "2"]
    predict.main(words)
    predict.main(words)
    Image.new("RGB", (30, 40), "blue").save(tmp_path / "a.png")
    with pytest.raises(UserError, match="another question 0, or with other media"):
        predict.main(words)


def test_predict_gives_weights_without_a_run_the_caps_of_their_architecture(tmp_path, capsys):
    """A folder that has the dimensions of the 7B model, of the embedded one, or of none in conf/model."""
    published = json.loads((TINY / "config.json").read_text())

    def model_of(layers, width):
        text = published["text_config"] | {"num_hidden_layers": layers, "hidden_size": width, "layer_types": None}
        (folder := tmp_path / f"{layers}-{width}").mkdir()
        (folder / "config.json").write_text(json.dumps(published | {"text_config": text}))
        return predict.configuration(predict.parser().parse_args(["--checkpoint", str(folder), "--question", "What?"]))

    real = model_of(28, 3584)
    assert (real.model.max_video_pixels, real.model.max_prompt_tokens) == (100_352, 16_384) and real.trainer.bf16
    assert "capped as in conf/model/qwen2_5_omni_7b.yaml" in " ".join(capsys.readouterr().out.split())
    small = model_of(30, 576)
    assert small.model.max_prompt_tokens == 2_048 and not small.trainer.bf16, "it is made and asked on CPUs"
    capsys.readouterr()
    own = (published["text_config"]["num_hidden_layers"], published["text_config"]["hidden_size"])
    assert model_of(*own).model.max_video_pixels == 12_544 and not capsys.readouterr().out
    assert not model_of(5, 64).trainer.bf16
    assert "has 5 layers of width 64, as no file of conf/model" in " ".join(capsys.readouterr().out.split())


def test_predict_takes_a_prompt_of_ones_own(tmp_path):
    (tmp_path / "prompt").mkdir()
    template = "{question} {options} Be terse: {think}{end_think}{answer}{end_answer}"
    (tmp_path / "prompt/terse.yaml").write_text(f"defaults: [reason]\ntemplate: '{template}'\n")
    words = ["--question", "What?", "--prompt", "terse", "--config-dir", str(tmp_path)]
    assert predict.configuration(predict.parser().parse_args(words)).prompt.template == template


def test_predict_reads_the_configuration_of_an_older_run(run, tmp_path):
    """A key that came later has its default, one that is gone is passed over."""
    shutil.copytree(run / ".hydra", tmp_path / "old/.hydra")
    (tmp_path / "old/checkpoints/step-2").mkdir(parents=True)
    config = OmegaConf.load(run / "config.yaml")
    del config.sft, config.reward.files, config.reward.max_seconds, config.eval.direct
    config.generation.top_k, config.reward.gone = 7, 1
    OmegaConf.save(config, tmp_path / "old/config.yaml")
    words = ["--checkpoint", str(tmp_path / "old/checkpoints/step-2"), "--question", "What?"]
    found = predict.configuration(predict.parser().parse_args(words))
    assert found.generation.top_k == 7 and found.reward.max_seconds > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "gone.png"], "picture not found"),
        (["--image", "a.png", "--video", "b.mp4"], "not both"),
        (["--type", "counting", "--options", "a", "b"], "do not go together"),
        (["--checkpoint", "nowhere"], "no such folder"),
        (["--checkpoint", ""], "--checkpoint is empty"),
        (["--options", "a", "A"], "two --options are the same"),
        (["--model", "tinny"], "did you mean tiny"),
    ],
)
def test_predict_says_what_is_wrong(words, message):
    with pytest.raises(UserError, match=message):
        asked("--question", "What?", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "."], "is a folder"),
        (["--output", "a.jsonl", "--image", "gone.png"], "--image is for one question"),
        (["--output", "a.jsonl", "--no-sound"], "--no-sound is for one question"),
        (["--output", "a.jsonl", "--samples", "-1"], "--samples is negative"),
        (["--output", "a.jsonl", "--seed", "-1"], "--seed is negative"),
    ],
)
def test_predict_refuses_words_that_a_file_of_questions_would_ignore(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text('{"problem": "What?", "problem_type": "free-form"}\n')
    with pytest.raises(UserError, match=message):
        predict.main(["--questions", "q.jsonl", *words])
    assert [file.name for file in tmp_path.iterdir()] == ["q.jsonl"]


def test_predict_refuses_an_output_that_one_question_would_ignore(tmp_path):
    with pytest.raises(UserError, match="--output is for --questions"):
        predict.main(["--question", "What?", "--output", str(tmp_path / "a.jsonl")])


def test_predict_shows_a_model_folder_pictures_as_its_processor_says_and_knows_a_model_that_changed(run, tmp_path):
    folder, output = export.export(run, tmp_path / "mine"), tmp_path / "a.jsonl"
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"]["size"] = {"shortest_edge": 224 * 224, "longest_edge": 224 * 224}
    file.write_text(json.dumps(settings))
    arguments = predict.parser().parse_args(["--question", "What?", "--checkpoint", str(folder)])
    model = predict.Answerer(arguments, str(folder))._config.model
    assert (model.min_pixels, model.max_pixels) == (224 * 224, 224 * 224)
    (tmp_path / "q.jsonl").write_text('{"problem": "What?", "problem_type": "free-form"}\n')
    words = ["--questions", str(tmp_path / "q.jsonl"), "--output", str(output), "--checkpoint", str(folder)]
    predict.main(words)
    predict.main(words)
    os.utime(folder / "model.safetensors", (1, 1))
    with pytest.raises(UserError, match="or of another model"):
        predict.main(words)
    output.write_text("[1]\n")
    with pytest.raises(UserError, match="is no file of answers"):
        predict.main(words)


def test_an_answer_names_its_option_however_options_are_labelled():
    for labelled in (("A. a cat", "B. a dog"), ("(A) a cat", "(B) a dog"), ("A) a cat", "B) a dog")):
        asked = Sample("x", "What?", labelled, "")
        assert predict.meaning("<answer>B</answer>", asked, Match.lenient) == labelled[1]


def test_what_an_answer_means_is_what_the_reward_reads():
    asked = Sample("x", "What?", ("A. a cat", "B. a dog"), "")
    assert predict.meaning("<answer>B. a dog</answer>", asked, Match.exact) is None
    assert predict.meaning("I say B", asked, Match.first_letter) == "B. a dog"
    counted = replace(asked, problem_type=ProblemType.counting)
    assert predict.meaning("<answer>3</answer>", counted, Match.lenient) == "3", "its options are no letters to read"


@pytest.mark.parametrize(
    ("rows", "output", "message"),
    [
        ("", "a.jsonl", "holds no question"),
        ('{"problem": "What?", "problem_type": "free-form"}', "gone/a.jsonl", "no such folder: .*gone"),
        ('{"problem": "What?", "problem_type": "free-form"}', "q.jsonl", "holds an answer to another question None"),
    ],
)
def test_predict_says_what_is_wrong_with_a_file_of_questions_or_of_answers(tmp_path, rows, output, message):
    (tmp_path / "q.jsonl").write_text(rows + "\n")
    with pytest.raises(UserError, match=message):
        predict.main(["--questions", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / output)])


def test_predict_writes_no_place_over_and_leaves_a_file_of_answers_to_one_process(run, dataset, tmp_path, capsys):
    row = json.loads((dataset / "omni_rl_format_valid.json").read_text())[0]
    row["path"] = {name: str(dataset / "valid" / path) for name, path in row["path"].items()}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    asks = ["--checkpoint", str(run), "--questions", str(tmp_path / "q.jsonl"), "--outside", str(dataset), "--output"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is no ordinary file"):
        predict.main([*asks, str(tmp_path / "pipe")])
    (tmp_path / "link").symlink_to(tmp_path / "answers.jsonl")
    with FileLock(tmp_path / ".answers.jsonl.lock"), pytest.raises(UserError, match="another process writes to"):
        predict.main([*asks, str(tmp_path / "link")])
    predict.main([*asks, str(tmp_path / "link")])
    assert (tmp_path / "link").is_symlink() and len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1


def test_rescore_leaves_a_line_out_that_is_cut_within_a_character(run, tmp_path, capsys):
    whole = (run / "predictions.jsonl").read_bytes().split(b"\n")
    (tmp_path / "p.jsonl").write_bytes(b"\n".join([*whole[:2], '{"id": "é'.encode()[:-1]]))
    assert len(rescore.rescore(tmp_path / "p.jsonl", rescore.RewardKeys())[0]) == 2
    assert "is cut off and left out" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("text", ["", "model: [", "- 1\n"])
def test_an_emptied_configuration_of_a_run_is_named_by_every_command(run, tmp_path, text):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "config.yaml").write_text(text)
    asks = ["--image", str(tmp_path), "--question", "What?", "--options", "a", "b"]
    for ask in (
        lambda: export.export(str(copy), tmp_path / "out"),
        lambda: opening.store_of(copy),
        lambda: predict.main(["--checkpoint", str(copy), *asks]),
        lambda: rescore.rescore(copy, rescore.RewardKeys()),
    ):
        with pytest.raises(UserError, match=r"config\.yaml is empty or damaged\n"):
            ask()


def test_a_blank_for_a_dot_is_no_success():
    done = command("echoink", "train", "experiment=quickstart")
    assert done.returncode == 2 and "python -m echoink.train, with a dot" in done.stderr
    assert command("echoink").returncode == 0


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (rescore.main, ["x", "output=~/new.jsonl"], r"output=~/new.jsonl: ~ is not expanded here\n.*output=\$HOME/new"),
        (reporting.main, ["x", "output=~/r"], "~ is not expanded here"),
        (reporting.main, ["x", "output="], "output= is empty"),
        (tiny.main, ["kinds=[foo]"], r"kinds=\['foo'\]: no kind foo\n.*ear"),
        (tiny.main, ["kinds=[]"], "it is empty"),
        (tiny.main, ["pool=0"], "pool=0 must be >= 1"),
        (tiny.main, ["shortcut=ears"], "shortcut=ears is no cue"),
        (tiny.main, ["sloppiness.slip=-3"], "sloppiness.slip=-3.0 must be >= 0"),
        (tiny.main, ["sloppiness.haste.ear=40"], "sloppiness.haste.ear=40.0 must be between 0 and 1"),
        (tiny.main, ["output=."], "output=. has no name"),
        (datasets_of_ours.main, ["show", "output=~/x"], "~ is not expanded here"),
        (datasets_of_ours.main, ["get", "avqa_r1_6k", "n=4"], "cannot read"),
        (curating.main, ["source=x", "output=y", "splits=[]"], "nothing is curated"),
        (curating.main, ["source=x", "output=y", "expect=[4490]"], "expect has 1 numbers, and there are 2 splits"),
    ],
)
def test_settings_of_commands_are_checked_before_anything_is_written(main, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(words)
    assert not any(tmp_path.iterdir())


def test_rescore_judges_stored_answers_again(run, tmp_path, capsys):
    file = run / "predictions.jsonl"
    own = tmp_path / "mine.py"
    own.write_text("def reward(completion, sample):\n    return len(completion) / 1000\n")
    before, after, clocks = rescore.rescore(file, rescore.RewardKeys(Match.exact, str(own)))
    clock = clocks["custom"]
    assert clock.slowest > 0 and clock.of in {p.id for p in before}
    assert [p.completion for p in before] == [p.completion for p in after]
    assert all(p.custom == len(p.completion) / 1000 for p in after)
    rescore.main([str(file), "reward.match=exact", f"output={tmp_path}/new.jsonl"])
    shown = capsys.readouterr().out
    assert "accuracy, sampled" in shown and "answers are judged differently" in shown and "gain" in shown
    read = sum(bool(p.letters) for p in before)
    said = f"{read} of {len(before)} answers are judged differently: 0 became right, 0 wrong"
    assert read and rescore._changed(before, [replace(p, letters="") for p in before]) == said, "none can be read"
    assert len((tmp_path / "new.jsonl").read_text().splitlines()) == len(after)
    for words, message in (
        ([str(file), "reward.match=loose"], "lenient"),
        ([str(tmp_path / "gone.jsonl")], "no such file"),
        ([], "give one predictions.jsonl"),
    ):
        with pytest.raises(UserError, match=message):
            rescore.main(words)


def test_rescore_says_that_a_stopped_evaluation_has_fewer_samples(run, tmp_path, capsys):
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    last = [row["id"] for row in rows][-1]
    some = [row for row in rows if row["phase"] == "base" or row["id"] != last]
    (tmp_path / "predictions.jsonl").write_text(as_lines(some))
    rescore.main([str(tmp_path)])
    said = " ".join(capsys.readouterr().out.split())
    assert "samples 8 7" in said and "the gain is over the 7 samples that both have answered" in said


def test_rescore_reads_answers_as_the_run_did_unless_told_otherwise(run, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("predictions.jsonl", "config.yaml"):
        shutil.copy(run / name, folder)
    config = (folder / "config.yaml").read_text()
    assert "match: lenient" in config
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    rows = [row | {"completion": f"<answer>({row['gold'][0]})</answer>"} for row in rows]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    right = []
    for match in (Match.lenient, Match.exact):
        (folder / "config.yaml").write_text(config.replace("match: lenient", f"match: {match.name}"))
        _, after, _ = rescore.rescore(folder, rescore.RewardKeys())
        assert f"{match.name}, as " in " ".join(capsys.readouterr().out.split())
        assert after == rescore.rescore(folder, rescore.RewardKeys(match))[1]
        right.append(sum(p.correct for p in after))
    assert right[0] > right[1]
    public = config.replace("protocol: matched", "protocol: release")
    (folder / "config.yaml").write_text(public)
    (folder / "predictions.jsonl").write_text(
        "".join(
            json.dumps(rows[0] | {"phase": phase, "completion": "I say B", "gold": "B"}) + "\n"
            for phase in ("base", "final", "step-2")
        )
    )
    _, after, _ = rescore.rescore(folder, rescore.RewardKeys())
    assert {p.phase: p.correct for p in after} == {"base": True, "final": True, "step-2": False}, "as the run read them"


def test_rescore_shows_the_development_split_apart_and_keeps_rewards_that_are_not_given(run, tmp_path, capsys):
    row = json.loads((run / "predictions.jsonl").read_text().splitlines()[0])
    row |= {"variant": "full", "custom": 0.25, "rewards": {"mine": 0.5}}
    rows = [row | {"phase": "final", "draw": draw} for draw in ("sampled", "sampled-2")]
    rows += [row | {"phase": "base", "draw": "greedy"}, row | {"phase": "step-1", "draw": "sampled"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    _, after, _ = rescore.rescore(file, rescore.RewardKeys())
    assert {p.custom for p in after} == {0.25} and {p.rewards["mine"] for p in after} == {0.5}
    rescore.main([str(file)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "the second table is of the development split, 1 evaluation" in shown
    assert "(mean of 2 draws)" in shown and "mean of 2 draws" in shown and "step-1 accuracy" in shown


def test_rescore_takes_greedy_answers_alone_and_looks_for_its_output_first(run, tmp_path, capsys):
    row = json.loads((run / "predictions.jsonl").read_text().splitlines()[0]) | {"draw": "greedy", "variant": "full"}
    file, own, output = tmp_path / "greedy.jsonl", tmp_path / "long.py", tmp_path / "new.jsonl"
    file.write_text(json.dumps(row) + "\n")
    own.write_text("def reward(completion, sample):\n    return 1.0\n")
    rescore.main([str(file), f"reward.file={own}"])
    assert "every answer is greedy" in " ".join(capsys.readouterr().out.split())
    output.touch()
    with pytest.raises(UserError, match="is there already"):
        rescore.main([str(file), f"output={output}"])
    with pytest.raises(UserError, match="no such folder"):
        rescore.main([str(file), f"output={tmp_path}/nowhere/new.jsonl"])
    assert "accuracy" not in capsys.readouterr().out


@pytest.mark.parametrize("word", ["output=@x", "output=%x", "output=[x"])
def test_a_word_that_yaml_cannot_read_is_an_error_of_ours(run, word):
    with pytest.raises(UserError, match=re.escape(f"cannot read {word}")):
        rescore.main([str(run), word])


def test_a_file_whose_name_reads_like_a_number_keeps_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rescore.main([str(run), "output=1.10"])
    assert (tmp_path / "1.10").is_file()


def test_rescore_asks_a_reward_about_the_sample_that_training_shows_it(run, tmp_path):
    """With its media and its type; and a line that a kill has cut off is none."""
    file, own = tmp_path / "k=v.jsonl", tmp_path / "mine.py"
    file.write_bytes((run / "predictions.jsonl").read_bytes() + b'{"phase": "fi')
    own.write_text(
        "def reward(completion, sample):\n"
        "    return float(sample.audio is not None) + float(sample.problem_type.value == 'multiple choice')\n"
    )
    _, after, _ = rescore.rescore(file, rescore.RewardKeys(file=str(own)))
    assert after and {p.custom for p in after} == {2}
    rescore.main([str(file), f"reward.file={own}"])


def test_rescore_takes_several_files_and_goes_on_where_one_fails(run, tmp_path, capsys):
    (tmp_path / "short.py").write_text("def reward(completion, sample):\n    return float(len(completion) < 60)\n")
    bad = "def reward(completion, sample):\n    return 0.0 if len(completion) < 45 else 1 / 0\n"
    (tmp_path / "bad.py").write_text(bad)
    files = f"reward.files=[{{path: {tmp_path}/short.py}}, {{path: {tmp_path}/bad.py, name: broken}}]"
    with pytest.raises(UserError, match="reward.on_error=zero goes on"):
        rescore.main([str(run), files])
    rescore.main([str(run), files, "reward.on_error=zero"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "short " in shown and "broken" in shown and "0 to 0, median 0" in shown


def test_rescore_refuses_the_names_that_training_refuses(run, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def reward(completion, sample):\n    return 1.0\n")
    for given, name in (
        ([f"reward.files=[{{path: {own}}}, {{path: {own}}}]"], "own"),
        ([f"reward.file={own}", f"reward.files=[{{path: {own}, name: custom}}]"], "custom"),
    ):
        with pytest.raises(UserError, match=f"the name {name} is taken"):
            rescore.main([str(run), *given])


def test_rescore_says_what_a_reward_of_ones_own_would_teach(run, tmp_path, capsys):
    """Four draws of three samples by hand: alike in one group, different in two; longer answers are the right ones."""
    row = json.loads((run / "predictions.jsonl").read_text().splitlines()[0]) | {"phase": "final", "variant": "full"}
    letter = row["gold"][0]
    right, wrong = f"<think>long thought</think><answer>{letter}</answer>", "<answer>?</answer>"
    drawn = {"1": [right, wrong, wrong, right], "2": [wrong] * 4, "3": [right, right, right, wrong]}
    rows = [
        {**row, "id": id, "draw": f"sampled-{place}" if place else "sampled", "completion": text}
        for id, texts in drawn.items()
        for place, text in enumerate(texts)
    ]
    file, own = tmp_path / "rows.jsonl", tmp_path / "long.py"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    own.write_text("def reward(completion, sample):\n    return float(len(completion) > 30)\n")
    rescore.main([str(file), f"reward.file={own}"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "12 answers: 0 to 1, median 0 [0, 1], mean 0.417 · most often 0 in 58.3 % · 1 in 41.7 %" in shown
    assert "it differs in 2 of 3 groups (66.7 %)" in shown and "correlation with accuracy +1.00" in shown
    assert "slowest call" in shown
    own.write_text("def reward(completion, sample):\n    return 0.5\n")
    file.write_text(json.dumps(rows[0]) + "\n")
    rescore.main([str(file), f"reward.file={own}"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "one answer a sample" in shown and "none, one of them never changes" in shown


@pytest.mark.parametrize(
    "name",
    ["data", "predict", "doctor", "open", "report", "runs", "sync", "benchmark"],
)
def test_every_command_has_help(name):
    done = command(f"echoink.{name}", "--help")
    assert done.returncode == 0 and f"echoink.{name}" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["train", "export"])
def test_a_screen_that_lacks_characters_gets_others(name, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = subprocess.run([sys.executable, "-m", f"echoink.{name}", "--help"], capture_output=True, check=True)
    assert b"?" in done.stdout and done.stdout.isascii()


def test_a_run_says_lambda_on_a_screen_that_lacks_it(monkeypatch, tmp_path):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", screen)
    startup.take_any_text()
    screen.write("λ_acc 1")
    screen.flush()
    assert screen.buffer.getvalue() == b"?_acc 1"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("echoink.curate", r"keep=\[AVQA\] +values of the rows' `source` that are kept"),
        ("echoink.curate", "OmniInstruct-v1"),
        ("echoink.curate mode=difficulty", r"pass_rate=\[0.0, 0.75\] +lowest and highest share of right answers"),
        ("echoink.curate mode=traces", r"order=shortest +which responses are kept first \(shortest, diverse\)"),
        ("echoink.export", r"output=\?\?\? +the new folder"),
        ("echoink.rescore", r"reward.on_error=stop +what happens if a reward fails \(stop, zero\)"),
        ("echoink.small", r"copies=12 +variants of each recording \(≥ 1\)"),
        ("echoink.tiny", "sloppiness.slip=0.25 +share that reasons"),
        ("echoink.data check", "dataset.path="),
        ("echoink.data get open_media", "valid=1000 +validation questions of each split"),
    ],
)
def test_the_help_of_a_command_says_what_each_setting_means(words, line):
    done = command(*words.split(), "--help")
    assert done.returncode == 0 and words.split()[0] in done.stdout and re.search(line, done.stdout)


def test_getting_open_media_has_help_of_its_own():
    done = command("echoink.data", "get", "open_media", "--help")
    assert (
        done.returncode == 0 and "mirror" in done.stdout and "seed" in done.stdout and "data split" not in done.stdout
    )
