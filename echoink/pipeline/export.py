"""Exports a checkpoint as a plain transformers model folder with a model card."""

import json
import math
import os
import shutil
from pathlib import Path
from pprint import pformat
from typing import Any

import torch
from huggingface_hub import HfApi, save_torch_state_dict
from omegaconf import OmegaConf
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel, ProcessorMixin

from echoink.common.errors import UserError, first_line
from echoink.common.files import read_rows
from echoink.config.paths import conf_dir, resolve
from echoink.config.schema import Prompt
from echoink.data.prompts import build_messages
from echoink.data.samples import Sample
from echoink.models import loading
from echoink.models.registry import family_of
from echoink.planning import preflight
from echoink.rewards import terms
from echoink.rollout.vllm_engine import published
from echoink.run_folder import checkpoint, reader


def export(
    source: Path | str, output: Path, merge: bool = True, vllm: bool = False, push_to: str | None = None
) -> Path:
    """Write the folder, and push it if asked to.

    Args:
        source: a run folder (its best step, else its newest), a step or model folder, or a hub id.
        output: the new folder.
        merge: whether to merge an adapter into its base's weights; False exports the adapter.
        vllm: whether configuration and weights have the names of the published whole model, of which this is a part:
            vLLM reads no others.
        push_to: hub id of the repository.

    Raises:
        UserError: `output` exists, `source` cannot be loaded, the adapter was never trained, `merge` is False for a
            whole model or an adapter on top of another one, both `vllm` and not `merge`, or the hub would refuse.
    """
    if output.exists():
        raise UserError(f"{output} is there already", "give a new folder")
    if vllm and not merge:
        raise UserError("vllm=true exports a whole model", "leave out merge=false")
    if push_to:
        preflight.check_hub(push_to)
    path = checkpoint.resolve(str(source))
    adapter = loading.is_adapter(path)
    if adapter:
        _refuse_untrained(Path(path))
    elif not merge:
        raise UserError(f"merge=false is for adapters, and {path} is a whole model", "leave it out")
    if adapter and not merge and loading.is_adapter(loading.base_of(path)):
        hint = "merge=true (the default) gives one model with both"
        raise UserError(f"the adapter {path} is on top of another one, {loading.base_of(path)}", hint)
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        # Not on the GPU, which a run that pushes at its end still uses.
        model = loading.load_model(path, device=torch.device("cpu"))
        processor = _processor(path)
        _write_weights(part, path, model, apart=adapter and not merge, vllm=vllm)
        model.generation_config.eos_token_id = [*loading.end_ids(model, processor)]
        model.generation_config.save_pretrained(part)
        processor.save_pretrained(part)
        text = card(Path(path), model, processor, adapter=adapter and not merge, vllm=vllm)
        (part / "README.md").write_text(text, encoding="utf-8")
        _make_readable(part)
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if push_to:
        try:
            HfApi().create_repo(push_to, private=True, exist_ok=True)
            HfApi().upload_folder(repo_id=push_to, folder_path=str(output))
        except Exception as error:  # the hub and the network raise many types
            raise UserError(
                f"{output} is whole, but the hub did not take it: {first_line(error)}", f"hf upload {push_to} {output}"
            ) from error
    return output


def _make_readable(folder: Path) -> None:
    """Give files the usual permissions: safetensors writes files that only their owner may read."""
    umask = os.umask(0)
    os.umask(umask)
    for file in filter(Path.is_file, folder.rglob("*")):
        file.chmod(0o666 & ~umask)


