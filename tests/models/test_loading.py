"""Where weights go while they are read, and which of them learn."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from echoink import doctor
from echoink.common.errors import UserError
from echoink.config.paths import TINY
from echoink.models import fingerprint, loading
from echoink.models.encoders import towers_learn
from echoink.models.registry import FAMILIES
from echoink.models.shared_prefix import pack
from echoink.planning import plan
from tests.helpers.configs import config_of


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_weights_are_read_to_the_device_and_not_all_to_the_host_first(monkeypatch, device):
    """Eight processes that each hold a 7B in float32 on the host want 264 GiB of it."""
    asked = {}

    def from_pretrained(*_, **settings):
        asked.update(settings)
        raise ValueError("asked enough")

    (family,) = FAMILIES.values()
    monkeypatch.setattr(family, "MODEL", SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setattr(loading, "processes", lambda: SimpleNamespace(device=torch.device(device)))
    with pytest.raises(UserError, match="asked enough"):
        loading.load_model("tiny")
    assert asked.get("device_map") == (None if device == "cpu" else {"": torch.device("cuda:1")})


@pytest.mark.parametrize(
    ("freeze", "learns"),
    [
        ((), {"language_model", "audio_tower", "audio_tower.proj", "visual", "visual.merger", "lm_head"}),
        (("audio",), {"language_model", "visual", "visual.merger", "lm_head"}),
        (("language", "audio_encoder"), {"audio_tower.proj", "visual", "visual.merger"}),
        (("language", "audio_encoder", "vision_encoder"), {"audio_tower.proj", "visual.merger"}),
        (("vision_encoder",), {"language_model", "audio_tower", "audio_tower.proj", "visual.merger", "lm_head"}),
    ],
)
def test_what_is_frozen_does_not_learn_and_the_plan_counts_what_does(freeze, learns):
    model = loading.load_model("tiny", freeze=freeze)
    found = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.removeprefix("model.").split(".")[0]
            projection = next((p for p in ("audio_tower.proj", "visual.merger") if f"{p}." in name), None)
            found.add(projection or part)
    assert found == learns
    config = config_of(f"model.freeze=[{','.join(freeze)}]")
    counted = plan.count_parameters(config)["learning"]
    assert counted == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert towers_learn(model.model) == any(part.startswith(("audio", "visual")) for part in learns)


def test_a_frozen_language_model_hands_the_gradient_on_to_the_projections(processor, samples):
    model = loading.load_model("tiny", freeze=("language", "audio_encoder", "vision_encoder"))
    packed = pack([processor(samples[0])], [[torch.tensor([5, 6, 7])]])
    hidden = model.model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        layout=packed.layout,
        prompts=[processor(samples[0])],
    ).last_hidden_state
    model.lm_head(hidden).logsumexp(-1).sum().backward()
    given = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert given and all(".proj." in name or ".merger." in name for name in given)
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("ask", [loading.picture_caps, lambda path: loading.load_processor(path, 1, 2)])
def test_a_model_without_its_processor_is_refused(tmp_path, ask):
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"has no processor, only a"):
        ask(str(tmp_path))


def test_a_template_that_is_saved_with_the_tokenizer_alone_is_used_and_none_is_refused(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        loading.load_processor(str(folder), 1, 2)
    assert doctor._is_there(str(folder))[0] is doctor.Verdict.bad
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    assert loading.load_processor(str(folder), 1, 2).chat_template == template
    assert doctor._is_there(str(folder))[0] is doctor.Verdict.good


def test_a_gpu_that_is_full_is_not_called_a_broken_model(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", full)
    with pytest.raises(UserError, match="tiny does not fit into the GPU's memory: CUDA out of memory"):
        loading.load_model("tiny")


def test_a_models_settings_are_told_apart_and_where_it_lies_is_not(model, tmp_path):
    digest = fingerprint.settings_digest(model)
    model.save_pretrained(tmp_path)
    assert fingerprint.settings_digest(loading.load_model(str(tmp_path))) == digest
    model.config.text_config.rms_norm_eps *= 2
    assert fingerprint.settings_digest(model) != digest
