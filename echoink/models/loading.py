"""Loads the policy, its reference and its processor, from published checkpoints and from our own."""

import contextlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.distributed import DistributedConfig

from echoink.common.console import say
from echoink.common.errors import UserError, first_line
from echoink.config.paths import resolve
from echoink.distributed import sharding
from echoink.distributed.process_group import processes
from echoink.models.registry import FAMILIES, family_of, family_of_config
from echoink.models.shared_prefix import install


def is_adapter(path: str) -> bool:
    """Whether a folder is the checkpoint of an adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def base_of(adapter: str) -> str:
    """The model that an adapter was trained on: a folder or hub id.

    Raises:
        UserError: the folder is not an adapter's.
    """
    with as_user_error(adapter):
        return LoraConfig.from_pretrained(adapter).base_model_name_or_path


def rank_of(path: str) -> int:
    """The largest rank of an adapter's checkpoint; 0 for a whole model."""
    if not is_adapter(path):
        return 0
    with as_user_error(path):
        stored = LoraConfig.from_pretrained(path)
    return max([stored.r, *(stored.rank_pattern or {}).values()])


def dimensions(path: str) -> tuple[int, int]:
    """Layers and width of the language model of a folder or hub id; those of an adapter are its base's.

    Raises:
        UserError: the path has no configuration of a model.
    """
    with as_user_error(path):
        config = AutoConfig.from_pretrained(resolve(base_of(path) if is_adapter(path) else path))
        known = family_of_config(config)
        text = (known[1] if known else config).get_text_config()
        return text.num_hidden_layers, text.hidden_size


def picture_caps(path: str) -> tuple[int, int]:
    """The fewest and the most pixels of a picture, as a model's processor sets them.

    Raises:
        UserError: the model has no processor that can be loaded.
    """
    size = _processor(path).image_processor.size
    return size["shortest_edge"], size["longest_edge"]


