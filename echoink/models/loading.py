"""Loads the policy, its reference and its processor: the thinker of Qwen2.5-Omni, no talker, no edited config.json."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
)
from transformers.distributed import DistributedConfig

from echoink.common.errors import UserError
from echoink.config.paths import resolve
from echoink.data.processor import as_user_error
from echoink.distributed import sharding
from echoink.distributed.process_group import processes
from echoink.models.shared_prefix import install

TOWERS = {"audio": "audio_tower", "vision": "visual"}
"""Names for `model.freeze` and the modules they stand for."""

OTHER_PARTS = ("talker.", "token2wav.")
"""Weights of a full Omni checkpoint that the thinker does without."""


def is_adapter(path: str) -> bool:
    """Whether a folder holds an adapter's checkpoint."""
    return (Path(path) / "adapter_config.json").is_file()


def load_model(
    path: str,
    dtype: str = "float32",
    attention: str = "sdpa",
    freeze: tuple[str, ...] = (),
    quantized: bool = False,
    divided: DistributedConfig | None = None,
) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """The thinker of a model folder or hub id, in training-ready precision, able to share prompts.

    A full Omni checkpoint (thinker., talker. and token2wav. weights) is read as published; an adapter's checkpoint
    gives its base model with the adapter merged in, in the precision of `dtype`; on a quantized base it stays beside
    it, for the 4-bit weights that it was trained on are not those of the base.

    Args:
        path: `tiny`, a folder, or a hub id.
        dtype: of the weights; float32 are the master weights under bf16 autocast.
        attention: of the towers, `sdpa`, `eager` or `flash_attention_2`; the language model has our own.
        freeze: towers whose weights do not learn, of "audio" and "vision".
        quantized: hold the language model's linear layers in 4 bits (NF4, bitsandbytes); nothing but an adapter can
            learn then.
        divided: how it is divided among the processes while it is loaded; None: each has all of it.

    Raises:
        UserError: it is no such model, another architecture, or weights are missing, unexpected or of another shape.
    """
    if is_adapter(path):
        if divided:
            hint = f"merge it first: python -m echoink.export checkpoint={path} output=…"
            raise UserError(f"{path} is an adapter, and trainer.sharding=fsdp2 begins from whole weights", hint)
        with as_user_error(path):
            base = LoraConfig.from_pretrained(path).base_model_name_or_path
        try:
            model = load_model(base, dtype, attention, quantized=quantized)
        except UserError as error:
            raise UserError(f"the adapter {path} was trained on {base}: {error.problem}", error.hint) from error
        with as_user_error(path):
            model = PeftModel.from_pretrained(model, path)
            model = model.get_base_model() if quantized else model.merge_and_unload().requires_grad_(True)
        return _named(_frozen(model, freeze), path)
    if path.startswith(("/", "./", "../")) and not Path(path).is_dir():
        raise UserError(f"model.path={path}: no such folder", "give a model folder, a hub id, or tiny")
    with as_user_error(path):
        config = AutoConfig.from_pretrained(resolve(path))
        config = getattr(config, "thinker_config", config)
        if config.model_type != "qwen2_5_omni_thinker":
            raise UserError(f"model.path={path} is a {config.model_type}", "a Qwen2.5-Omni (thinker) model is needed")
        model, report = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            resolve(path),
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused below
            **(_four_bits(dtype) if quantized else {}),
            **({"distributed_config": divided} if divided else {}),
        )
    wrong = {
        "lacks": sorted(report["missing_keys"]),
        "has unexpected": sorted(key for key in report["unexpected_keys"] if not key.startswith(OTHER_PARTS)),
        "has, in another shape,": sorted(str(key) for key in report["mismatched_keys"]),
    }
    for what, keys in wrong.items():
        if keys:
            some = ", ".join(keys[:3]) + (" …" if len(keys) > 3 else "")
            hint = "its config.json and its weights do not belong together, or a file is missing"
            raise UserError(f"{path} {what} {len(keys)} weights of the thinker: {some}", hint)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # repacks the weights in evaluation, for good: no gradient then
    _frozen(model, freeze)
    install(model)
    if divided:
        sharding.find_root(model)
        return _named(model, path)
    return _named(model, path) if quantized else _named(model, path).to(processes().device)


def _four_bits(dtype: str) -> dict:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError("adapter=qlora needs bitsandbytes", 'pip install "echoink[qlora]"') from error
    kept = [*(f"model.{tower}" for tower in TOWERS.values()), "lm_head"]
    return {
        "device_map": {"": processes().device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            llm_int8_skip_modules=kept,
        ),
    }


def _frozen(
    model: Qwen2_5OmniThinkerForConditionalGeneration, towers: Sequence[str]
) -> Qwen2_5OmniThinkerForConditionalGeneration:
    for tower in towers:
        getattr(model.model, TOWERS[tower]).requires_grad_(False)
    return model


def _named(model: Qwen2_5OmniThinkerForConditionalGeneration, path: str) -> Qwen2_5OmniThinkerForConditionalGeneration:
    # an adapter notes its base by this name
    model.name_or_path = path if path == "tiny" or not Path(path).is_dir() else str(Path(path).resolve())
    return model


def describe(model: Qwen2_5OmniThinkerForConditionalGeneration, trains: bool) -> str:
    """One line: parameters in all, learning where it trains, and where they are."""
    learning = model.num_parameters(only_trainable=True)
    learns = f", {learning:,} learn" if trains and learning else ""
    return f"{model.num_parameters():,} parameters{learns} · {model.dtype} on {model.device.type}".replace("torch.", "")


def load_reference(
    path: str, dtype: str = "float32", attention: str = "sdpa", divided: DistributedConfig | None = None
) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """The frozen pi_ref of the KL term: the model that training starts from."""
    return load_model(path, dtype, attention, divided=divided).eval().requires_grad_(False)


def check_targets(model: Qwen2_5OmniThinkerForConditionalGeneration, targets: Sequence[str]) -> None:
    """Raises `UserError` where the language model has no linear layer of one of the names."""
    linear = {
        name.rpartition(".")[2]
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if unknown := [name for name in targets if name not in linear] or not targets:
        wrong = ", ".join(unknown) if targets else "empty"
        raise UserError(f"adapter.targets: {wrong}", f"linear layers of this model: {', '.join(sorted(linear))}")


def lora(rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> LoraConfig:
    """LoRA on the named linear layers of the language model; it never lands on a tower."""
    names = "|".join(re.escape(name) for name in targets)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf".*language_model\..*\.({names})",
        task_type="CAUSAL_LM",
    )


def end_ids(model: Qwen2_5OmniThinkerForConditionalGeneration, processor: Qwen2_5OmniProcessor) -> list[int]:
    """The tokens that end a completion: the tokenizer's, and those of the model's generation configuration."""
    configured = model.generation_config.eos_token_id
    configured = [configured] if isinstance(configured, int) else configured or []
    return sorted({processor.tokenizer.eos_token_id, *configured})