def _write_weights(part: Path, path: str, model: PreTrainedModel, apart: bool, vllm: bool) -> None:
    """Write weights and configuration of a model, or of its adapter alone.

    Raises:
        UserError: the disk is full.
    """
    if apart:
        shutil.copy2(Path(path) / "adapter_config.json", part)
        save_file(load_peft_weights(path, "cpu"), part / "adapter_model.safetensors", {"format": "pt"})
        settings = json.loads((part / "adapter_config.json").read_text("utf-8"))
        settings["base_model_name_or_path"] = resolve(settings["base_model_name_or_path"])
        (part / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        return
    try:
        if vllm:
            family_of(model).vllm_config(model.config).save_pretrained(part)
            save_torch_state_dict(dict(published(model, everything=True)), part)
        else:
            model.save_pretrained(part)
    except SafetensorError as error:  # it is no OSError
        problem = f"{part} cannot be written: {first_line(error)}"
        raise UserError(problem, "make room, or give another output=") from error


def _processor(path: str) -> ProcessorMixin:
    """The processor with the caps on pictures and sounds that the model was trained with, if its run is known."""
    run = checkpoint.run_of(Path(path))
    if not (model := reader.configuration(run).get("model") if run else None):
        return loading.load_processor(path, *loading.picture_caps(path))
    processor = loading.load_processor(path, model.min_pixels, model.max_pixels)
    extractor, seconds = processor.feature_extractor, math.ceil(model.get("max_audio_seconds") or 0)
    if seconds > extractor.chunk_length:  # training gives the length of each sound instead
        extractor.chunk_length, extractor.n_samples = seconds, seconds * extractor.sampling_rate
        extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
    return processor


def _refuse_untrained(path: Path) -> None:
    ups = [weight for name, weight in load_peft_weights(str(path), "cpu").items() if "lora_B" in name]
    if not any(weight.any() for weight in ups):
        raise UserError(f"the adapter {path} changes nothing: all of its B matrices are 0", "it was never trained")


def card(path: Path, model: PreTrainedModel, processor: ProcessorMixin, adapter: bool, vllm: bool) -> str:
    """The model card: what the model is, what it was trained on, its numbers, how to load it.

    Args:
        path: the step folder; a folder outside a run gives a card without numbers.
        model: the exported model, whose class and family are named.
        processor: its processor.
        adapter: whether an adapter is exported.
        vllm: whether it has vLLM's layout.
    """
    run = checkpoint.run_of(path)
    summary, dataset, environment = (
        json.loads((run / name).read_text("utf-8")) if run and (run / name).is_file() else {}
        for name in ("summary.json", "dataset.json", "environment.json")
    )
    config: Any = reader.configuration(run) if run else None
    base = config.checkpoint or config.model.path if config else None
    head = ["---", f"library_name: {'peft' if adapter else 'transformers'}", "pipeline_tag: any-to-any"]
    head += [f"base_model: {base}"] if base and "/" in base and not Path(base).exists() else []
    supervised = config is not None and config.task == "sft"
    head += ["tags:", f"- {model.config.model_type}", "- sft" if supervised else "- grpo"]
    head += ["- audio-visual-reasoning", "---", ""]
    how = "supervised fine-tuning" if supervised else "GRPO"
    body = [f"# {family_of(model).NAME}, trained by {how} with EchoInk", ""]
    if config:
        weighted = ", ".join(f"{name} = {weight:g}" for name, weight in terms.listed(config.reward))
        advantage = config.grpo.get("advantage", "group")
        weighted += "" if advantage == "group" else f", advantage = {advantage}"
        body += [
            f"Started from `{base}`, step {checkpoint.step_of(path)}: "
            + ("" if supervised else f"G = {config.grpo.group_size}, beta = {config.grpo.beta}, {weighted}, ")
            + f"seed {config.seed}.",
            "",
            f"Data: `{config.dataset.source}` ({Path(config.dataset.path).name}), "
            + ", ".join(f"{split} {found['samples']:,}" for split, found in dataset.items())
            + ".",
            "",
        ]
    protocol = config.eval.get("protocol", "matched") if config else "matched"
    body += _numbers(summary, protocol=protocol, quantized=config is not None and config.adapter.kind == "qlora")
    body += _development(path)
    if environment:
        versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items() if number)
        body += [f"Made with {versions}; commit {environment['commit'] or 'unknown'}.", ""]
    body += _of_vllm(model, adapter, vllm)
    body += _saw_and_heard(config.model) if config else []
    body += ["How to ask it:", "", "```python", *_example(adapter, model, processor, config), "```", ""]
    if config:
        body += ["The template of that prompt:", "", "```", config.prompt.template.strip(), "```", ""]
    return "\n".join([*head, *body])


def _saw_and_heard(caps: Any) -> list[str]:
    """The largest media that the model was trained with."""
    if "max_video_frames" not in caps:  # of an older version
        return []
    video = f"{caps.max_video_frames} frames of {caps.max_video_pixels:,} pixels, {caps.video_fps:g} a second"
    sound = f"sounds of {caps.max_audio_seconds:g} s"
    return [f"At most it was given pictures of {caps.max_pixels:,} pixels, {sound} and videos of {video}.", ""]


def _of_vllm(model: PreTrainedModel, adapter: bool, vllm: bool) -> list[str]:
    """How vLLM takes to the export."""
    if vllm:
        reads = "vLLM reads this folder: `vllm serve <folder>` (0.31 was tried; it needs one with transformers 5)."
        part = "It is the part that writes text. The class of the whole model, which also speaks, needs more weights."
        return [f"{reads} In transformers, {type(model).__name__} loads it.", part, ""]
    whole = "`python -m echoink.export … vllm=true` writes a whole model that it reads."
    if adapter:
        return [f"vLLM names the layers otherwise: it would answer as the base, without an error. {whole}", ""]
    return [f"vLLM needs another layout: {whole}", ""]


