"""Checkpoints: whole or absent, and found by the folder that a person names."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from echoink.common.errors import UserError
from echoink.models.loading import load_model, load_processor
from echoink.run_folder import checkpoint
from echoink.runs import unfinished_sweeps
from echoink.tracking.client import read_record
from tests.helpers.configs import config_of


def write(folder):
    (folder / "config.json").write_text("{}")


def test_saves_keeps_the_newest_and_resolves(tmp_path):
    for step in (2, 10, 9, 20):
        checkpoint.save(tmp_path, step, write, keep=2)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-10", "step-20"]
    newest = str(tmp_path / "checkpoints/step-20")
    assert checkpoint.resolve(str(tmp_path)) == checkpoint.resolve(newest) == newest


def test_a_model_that_has_changed_since_it_was_saved_is_not_used(tmp_path):
    def weights(folder):
        write(folder)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "optimizer.pt").write_bytes(b"moments")

    checkpoint.save(tmp_path, 1, weights, keep=1)
    step = tmp_path / "checkpoints/step-1"
    (step / "optimizer.pt").write_bytes(b"other")  # which only training needs
    assert checkpoint.resolve(str(tmp_path)) == checkpoint.resolve(str(step)) == str(step)
    (step / "model.safetensors").write_bytes(b"weightz")
    for given in (tmp_path, step):
        with pytest.raises(UserError, match=r"damaged: model.safetensors has changed(.|\n)*remove its manifest.json"):
            checkpoint.resolve(str(given))
    (step / "manifest.json").unlink()
    assert checkpoint.resolve(str(step)) == str(step)


def test_an_old_checkpoint_that_cannot_be_removed_fails_no_save(tmp_path, monkeypatch):
    """Another process reads it: NFS keeps the files, and the folder is not empty."""

    def stays(folder, ignore_errors=False):
        if not ignore_errors:
            raise OSError(39, "Directory not empty")

    monkeypatch.setattr(checkpoint.shutil, "rmtree", stays)
    for step in (1, 2):
        checkpoint.save(tmp_path, step, write, keep=1)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-2"]
    checkpoint.tidy(tmp_path)


def test_a_note_that_a_crash_has_emptied_is_named(tmp_path):
    checkpoint.save(tmp_path, 1, write, keep=1)
    for file, read in (
        (tmp_path / "checkpoints/best.json", checkpoint.best),
        (tmp_path / "tracking.json", read_record),
    ):
        file.touch()
        with pytest.raises(UserError, match=f"{file} is damaged"):
            read(tmp_path)
    (tmp_path / "sweep/0").mkdir(parents=True)
    (tmp_path / "sweep/sweep.json").touch()
    assert unfinished_sweeps([tmp_path]) == []


def test_a_checkpoint_without_a_readable_manifest_stays_damaged(tmp_path):
    def files(folder: Path) -> None:
        for name in ("model.safetensors", *checkpoint.STATE):
            (folder / name).write_text(name)

    first = checkpoint.save(tmp_path, 1, files, keep=9)
    (first / checkpoint.MANIFEST).write_text("{")
    for step in (2, 3):  # only the newest keep what training resumes from
        checkpoint.save(tmp_path, step, files, keep=9)
    assert "manifest.json" in checkpoint.damage(first) and (first / "optimizer.pt").is_file()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither a model folder nor a run"):
        checkpoint.resolve(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.resolve(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.resolve("outputs/typo")
    assert checkpoint.resolve("Qwen/Qwen2.5-Omni-7B") == "Qwen/Qwen2.5-Omni-7B"


def test_a_folder_that_is_no_omni_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="is a gpt2"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load a model from"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="cannot load a model from"):
        load_processor(str(tmp_path), 784, 784)


def test_broken_and_mismatched_weights_are_one_clear_error(tmp_path):
    model = load_model("tiny")
    model.save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot load a model from"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(whole)
    config = (tmp_path / "config.json").read_text()
    assert '"intermediate_size": 384' in config
    (tmp_path / "config.json").write_text(config.replace('"intermediate_size": 384', '"intermediate_size": 380'))
    with pytest.raises(UserError, match=r"in another shape, 9 weights of the model: .*mlp"):
        load_model(str(tmp_path))


def test_a_model_that_is_stored_quantized_is_refused(tmp_path):
    load_model("tiny").save_pretrained(tmp_path)
    load_processor("tiny", 12_544, 12_544).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    file.write_text(json.dumps(json.loads(file.read_text()) | stored))
    with pytest.raises(UserError, match="is stored quantized"):
        load_model(str(tmp_path))


def test_a_full_omni_checkpoint_gives_its_thinker(tmp_path):
    """As Qwen publishes them: thinker., talker. and token2wav. weights, a nested configuration."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

    thinker = load_model("tiny")
    speaks = {
        "hidden_size": 32,
        "head_dim": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "embedding_size": 128,
        "rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]},
    }
    sounds = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ff_mult": 2,
        "emb_dim": 16,
        "head_dim": 16,
        "enc_dim": 16,
        "enc_emb_dim": 16,
        "enc_channels": [16, 16, 16, 16, 48],
        "enc_attention_channels": 8,
        "enc_res2net_scale": 2,
        "enc_se_channels": 8,
        "num_embeds": 64,
    }
    waves = {
        "upsample_initial_channel": 16,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
        "upsample_rates": [2],
        "upsample_kernel_sizes": [4],
    }
    full = Qwen2_5OmniForConditionalGeneration(
        Qwen2_5OmniConfig(
            thinker_config=thinker.config.to_dict(),
            talker_config=speaks,
            token2wav_config={"dit_config": sounds, "bigvgan_config": waves},
            enable_audio_output=True,
        )
    )
    full.thinker.load_state_dict(thinker.state_dict())
    full.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is type(thinker) and loaded.num_parameters() < full.num_parameters()
    for name, value in thinker.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("lm_head.weight"), r"lacks 1 weights of the model: lm_head\.weight"),
        (lambda state: state.update({"model.extra.weight": torch.zeros(2)}), r"unexpected 1 .*model\.extra\.weight"),
        (lambda state: state.update({"lm_head.weight": torch.zeros(8, 128)}), "lm_head.weight"),
    ],
    ids=["missing", "unexpected", "another shape"],
)
def test_weights_that_do_not_belong_are_named(tmp_path, edit, message):
    from safetensors.torch import save_file

    thinker = load_model("tiny")
    thinker.save_pretrained(tmp_path)
    state = {name: value.contiguous() for name, value in thinker.state_dict().items()}
    edit(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path))


