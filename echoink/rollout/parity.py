"""Checks whether vLLM computes what the trainer computes.

In a run, `compare_prompt` checks that the engine's language model gets the same input for a prompt as ours.

In `python -m echoink.doctor engine=true`, the engine answers prompts with every kind of medium, and the model computes
the log-probabilities of the same tokens. If they differ, the residual stream after each layer shows where this begins.

Shapes: P prompt tokens, D width, A axes of positions.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from echoink.common.console import say
from echoink.common.errors import UserError
from echoink.data.processor import PromptProcessor
from echoink.data.samples import DataType, Sample
from echoink.data.starter import write_video
from echoink.media.loaders import Embedded
from echoink.models.encoders import encode_media
from echoink.models.family import PromptInputs
from echoink.models.logprobs import without_dropout
from echoink.models.registry import family_of
from echoink.models.shared_prefix import pack
from echoink.rollout.vllm_engine import Engine, EngineSetup

G = 4
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Parity fails from this difference of a token's log-probabilities on, in nats, by the engine's type."""
PARTS = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""From this relative difference on, a layer's residual stream is reported, and the embedded prompt causes a warning."""
OTHER = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""From this relative difference on, an embedded prompt is wrong: kernels of bfloat16 towers do not differ so much."""


@dataclass(frozen=True)
class Parity:
    """The comparison of engine and model on one kind of prompt."""

    kind: str
    prefix_cache: bool
    largest: float
    """The largest difference of a token's log-probabilities, nats."""
    mean: float
    layer: str
    """Where the residual streams first differ; empty if they do not, or were not compared."""
    good: bool


def sample_of_each_kind() -> dict[str, Sample]:
    """One question for each combination of media, by its name; the media are made here."""
    rng = np.random.default_rng(0)
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(picture, "PNG")
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    soundfile.write(sound, tone + 0.01 * rng.standard_normal(32_000), 16_000, format="WAV")
    image = Embedded("picture", picture.getvalue)
    audio = Embedded("sound", sound.getvalue)
    video, woven = Embedded("video", _video(rng, None)), Embedded("video with sound", _video(rng, tone))
    media = {
        DataType.text: {},
        DataType.image: {"image": image},
        DataType.audio: {"audio": audio},
        DataType.image_audio: {"image": image, "audio": audio},
        DataType.video: {"video": video},
        DataType.video_audio: {"video": woven},
    }
    options = ("A. dog", "B. bell", "C. rain", "D. car")
    return {
        kind.value.replace("_", " and "): Sample(kind.value, "Which one is it?", options, "B", data_type=kind, **has)
        for kind, has in media.items()
    }


def _video(rng: np.random.Generator, tone: np.ndarray | None) -> Callable[[], bytes]:
    file, heard = io.BytesIO(), None if tone is None else tone.astype(np.float32)
    frames = [Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)) for _ in range(8)]
    write_video(file, frames, 4, heard)
    return file.getvalue


def measure(model: PreTrainedModel, processor: PromptProcessor, setup: EngineSetup, folder: Path) -> Iterator[Parity]:
    """Compare engine and model on every kind of prompt, with the engine's prefix cache and without.

    Args:
        model: the policy, on the device of this process.
        processor: the model's processor.
        setup: what the engine is started for; `rows`, `longest`, `sleeps`, `prefix_cache` and `eager` are set here.
        folder: the folder for the engine's log and the weights.

    Raises:
        UserError: the engine does not start, or fails.
    """
    asked = {kind: processor(sample) for kind, sample in sample_of_each_kind().items()}
    prompts = list(asked.values())
    longest = max(len(prompt.input_ids) for prompt in prompts)
    model.eval()
    for prefix_cache in (True, False):
        wanted = replace(
            setup, rows=len(prompts) * G, longest=longest, sleeps=False, prefix_cache=prefix_cache, eager=True
        )
        engine = Engine(
            model, processor.processor, wanted, log=folder / "engine.log", weights=folder / "weights.safetensors"
        )
        try:
            engine.push(model)
            rows, logps = engine.generate(prompts, list(range(len(prompts))), G)
            for number, (kind, prompt) in enumerate(asked.items()):
                own = slice(number * G, (number + 1) * G)
                apart = gaps(
                    model, prompt, rows[own], logps=logps[own], temperature=setup.sampling.temperature, bf16=setup.bf16
                )
                good = bool(apart.max() < LIMITS[setup.dtype])
                layer = _first_apart(model, prompt, engine, setup) if prefix_cache or not good else ""
                yield Parity(kind, prefix_cache, apart.max().item(), mean=apart.mean().item(), layer=layer, good=good)
        finally:
            engine.close()


