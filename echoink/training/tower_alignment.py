"""The first training of a new tower or projection: it learns to map a medium to the embedding of its name.

    y = mean of the projection's output over the medium's tokens            [D]
    L = cross-entropy of cos(y - m, w_c - m) / 0.07 over the names c  +  |y - w_name|² / E|w - m|²

where w_c is the mean embedding of the tokens of name c, and m is the mean of the w_c over the names. The language model
is not run, so a step costs only the tower. Supervised learning through a frozen language model (LLaVA's first stage)
learned nothing from these few hundred files in the same time (experiments/open_media.md). The form is CLIP's, with
given names.

Shapes: B media, C names, D width of the language model, N tokens of a medium.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel, ProcessorMixin

from echoink.common.console import progress, say
from echoink.common.files import write_aside
from echoink.media.loaders import SAMPLING_RATE, digest, load_image, load_sound
from echoink.models.registry import family_of
from echoink.training import rng_state

TEMPERATURE = 0.07
SECONDS = 6.0
"""Longer sounds are cut to this length."""
KEPT_EVERY = 50
"""Number of steps between two saved states."""


@dataclass(frozen=True)
class AlignmentSettings:
    """How long and how fast a module learns."""

    label: str
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float


PROJECTION = AlignmentSettings("hearing", 600, 256, learning_rate=3e-3, weight_decay=0.3)
"""For a projection of a frozen encoder's features, which are computed once."""
TOWER = AlignmentSettings("seeing", 500, 48, learning_rate=1e-3, weight_decay=0.05)
"""For a new tower: encoder and projection."""


Media = Sequence[tuple[Path, str]]
"""Files and their names."""