def test_precision_attention_and_freezing_are_as_asked(model):
    loaded = load_model("tiny", "bfloat16", "eager", ("vision",))
    assert loaded.dtype == torch.bfloat16 and loaded.config._attn_implementation == "eager"
    assert not any(parameter.requires_grad for parameter in loaded.model.visual.parameters())
    assert all(parameter.requires_grad for parameter in loaded.model.audio_tower.parameters())
    assert model.dtype == torch.float32 and all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapters_checkpoint_is_a_model_that_can_be_trained_again(model, tmp_path):
    from peft import get_peft_model

    from echoink.models.loading import load_model, lora

    adapted = get_peft_model(model, lora(4, 8, 0.0, ("q_proj",)))
    adapted.save_pretrained(tmp_path)
    merged = load_model(str(tmp_path), freeze=("audio",))
    learning = {name for name, parameter in merged.named_parameters() if parameter.requires_grad}
    assert any("visual" in name for name in learning) and any("language_model" in name for name in learning)
    assert not any("audio_tower" in name or "lora" in name for name in learning)


def test_a_broken_adapter_is_one_clear_error(model, tmp_path):
    from peft import get_peft_model

    from echoink.models.loading import load_model, lora

    get_peft_model(model, lora(4, 8, 0.0, ("q_proj",))).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot load a model from"):
        load_model(str(tmp_path))
    config = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config.replace('"tiny"', '"gone/away"'))
    with pytest.raises(UserError, match="was trained on gone/away"):
        load_model(str(tmp_path))