@torch.no_grad()
def compare_prompt(model: PreTrainedModel, engine: Engine, prompts: Sequence[PromptInputs], ids: Sequence[str]) -> None:
    """Compare what the engine's language model gets for a prompt with what ours gets for it.

    The prompt is the one with the most kinds of media; if no prompt has any, nothing is compared. The embedded prompt
    shows differences in the tokens, in the towers' features and in where these are placed.

    Args:
        model: the policy, whose weights the engine has; called under the run's autocast.
        engine: the engine; it is asked for one prompt.
        prompts: the prompts of a rollout.
        ids: the ids of their samples.

    Raises:
        UserError: the positions, the embedded text or an embedded medium differ.
    """
    placeholders = family_of(model).placeholders(model.config)

    def kinds(number: int) -> int:
        return sum(bool((prompts[number].input_ids == token).any()) for token in placeholders.values())

    chosen = max(range(len(prompts)), key=kinds)
    if not kinds(chosen):
        return
    prompt, place = prompts[chosen], f"sample {ids[chosen]}"
    positions, theirs = engine.given(prompt)
    hint = (
        f"vLLM {engine.version} reads this model differently: python -m echoink.doctor engine=true says for which media"
    )
    if (wrong := (positions != prompt.position_ids).any(0).nonzero().flatten()).numel():
        raise UserError(f"{place}: the engine and the trainer have different positions for token {int(wrong[0])}", hint)
    ours = embedded_prompt(model, prompt)
    parts = {name: prompt.input_ids == token for name, token in placeholders.items()}
    parts = {"text": ~torch.stack(list(parts.values())).any(0), **parts}
    gaps_of = {
        name: float((ours[where] - theirs[where]).norm() / ours[where].norm())
        for name, where in parts.items()
        if where.any()
    }
    for name, gap in gaps_of.items():
        apart = f"{place}: the engine embeds its {name} differently from the trainer, by {gap:.0%}"
        if not gap < OTHER[engine.dtype]:
            raise UserError(apart, hint)
        if gap >= PARTS[engine.dtype]:
            say("warning", f"{apart}; {hint}")
    said = ", ".join(f"{name} within {gap:.0e}" for name, gap in gaps_of.items())
    say("engine", f"{place}: {len(ours)} tokens, the same positions, embedded {said}")


def embedded_prompt(model: PreTrainedModel, prompt: PromptInputs) -> Tensor:
    """The embedded tokens and media of a prompt, [P, D] in float32 on the CPU."""
    family, ids = family_of(model), prompt.input_ids[None].to(model.device)
    return family.embed(model.model, ids, encode_media(model.model, [prompt]))["inputs_embeds"][0].float().cpu()


@torch.no_grad()
def gaps(
    model: PreTrainedModel,
    prompt: PromptInputs,
    rows: Sequence[Sequence[int]],
    logps: Sequence[Sequence[float]],
    temperature: float,
    bf16: bool,
) -> Tensor:
    """How far an engine's log-probabilities of its completions are from the model's.

    Args:
        model: the model with our attention.
        prompt: the prompt of the completions.
        rows: token ids of the completions.
        logps: the engine's log-probabilities of these tokens.
        temperature: the sampling temperature, at which the log-probabilities are taken.
        bf16: whether the model computes in bfloat16 under autocast.

    Returns:
        The absolute difference for each token, in nats; [N] for N tokens of all completions.
    """
    family, device = family_of(model), model.device
    packed = pack([prompt], [[torch.tensor(row) for row in rows]])
    with without_dropout(model), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        hidden = model.model(
            input_ids=packed.input_ids.to(device),
            position_ids=packed.position_ids.to(device),
            layout=packed.layout,
            prompts=[prompt],
        ).last_hidden_state
        logits = family.logits(model, hidden)[0].float() / temperature
    ours = logits.log_softmax(-1).gather(1, packed.labels[0, :, None].to(device))[:, 0]
    return (ours - torch.tensor([value for row in logps for value in row], device=device)).abs()


def _first_apart(model: PreTrainedModel, prompt: PromptInputs, engine: Engine, setup: EngineSetup) -> str:
    """Where the residual streams of the prompt first differ, and by how much; empty if they do not."""
    ours, theirs = _residuals(model, prompt, setup.bf16), engine.residuals(prompt)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        apart = (one - other).norm() / one.norm()
        if not apart < PARTS[setup.dtype]:  # NaN too, here and below
            alike = (one - other).norm(dim=1) / one.norm(dim=1) <= PARTS[setup.dtype]
            tokens = (~alike).nonzero().flatten().tolist()
            place = f"layer {number}" if number else "the embedded prompt"
            return f"{place}, by {apart:.0%}, {len(tokens)} of {len(one)} tokens, the first is token {tokens[0]}"
    return ""


def _residuals(model: PreTrainedModel, prompt: PromptInputs, bf16: bool) -> list[Tensor]:
    """The embedded prompt and the residual stream after each layer, each [P, D] in float32 on the CPU."""
    family, base, found = family_of(model), model.model, []
    language = family.language_model(base)

    def keep(_module, given, made=None) -> None:
        taken = given[0] if made is None else (made[0] if isinstance(made, tuple) else made)
        found.append(taken[0].float().cpu())

    hooks = [language.layers[0].register_forward_pre_hook(keep)]
    hooks += [layer.register_forward_hook(keep) for layer in language.layers]
    try:
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            ids, positions = prompt.input_ids[None].to(model.device), prompt.position_ids[:, None].to(model.device)
            language(
                **family.embed(base, ids, encode_media(base, [prompt])),
                **family.positions(positions),
                **family.padding_mask(torch.ones_like(ids)),
                use_cache=False,
            )
    finally:
        for hook in hooks:
            hook.remove()
    return found