def load_model(
    path: str,
    dtype: str = "float32",
    attention: str = "sdpa",
    freeze: tuple[str, ...] = (),
    quantized: str | None = None,
    shard_plan: DistributedConfig | None = None,
    merges: bool = True,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Load the model of a folder or hub id, able to share prompts (`shared_prefix.install`).

    A published checkpoint is read without the parts that training does not use. An adapter's checkpoint gives its base
    model, with the adapter merged into the weights, in the precision of `dtype`, or in separate layers, as it was
    trained.

    Args:
        path: `tiny`, a folder, or a hub id.
        dtype: the type of the weights; float32 for the master weights under bf16 autocast.
        attention: the attention of the towers, `sdpa`, `eager` or `flash_attention_2`; the language model has our own.
        freeze: the parts that do not learn, by the names of `model.freeze`.
        quantized: the type in which the language model's linear layers compute if they are stored in 4 bits (NF4,
            bitsandbytes), when only an adapter can learn. None: they are not quantized.
        shard_plan: how the model is divided among the processes while it is loaded; None: each has all of it.
        merges: whether an adapter is merged into its base. It never is on 4 bits, which are not the base's weights. A
            sum in bfloat16 loses small updates to a weight, so only a model that will be trained should be merged.
        device: where the weights are; None: on the device of this process.

    Raises:
        UserError: the model cannot be loaded or has another architecture; weights are missing, unexpected or of another
            shape; FSDP2 cannot divide an adapter; or bitsandbytes is missing.
    """
    if is_adapter(path):
        if shard_plan:
            hint = f"merge it first: python -m echoink.export checkpoint={path} output=…"
            raise UserError(f"{path} is an adapter, and trainer.sharding=fsdp2 begins from whole weights", hint)
        merges = merges and not quantized
        adapted = _load_adapter(path, dtype, attention, quantized=quantized, merges=merges, device=device)
        return _named(_frozen(adapted, freeze), path)
    check_is_there(path)
    device = device or processes().device
    found = _load_published(path, dtype, attention, quantized=quantized, shard_plan=shard_plan, device=device)
    model = _frozen(found, freeze)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # else evaluation repacks weights for good: no gradient then
    install(model)
    if shard_plan:
        sharding.register_root(model)
    return _named(model, path)


def check_is_there(path: str) -> None:
    """Raises `UserError` where a path that can be no hub id is no folder."""
    if path.startswith(("/", "./", "../", "outputs/")) and not Path(path).is_dir():
        made = "python -m echoink.small makes the small model; else " if Path(path).name == "small" else ""
        raise UserError(f"model.path={path}: no such folder", f"{made}give a model folder, a hub id, or tiny")


def _load_adapter(
    path: str, dtype: str, attention: str, quantized: str | None, merges: bool, device: torch.device | None
) -> PreTrainedModel:
    base = base_of(path)
    # A file that is missing or broken is reported below.
    with contextlib.suppress(OSError, SafetensorError), safe_open(f"{path}/adapter_model.safetensors", "pt") as weights:
        if named := next((name for name in list(weights.keys()) if ".thinker." in name), None):
            hint = "merge it into that model where it was made, and give the merged model"
            raise UserError(f"the adapter {path} was trained on the whole Omni model (it has {named})", hint)
    try:
        model = load_model(base, dtype, attention, quantized=quantized, device=device)
    except UserError as error:
        raise UserError(f"the adapter {path} was trained on {base}: {error.problem}", error.hint) from error
    # PEFT only warns of weights that it does not find, and leaves them at 0: the base would pass for the adapted model.
    with as_user_error(path), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, path)
    if missing := next((str(one.message) for one in said if "missing adapter keys" in str(one.message)), ""):
        names = re.findall(r"'([^']+)'", missing)
        hint = "its names do not fit this base; was it saved by another program, or cut off?"
        raise UserError(f"the adapter {path} lacks {len(names)} weights of the model, such as {names[0]}", hint)
    return model.merge_and_unload().requires_grad_(True) if merges else model.get_base_model()


def _load_published(
    path: str,
    dtype: str,
    attention: str,
    quantized: str | None,
    shard_plan: DistributedConfig | None,
    device: torch.device,
) -> PreTrainedModel:
    with as_user_error(path):
        published = AutoConfig.from_pretrained(resolve(path))
        found = family_of_config(published)
        if found is None:
            known = ", ".join(family.NAME for family in FAMILIES.values())
            raise UserError(f"model.path={path} is a {published.model_type}", f"models that can be trained: {known}")
        family, config = found
        if getattr(published, "quantization_config", None) or getattr(config, "quantization_config", None):
            hint = "take the model in whole numbers; adapter=qlora quantizes it to 4 bits here"
            raise UserError(f"{path} is stored quantized", hint)
        optional = {}
        if quantized:
            optional |= _four_bits(quantized, [*family.TOWERS.values()])
        if shard_plan:
            optional["distributed_config"] = replace(shard_plan, fsdp_plan=dict(family.SHARDED_UNITS))
        elif device.type != "cpu":  # tensor by tensor: else each process has all in host memory
            optional["device_map"] = {"": device}
        model, report = family.MODEL.from_pretrained(
            resolve(path),
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that mismatches are reported, and refused below
            **optional,
        )
    wrong = {
        "lacks": sorted(report["missing_keys"]),
        "has unexpected": sorted(key for key in report["unexpected_keys"] if not key.startswith(family.OTHER_PARTS)),
        "has, in another shape,": sorted(str(key) for key in report["mismatched_keys"]),
    }
    for what, keys in wrong.items():
        if keys:
            some = ", ".join(keys[:3]) + (" …" if len(keys) > 3 else "")
            hint = "its config.json and its weights do not belong together, or a file is missing"
            raise UserError(f"{path} {what} {len(keys)} weights of the model: {some}", hint)
    _leave_out_decoding_rules(model, path)
    return model


_NO_RULES = ("max_length", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "transformers_version")
"""Keys of a generation configuration that the group `generation` replaces, and the version."""


def _leave_out_decoding_rules(model: PreTrainedModel, path: str) -> None:
    """Keep only the special tokens of a base's generation configuration, and name the rules that are left out.

    What is kept goes into every checkpoint and export. A repetition penalty there would change the answers of the
    exported model, but none of the answers that were measured here.
    """
    found = vars(model.generation_config)
    tokens = {name: found[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**tokens)
    known = [name for name in vars(GenerationConfig()) if name not in (*tokens, *_NO_RULES) and name[0] != "_"]
    if rules := [f"{name}={found[name]}" for name in known if found.get(name) not in (None, 0, 1)]:
        say("note", f"{path} asks for {', '.join(rules)} in its generation_config.json, which is ignored here")


def _four_bits(compute: str, towers: Sequence[str]) -> dict:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError("adapter=qlora needs bitsandbytes", "pip install bitsandbytes") from error
    kept = [*(f"model.{tower}" for tower in towers), "lm_head"]
    return {
        "device_map": {"": processes().device},  # on a CPU too
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, compute),
            llm_int8_skip_modules=kept,
        ),
    }


def _frozen(model: PreTrainedModel, parts: Sequence[str]) -> PreTrainedModel:
    family = family_of(model)
    for name, module in family.TOWERS.items():
        tower = getattr(model.model, module)
        if name in parts or f"{name}_encoder" in parts:
            tower.requires_grad_(False)
            tower.get_submodule(family.PROJECTIONS[name]).requires_grad_(name not in parts)
    if "language" in parts:
        family.language_model(model.model).requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)
    return model


def _named(model: PreTrainedModel, path: str) -> PreTrainedModel:
    # an adapter's configuration records its base by this name
    model.name_or_path = path if path == "tiny" or not Path(path).is_dir() else str(Path(path).resolve())
    return model


def describe(model: PreTrainedModel, trains: bool) -> str:
    """One line: how many parameters there are, how many learn if the run trains, their type and their device."""
    learning = model.num_parameters(only_trainable=True)
    learns = f", {learning:,} learn" if trains and learning else ""
    return f"{model.num_parameters():,} parameters{learns} · {model.dtype} on {model.device.type}".replace("torch.", "")


def load_reference(
    path: str, dtype: str = "float32", attention: str = "sdpa", shard_plan: DistributedConfig | None = None
) -> PreTrainedModel:
    """The frozen pi_ref of the KL term: the model that training starts from."""
    model = load_model(path, dtype, attention, shard_plan=shard_plan).eval().requires_grad_(False)
    if shard_plan:  # without a backward pass the root, embedding and head, is sharded again after forward too
        model.set_reshard_after_forward(True, recurse=False)
    return model


def check_targets(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """Check the names of the layers that an adapter changes.

    Raises:
        UserError: there are no names, or the language model has no linear layer of one of them.
    """
    linear = {
        name.rpartition(".")[2]
        for name, module in family_of(model).language_model(model.model).named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if unknown := [name for name in targets if name not in linear] or not targets:
        wrong = ", ".join(unknown) if targets else "empty"
        raise UserError(f"adapter.targets: {wrong}", f"linear layers of this model: {', '.join(sorted(linear))}")


def lora(rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> LoraConfig:
    """The configuration of LoRA on the named linear layers of the language model, never of a tower."""
    names = "|".join(re.escape(name) for name in targets)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf".*language_model\..*\.({names})",
        task_type="CAUSAL_LM",
    )


def end_ids(model: PreTrainedModel, processor: ProcessorMixin) -> tuple[int, ...]:
    """The tokens that end a completion: the tokenizer's, and those of the model's generation configuration."""
    configured = model.generation_config.eos_token_id
    configured = [configured] if isinstance(configured, int) else configured or []
    return tuple(sorted({processor.tokenizer.eos_token_id, *configured}))


def load_processor(path: str, min_pixels: int, max_pixels: int) -> ProcessorMixin:
    """The processor of a model folder or hub id; it scales pictures to between `min_pixels` and `max_pixels`.

    Raises:
        UserError: the path has no processor that can be loaded.
    """
    processor = _processor(path)
    processor.image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return processor


def _processor(path: str) -> ProcessorMixin:
    with as_user_error(path):
        processor = AutoProcessor.from_pretrained(resolve(path))
    if not isinstance(processor, ProcessorMixin):  # without a processor's files transformers gives a tokenizer
        raise UserError(
            f"{path} has no processor, only a {type(processor).__name__}", "copy the processor's files there"
        )
    # Some programs save the template with the tokenizer alone.
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    if not processor.chat_template:
        raise UserError(f"{path} has no chat template", "copy chat_template.jinja of the published model there")
    return processor


@contextlib.contextmanager
def as_user_error(path: str):
    """Turn errors of the libraries that read a model's files into a `UserError` of one line that names the path."""
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:  # a RuntimeError too
        hint = "nvidia-smi says who uses it; adapter=qlora, trainer=fsdp2 or a smaller model needs less"
        raise UserError(f"{path} does not fit into the GPU's memory: {first_line(error)[:200]}", hint) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = first_line(error)[:300]
        raise UserError(
            f"cannot load a model from {path}: {reason}",
            "give a folder with config.json, weights and processor files, or a hub id; checkpoint= takes run folders",
        ) from error