def adapter(model, folder, size=1e-3):
    """A checkpoint of an adapter whose update is so much of its weights."""
    from peft import get_peft_model

    from echoink.models.loading import lora

    adapted = get_peft_model(model, lora(4, 8, 0.0, ("q_proj",)))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                weight.normal_(0, size, generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(folder)
    load_processor("tiny", 112 * 112, 112 * 112).save_pretrained(folder)
    return adapted


def test_an_adapter_is_asked_in_bfloat16_as_it_was_trained_beside_its_base(tmp_path):
    """Of a sum in bfloat16 half an update of a thousandth is lost."""
    from echoink.models.loading import load_model
    from echoink.training.setup import load_for_inference

    trained = adapter(load_model("tiny", "bfloat16"), tmp_path)
    ids, config = torch.arange(5, 25)[None], config_of("model.dtype=bfloat16", "task=eval")

    def says(model):
        with torch.no_grad():
            return model(input_ids=ids).logits.float()

    asked = load_for_inference(config, str(tmp_path)).model
    assert torch.equal(says(asked), says(trained)), "digit for digit"
    merged = load_for_inference(config, str(tmp_path), learns=True).model
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert not torch.equal(says(merged), says(trained))
    whole = load_for_inference(config_of(), str(tmp_path)).model
    assert not any("lora" in name for name, _ in whole.named_parameters()), "a sum in float32 keeps all of it"


def test_an_adapter_whose_weights_have_other_names_is_not_taken_for_its_base(model, tmp_path):
    from safetensors.torch import load_file, save_file

    from echoink.models.loading import load_model

    adapter(model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    for changed in (
        {name.replace("base_model.model.", "base_model.model._orig_mod."): weight for name, weight in weights.items()},
        {name: weight for name, weight in weights.items() if ".layers.0." not in name},
    ):
        save_file(changed, file)
        with pytest.raises(UserError, match=r"lacks \d+ weights of the model, such as .*lora_"):
            load_model(str(tmp_path))
    whole = {name.replace(".model.model.", ".model.thinker.model."): weight for name, weight in weights.items()}
    save_file(whole, file)
    with pytest.raises(UserError, match=r"was trained on the whole Omni model(.|\n)*merge it into that model"):
        load_model(str(tmp_path))


def test_an_adapter_is_exported_alone_only_where_its_base_is_a_whole_model(model, tmp_path):
    from echoink.models.loading import load_model
    from echoink.pipeline import export

    adapter(model, tmp_path / "one")
    adapter(load_model(str(tmp_path / "one")), tmp_path / "two")
    config = tmp_path / "two/adapter_config.json"
    settings = json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "one")}
    config.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="is on top of another one, .*/one"):
        export.export(tmp_path / "two", tmp_path / "out", merge=False)
    load_model("tiny").save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="merge=false is for adapters"):
        export.export(tmp_path / "whole", tmp_path / "out", merge=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("targets", "wrong"), [(("q_prj",), "q_prj"), ((), "empty")])
def test_an_adapter_without_a_place_is_refused(model, targets, wrong):
    from echoink.models.loading import check_targets

    with pytest.raises(UserError, match=f"adapter.targets: {wrong}.*\n.*q_proj"):
        check_targets(model, targets)


def test_the_best_checkpoint_is_kept_and_chosen_and_one_that_is_gone_is_not(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, write, keep=1)
        if step == 1:
            checkpoint.note_best(tmp_path, {"step": 1, "accuracy": 0.9})
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-1", "step-3"]
    assert checkpoint.resolve(str(tmp_path)) == str(tmp_path / "checkpoints/step-1")
    checkpoint.note_best(tmp_path, {"step": 7, "accuracy": 0.9})
    assert checkpoint.best(tmp_path) is None and checkpoint.resolve(str(tmp_path)).endswith("step-3")


def test_a_step_may_be_saved_again(tmp_path):
    checkpoint.save(tmp_path, 1, write, keep=1)
    checkpoint.save(tmp_path, 1, lambda folder: (folder / "config.json").write_text('{"x": 1}'), keep=1)
    assert json.loads((tmp_path / "checkpoints/step-1/config.json").read_text()) == {"x": 1}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_an_adapter_alone_has_a_card_that_warns_of_vllm(model, tmp_path, monkeypatch):
    from echoink.models import loading
    from echoink.pipeline import export

    places, load = [], loading.load_model

    def noted(path, *words, **more):
        places.append(more.get("device"))
        return load(path, *words, **more)

    monkeypatch.setattr(loading, "load_model", noted)
    adapter(model, tmp_path / "step")
    export.export(tmp_path / "step", tmp_path / "alone", merge=False)
    export.export(tmp_path / "step", tmp_path / "merged")
    assert "it would answer as the base, without an error" in (tmp_path / "alone/README.md").read_text()
    assert "it would answer as the base" not in (tmp_path / "merged/README.md").read_text()
    assert set(places) == {torch.device("cpu")}, "a run that pushes at its end still uses the GPU"


def test_a_directory_that_cannot_be_flushed_costs_no_checkpoint(tmp_path, monkeypatch):
    """As on some network file systems; a file that cannot be flushed does."""
    flush = os.fsync

    def refuses(descriptor, files=False):
        if files or os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuses)
    assert checkpoint.damage(checkpoint.save(tmp_path, 1, write, keep=1)) is None
    monkeypatch.setattr(os, "fsync", lambda descriptor: refuses(descriptor, files=True))
    with pytest.raises(OSError, match="Invalid argument"):
        checkpoint.save(tmp_path, 2, write, keep=1)
