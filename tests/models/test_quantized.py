"""4-bit weights on the same path: what is quantized, that it learns, that its checkpoint is what was trained."""

import pytest
import torch
from peft import PeftModel

from echoink.common.errors import UserError
from echoink.models.loading import load_model, load_processor, lora
from tests.helpers.configs import config_of

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.fixture
def quantized():
    return load_model("tiny", quantized="float32")


def test_the_language_model_alone_is_held_in_4_bits(quantized):
    kinds = {name: type(module) for name, module in quantized.named_modules() if isinstance(module, torch.nn.Linear)}
    language = {name for name in kinds if ".language_model." in name}
    assert len(language) == 21 and all(issubclass(kinds[name], bitsandbytes.nn.Linear4bit) for name in language)
    assert not any(issubclass(kinds[name], bitsandbytes.nn.Linear4bit) for name in kinds.keys() - language)
    bytes_held = sum(module.weight.nbytes for name, module in quantized.named_modules() if name in language)
    assert bytes_held == sum(module.weight.numel() for name, module in quantized.named_modules() if name in language)
    whole = {name: module.weight.numel() for name, module in load_model("tiny").named_modules() if name in language}
    assert bytes_held == sum(whole.values()) // 2


def test_it_learns_after_it_was_evaluated_and_the_shared_prefix_is_exact(quantized, processor, samples):
    """Evaluation first: bitsandbytes may repack weights then. Packed rows against plain rows, gradients too."""
    from trl.trainer.utils import add_fused_lm_head

    from echoink.models import logprobs
    from echoink.models.batching import prompt_batch
    from echoink.models.encoders import encode_media
    from echoink.models.logprobs import packed_logprobs

    quantized.requires_grad_(False)
    model = PeftModel(quantized, lora(4, 8, 0.0, ["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    add_fused_lm_head(quantized, outputs=("log_probs", "entropy"))
    prompts, prompt_index = [processor(samples[0])], [0, 0]
    completions = torch.randint(20, 400, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 6).bool()
    features = encode_media(quantized.model, prompts)
    model.eval()
    with torch.no_grad():
        packed_logprobs(model, prompts, features, prompt_index=prompt_index, completion_ids=completions, scored=mask)
    model.train()
    gradients, logps = [], []
    for packed in (True, False):
        model.zero_grad()
        if packed:
            found = packed_logprobs(
                model, prompts, features, prompt_index=prompt_index, completion_ids=completions, scored=mask
            )[0]
        else:
            batch = prompt_batch([prompts[0]] * 2)
            ids = torch.cat([batch["input_ids"], completions], 1)
            ones = torch.cat([batch["attention_mask"], mask.long()], 1)
            found = logprobs.plain_row_logprobs(
                model, prompts, prompt_index, input_ids=ids, attention_mask=ones, completion_width=6
            )[0]
        found.sum().backward()
        logps.append(found.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.allclose(*logps, atol=1e-4)
    assert gradients[0].abs().max() > 0
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[0].norm()


def test_its_checkpoint_stays_beside_the_4_bit_weights(quantized, samples, processor, tmp_path):
    quantized.requires_grad_(False)
    model = PeftModel(quantized, lora(4, 8, 0.0, ["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    inputs = load_processor("tiny", 12_544, 12_544).tokenizer("what is heard?", return_tensors="pt")
    with torch.no_grad():
        trained = model.eval()(**inputs).logits
        again = load_model(str(tmp_path), quantized="float32").eval()(**inputs).logits
        merged = load_model(str(tmp_path)).eval()(**inputs).logits
    assert torch.allclose(again, trained, atol=1e-5)
    assert (merged - trained).abs().max() > 1e-3, "the base's weights are not those that it was trained on"


def test_without_bitsandbytes_the_way_out_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"pip install bitsandbytes"):
        load_model("tiny", quantized="float32")


def test_under_bfloat16_its_linear_layers_compute_in_bfloat16():
    from dataclasses import replace

    from echoink.training.setup import load_for_inference

    config = config_of("adapter=qlora")
    for bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        model = load_for_inference(replace(config, trainer=replace(config.trainer, bf16=bf16)), "tiny").model
        assert model.model.language_model.layers[0].self_attn.q_proj.compute_dtype is dtype