class NameEmbeddings:
    """The names as vectors of the language model's embedding.

    Args:
        model: the model whose embedding is read; it does not change.
        tokenizer: the model's tokenizer.
        names: C different names.
    """

    def __init__(self, model: PreTrainedModel, tokenizer, names: Sequence[str]):
        embedding = model.get_input_embeddings().weight.detach()
        ids = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
        self.words = torch.stack([embedding[each].mean(0) for each in ids])
        self.mean = self.words.mean(0)
        self._scale = (self.words - self.mean).square().sum(1).mean()

    def similarity(self, features: Tensor) -> Tensor:
        """Cosines [B, C] of features [B, D]."""
        return normalize(features - self.mean, dim=1) @ normalize(self.words - self.mean, dim=1).T

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of features [B, D], given the indices of their names [B]."""
        labels = labels.to(features.device)
        apart = (features - self.words[labels]).square().sum(1).mean() / self._scale
        return cross_entropy(self.similarity(features) / TEMPERATURE, labels) + apart


class Teacher:
    """Trains a model's towers, and tests what they have learned.

    Args:
        model: the model whose towers learn.
        processor: the model's processor.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self._model, self._processor, self._family = model, processor, family_of(model)

    def sounds(self, sounds: Media, kept: Path) -> dict:
        """Train the audio tower's projection; its encoder does not change, and encodes each sound once.

        The mean over tokens commutes with a linear map, so each sound is one vector. At every draw, normal noise of 0.3
        times the vectors' standard deviation is added to it.

        Args:
            sounds: files and their names.
            kept: the file for the state of the training; a call with the same media and settings goes on from it.

        Returns:
            The number of names, of media and of steps, the first loss, and the mean of the last 20 losses.
        """
        tower = getattr(self._model.model, self._family.TOWERS["audio"])
        projection = tower.get_submodule(self._family.PROJECTIONS["audio"])

        @functools.cache
        def pooled() -> tuple[Tensor, Tensor]:
            """The mean of each sound's tokens before the projection, and the standard deviation of the noise."""
            caught: list[Tensor] = []
            hook = projection.register_forward_pre_hook(lambda module, given: caught.append(given[0].mean(0)))
            try:
                with torch.no_grad():
                    for file, _ in progress("listening", len(sounds))(sounds):
                        self._hear(file)
            finally:
                hook.remove()
            means = torch.stack(caught)
            return means, 0.3 * means.std(0)

        def draw(chosen: Tensor) -> Tensor:
            means, spread = pooled()
            noise = torch.randn(len(chosen), means.shape[1]).to(means)  # drawn on the CPU, the same for every device
            return projection(means[chosen] + spread * noise)

        return self._learn(projection, draw, sounds, settings=PROJECTION, kept=kept)

    def pictures(self, pictures: Media, seed: int, kept: Path) -> dict:
        """Train the vision tower, encoder and projection, on square pictures; otherwise as `sounds`.

        Every draw augments a picture at random; `seed` seeds this.
        """
        rng, shown = np.random.default_rng(seed), [load_image(file) for file, _ in pictures]

        def draw(chosen: Tensor) -> Tensor:
            features = self._see([varied(shown[n], rng) for n in chosen])
            return features.view(len(chosen), -1, features.shape[1]).mean(1)  # all pictures have as many tokens

        tower = getattr(self._model.model, self._family.TOWERS["vision"])
        return self._learn(tower, draw, pictures, settings=TOWER, kept=kept, variants=rng)

    @torch.no_grad()
    def recognized(self, media: Media, names: Sequence[str], heard: bool) -> int:
        """How many sounds (`heard`) or pictures have features nearer to their own name than to any other of `names`."""
        known, right = NameEmbeddings(self._model, self._processor.tokenizer, names), 0
        for file, name in media:
            features = self._hear(file) if heard else self._see([load_image(file)])
            right += names[int(known.similarity(features.mean(0, keepdim=True)).argmax())] == name
        return right

    def _hear(self, file: Path) -> Tensor:
        extractor, samples = self._processor.feature_extractor, load_sound(file, SECONDS).samples
        heard = extractor(
            samples,
            sampling_rate=SAMPLING_RATE,
            padding="max_length",
            max_length=(len(samples) // extractor.hop_length + 4) * extractor.hop_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        media = {"input_features": heard.input_features, "feature_attention_mask": heard.attention_mask}
        return self._family.encode(self._model.model, media, run_all=False)["audio"]

    def _see(self, pictures: list[Image.Image]) -> Tensor:
        media = self._processor.image_processor(pictures, return_tensors="pt")
        return self._family.encode(self._model.model, dict(media), run_all=False)["image"]

    def _learn(
        self,
        module: nn.Module,
        draw: Callable[[Tensor], Tensor],
        media: Media,
        settings: AlignmentSettings,
        kept: Path,
        variants: np.random.Generator | None = None,
    ) -> dict:
        """Train a module by AdamW on features [B, D] that `draw` makes of the media with indices [B].

        All names are drawn equally often on average. A call that was interrupted continues from `kept` and ends with
        the same weights: the file has the states of the global generators and of `variants`, which `draw` uses.
        """
        named = [name for _, name in media]
        known = sorted(set(named))
        names = NameEmbeddings(self._model, self._processor.tokenizer, known)
        labels = torch.tensor([known.index(name) for name in named])
        rarity = 1 / torch.bincount(labels).float()
        optimizer = torch.optim.AdamW(module.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, total_steps=settings.steps + 1, pct_start=0.1, cycle_momentum=False
        )
        parts, losses = {"module": module, "optimizer": optimizer, "schedule": schedule}, []
        learned = {"settings": asdict(settings), "media": [[digest(file), name] for file, name in media]}
        found = torch.load(kept, weights_only=True) if kept.is_file() else None
        if found and found["learned"] != learned:
            say(settings.label, f"{kept} is from other media or settings, and is not used")
        elif found:
            for name, part in parts.items():
                part.load_state_dict(found[name])
            losses = found["losses"]
            rng_state.restore(found["random"])
            if variants:
                variants.bit_generator.state = found["variants"]
            say(settings.label, f"{len(losses)} of {settings.steps} steps are learned already")
        for step in progress(settings.label, settings.steps - len(losses))(range(len(losses) + 1, settings.steps + 1)):
            chosen = torch.multinomial(rarity[labels], settings.batch, replacement=True)
            loss = names.loss(draw(chosen), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if step % KEPT_EVERY == 0 or step == settings.steps:
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {"learned": learned, "losses": losses, "random": rng_state.state()}
                state |= {"variants": variants.bit_generator.state} if variants else {}
                write_aside(kept, functools.partial(torch.save, state))
        first, last = losses[0], sum(losses[-20:]) / len(losses[-20:])
        say(settings.label, f"{len(known)} names, {settings.steps} steps · loss {first:.2f} → {last:.2f}")
        return {
            "names": len(known),
            "media": len(named),
            "steps": settings.steps,
            "first_loss": first,
            "last_loss": last,
        }


def varied(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random crop of a square picture, perhaps mirrored, with other brightness, contrast and color."""
    side = picture.width
    cut = int(side * rng.uniform(0.65, 1))
    x, y = (int(rng.integers(side - cut + 1)) for _ in range(2))
    other = picture.crop((x, y, x + cut, y + cut)).resize((side, side), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        other = other.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        other = kind(other).enhance(rng.uniform(0.6, 1.4))
    return other