def _numbers(summary: dict[str, Any], protocol: str, quantized: bool) -> list[str]:
    """Accuracies of a run's base and trained model; empty if neither was evaluated."""
    body: list[str] = []
    how = "" if protocol == "matched" else f"; eval.protocol={protocol} asks base and trained model differently"
    phases = [(phase, summary[phase]) for phase in ("base", "final") if summary.get(phase)]
    if phases:
        body += ["| | n | accuracy | 95 % | format | greedy |", "|---|---|---|---|---|---|"]
        for phase, found in phases:
            low, high = found["interval"]
            greedy = "–" if found["greedy_accuracy"] is None else f"{100 * found['greedy_accuracy']:.1f} %"
            body.append(
                f"| {phase} | {found['n']:,} | {100 * found['accuracy']:.1f} % | {100 * low:.1f} to {100 * high:.1f} "
                f"| {100 * found['format']:.1f} % | {greedy} |"
            )
        phase, found = phases[-1]
        extra = {"custom": found.get("custom"), **found.get("rewards", {})}
        shown = [f"{name} {value:.3f}" for name, value in extra.items() if value is not None]
        body += ["", f"Further rewards of the {phase} model, means: {', '.join(shown)}."] if shown else []
        at = f"of the run's last step ({summary['steps']})" if phase == "final" else "of the weights it began with"
        one = f"one {found.get('draw', 'sampled')} answer to each sample"
        body += ["", f"The last line is {at}. Accuracy: {one}{how}.", ""]
    if quantized:
        body += ["They are of the adapter on a base in 4 bits; merged into a whole base, it was not measured.", ""]
    if paired := summary.get("paired"):
        of = f" (means of {paired['draws']} draws)" if paired.get("draws", 1) > 1 else ""
        body += [f"{100 * paired['difference']:+.1f} points{of}, {paired['test']} p = {paired['p_value']:.2g}.", ""]
    return body


def _development(path: Path) -> list[str]:
    """This step's accuracy on the development split; empty if it was not evaluated there."""
    run = checkpoint.run_of(path)
    rows = [row for row in read_rows(run / "dev.jsonl") if row["step"] == checkpoint.step_of(path)] if run else []
    if not rows:
        return []
    return [f"Step {rows[-1]['step']} on the development split: {100 * rows[-1]['dev/accuracy']:.1f} % right.", ""]


def _example(adapter: bool, model: PreTrainedModel, processor: ProcessorMixin, config: Any) -> list[str]:
    """A complete program that asks the model about a picture and a sound, without this package."""
    reader, architecture = type(processor).__name__, type(model).__name__
    prompt = Prompt(**config.prompt) if config else Prompt(**OmegaConf.load(conf_dir() / "prompt" / "reason.yaml"))
    asked = Sample("card", "What is making the sound?", ("A. a dog", "B. a bell", "C. a car", "D. the rain"), "B")
    turns = build_messages(asked, prompt)
    tokens = config.generation.max_new_tokens if config else 512
    seconds = config.model.get("max_audio_seconds") if config else None
    return [
        "import re",
        "",
        "import soundfile",
        *(["from peft import PeftConfig, PeftModel"] if adapter else []),
        "from PIL import Image",
        f"from transformers import {'GenerationConfig, ' if adapter else ''}{reader}, {architecture}",
        "",
        'folder = "."  # where this card lies',
        f"processor = {reader}.from_pretrained(folder)",
        *(["base = PeftConfig.from_pretrained(folder).base_model_name_or_path"] if adapter else []),
        f"model = {architecture}.from_pretrained({'base' if adapter else 'folder'})",
        *(["model.generation_config = GenerationConfig.from_pretrained(folder)"] if adapter else []),  # not the base's
        *(["model = PeftModel.from_pretrained(model, folder)"] if adapter else []),
        "model.eval()",
        "",
        'picture = Image.open("picture.jpg").convert("RGB")',
        'sound, rate = soundfile.read("sound.wav", dtype="float32")',
        'assert rate == 16_000 and sound.ndim == 1, "resample the sound to 16 kHz, one channel"',
        *([f"sound = sound[: {round(16_000 * seconds)}]  # as in training"] if seconds else []),
        "messages = " + pformat(turns, width=110, sort_dicts=False),
        "text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)",
        'inputs = processor(text=[text], images=[picture], audio=[sound], return_tensors="pt").to(model.device)',
        f"output = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)",
        'completion = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]',
        'answer = re.search(r"<answer>(.*?)</answer>", completion, re.DOTALL)',
        'print(completion, "→", answer and answer[1].strip())',
    ]
