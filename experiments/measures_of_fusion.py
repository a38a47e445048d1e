"""Which measure separates answers that use both modalities from answers that follow a cue?

    python experiments/measures_of_fusion.py model=outputs/described_base \
        data=outputs/data/described_0.9_seed0_2000_256_500 samples=400

Samples completions for training questions of the set with a shortcut, from a base that knows several routes to an
answer. The route of a completion is known from its text (`shortcut.route`): reasoned, the cue, or a false sum; the two
wrong ones also describe both media, at the same length. It takes the right completions to questions that need both
modalities and whose right letter is that of the cue, and prints how well each measure separates the reasoned ones from
the others: AUC, the area under the ROC curve, with a 95 % interval by bootstrap over questions. 0.5 means no
separation; below 0.5 the measure prefers the wrong route.

A measure should also be 0 if a question does not need both: the last columns have the mean of each measure over right
answers to audio questions, to image questions, and to questions that need both, reasoned and by the cue.

Measures (S: log-probability of the completion, per token unless stated; m: a modality):

    length, mention     tokens; 1 if the text says "hear" and "see". They know nothing of the media.
    removed, blank, swapped     min_m S(o | q) - S(o | q, m removed, blank, of a donor); swapped: the mean over donors
    answer, swapped     the same for the answer's tokens only, given the completion's own reasoning
    twin                1 if the answer drawn with the same noise changes under both swaps and can be read; the mean
                        over donors (with one donor: what reward.integration=twin pays)
    twin, other noise   the same, but the swaps are drawn with other noise
    redraw              1 if the answer changes with the noise alone, twice; the media stay
    implied             1 if the twins' answers are those that the donors' media imply (known for synthetic scenes
                        only: an oracle, not a reward)
"""

import re
import sys
from collections.abc import Sequence

import numpy as np
import torch
from rich.progress import track
from scipy.stats import rankdata
from shortcut import Route, route
from trl.trainer.utils import add_fused_lm_head

from echoink.config.compose import compose
from echoink.config.schema import Variant
from echoink.data import ablations, synthetic
from echoink.data.processor import Caps, PromptProcessor
from echoink.data.samples import Sample
from echoink.data.splits import read_split, video_caps
from echoink.models import loading
from echoink.models.logprobs import packed_logprobs
from echoink.rewards import integration
from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.parsing import ANSWER, read_letters
from echoink.rollout.generate import generate
from echoink.rollout.sampling import Sampling, uniforms

REMOVED = {
    "removed": (Variant.no_audio, Variant.no_image),
    "blank": (Variant.silent_audio, Variant.blank_image),
}
GROUP, BATCH, DONORS = 8, 16, 4
TWIN = "twin, 1 donor"
BY_THE_CUE = [Route.cue.name, Route.hasty.name]
"""Routes that follow the cue: with a description of both media, or as a hasty guess."""


class Scorer:
    """A model, with what is needed to prompt it and to score its answers."""

    def __init__(self, path: str):
        config = compose([f"model.path={path}"], False, None)[0].config
        self.model = loading.load_model(path)
        add_fused_lm_head(self.model, temperature=config.generation.temperature)
        self.omni = loading.load_processor(path, config.model.min_pixels, config.model.max_pixels)
        caps = Caps(config.model.max_audio_seconds, video_caps(config.model), config.model.max_prompt_tokens)
        self.processor = PromptProcessor(self.omni, self.model, config.prompt, caps)
        made, ends = config.generation, loading.end_ids(self.model, self.omni)
        self.sampling = Sampling(made.temperature, made.top_p, made.top_k, made.max_new_tokens, ends)

    def complete(self, samples: Sequence[Sample], step: int) -> list[list[int]]:
        """GROUP completions of each sample, with the noise of a step."""
        length = self.sampling.max_new_tokens
        noise = torch.stack([uniforms(0, step, sample.id, group_size=GROUP, length=length) for sample in samples])
        prompts = [self.processor(sample) for sample in samples]
        temperatures = [self.sampling.temperature] * GROUP
        return generate(self.model, prompts, noise, temperatures=temperatures, sampling=self.sampling)

    def texts(self, completions: Sequence[Sequence[int]]) -> list[str]:
        return self.omni.batch_decode(completions, skip_special_tokens=True)

    @torch.no_grad()
    def logps(self, samples: Sequence[Sample], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [R, C] of completions under prompts."""
        prompt_index = [row // GROUP for row in range(len(ids))]
        prompts = [self.processor(s) for s in samples]
        found = packed_logprobs(self.model, prompts, None, prompt_index=prompt_index, completion_ids=ids, scored=mask)
        return found[0] * mask


def letters(texts: Sequence[str], samples: Sequence[Sample]) -> list[frozenset[str]]:
    return [read_letters(text, samples[row // GROUP].options) for row, text in enumerate(texts)]


def measured(scorer: Scorer, batch: Sequence[Sample], changed: dict, scenes: dict) -> list[dict]:
    """Each right completion of a batch with its route and its measures."""
    completions = scorer.complete(batch, 0)
    texts = scorer.texts(completions)
    given = letters(texts, batch)
    ids, mask = integration.padded(completions, torch.device("cpu"))
    full, lengths = scorer.logps(batch, ids, mask), mask.sum(1)
    answer = answer_mask(scorer, completions, mask)
    values = {"length": lengths.float(), "mention": torch.tensor([float("hear" in t and "see" in t) for t in texts])}

    def loss(variants: Sequence[tuple], where: torch.Tensor) -> torch.Tensor:
        """[R]: the smaller of two losses of likelihood, each a mean over the given draws."""
        each = []
        for draws in variants:
            lost = [
                ((full - scorer.logps([made[s.id] for s in batch], ids, mask)) * where).sum(1) / where.sum(1).clamp(1)
                for made in draws
            ]
            each.append(torch.stack(lost).mean(0))
        return torch.stack(each).amin(0)

    for name, pair in REMOVED.items():
        values[name] = loss([(changed[variant, 0],) for variant in pair], mask)
    swaps = [[changed[variant, donor] for donor in range(DONORS)] for variant in ablations.SWAPS]
    values["swapped"] = loss(swaps, mask)
    values["answer, swapped"] = loss(swaps, answer)

    def changes(step: int, donor: int) -> tuple[np.ndarray, np.ndarray]:
        """[R]: whether the answer changes under both swaps; whether the answers are those the donors' media imply."""
        both, implied = np.ones(len(texts), bool), np.ones(len(texts), bool)
        for variant in ablations.SWAPS:
            asked = [changed[variant, donor][s.id] for s in batch]
            others = letters(scorer.texts(scorer.complete(asked, step)), batch)
            both &= [bool(new) and new != old for new, old in zip(others, given, strict=True)]
            wanted = [scenes[s.id, variant, donor] for s in batch for _ in range(GROUP)]
            implied &= [new == want for new, want in zip(others, wanted, strict=True)]
        return both, implied

    twins = [changes(0, donor) for donor in range(DONORS)]
    values[TWIN] = twins[0][0]
    values[f"twin, {DONORS} donors"] = np.mean([both for both, _ in twins], 0)
    values["twin, other noise"] = changes(1, 0)[0]
    redrawn = [letters(scorer.texts(scorer.complete(batch, step)), batch) for step in (1, 2)]
    again = [[bool(new) and new != old for new, old in zip(found, given, strict=True)] for found in redrawn]
    values["redraw"] = np.logical_and(*again)
    values["implied"] = twins[0][1]
    rows = []
    for row, text in enumerate(texts):
        sample = batch[row // GROUP]
        if accuracy_reward(text, sample.problem_type, sample.options, sample.solution) < 1:
            continue
        way = route(text, scenes[sample.id], len(sample.options))
        kind = sample.fields["kind"]
        if kind != "both":
            way = Route.reasoned if re.search(r"hear \d \w+, see", text) else Route.hasty
        rows.append({"id": sample.id, "kind": kind, "cue": sample.fields.get("cue"), "route": way.name})
        rows[-1] |= {name: float(value[row]) for name, value in values.items()}
    return rows


def answer_mask(scorer: Scorer, completions: Sequence[Sequence[int]], mask: torch.Tensor) -> torch.Tensor:
    """[R, C]: True from the opening tag of the answer on."""
    found = torch.zeros_like(mask)
    for row, tokens in enumerate(completions):
        text = scorer.texts([tokens])[0]
        start = text.rfind(ANSWER[0])
        if start >= 0:
            first = next(n for n in range(len(tokens) + 1) if len(scorer.texts([tokens[:n]])[0]) > start)
            found[row, max(0, first - 1) : len(tokens)] = True
    return found


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """Area under the ROC curve; ties count one half."""
    ranks = rankdata(np.concatenate([good, bad]))
    return float((ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def interval(rows: Sequence[dict], name: str, wrong: Sequence[str]) -> str:
    """AUC with its interval by bootstrap over questions."""
    by: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        if row["route"] in (Route.reasoned.name, *wrong):
            by.setdefault(row["id"], ([], []))[row["route"] != Route.reasoned.name].append(row[name])
    questions, rng = list(by.values()), np.random.default_rng(0)

    def of(chosen: Sequence[int]) -> float:
        good, bad = (np.array([x for place in chosen for x in questions[place][side]]) for side in (0, 1))
        return auc(good, bad) if len(good) and len(bad) else float("nan")

    draws = [of(rng.integers(0, len(questions), len(questions))) for _ in range(500)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return f"{of(range(len(questions))):.3f} [{low:.3f}, {high:.3f}]"


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    scorer, split = Scorer(given["model"]), given.get("split", "train")
    everything = read_split(given["data"], split)
    samples = everything[int(given.get("first", 0)) :][: int(given.get("samples", 384))]
    variants = [(v, 0) for pair in REMOVED.values() for v in pair]
    variants += [(v, donor) for v in ablations.SWAPS for donor in range(DONORS)]
    changed = {(v, donor): {s.id: s for s in ablations.make(samples, v, donor)} for v, donor in variants}
    samples = [s for s in samples if all(s.id in found for found in changed.values())]
    of_file = {str(m): s for s in everything for m in s.media.values()}
    seed = int(given.get("seed", 0))

    def scene(sample: Sample) -> synthetic.Scene:
        return synthetic.draw(synthetic.generator(seed, split, int(sample.id)), sample.fields["kind"])[0]

    scenes: dict = {s.id: scene(s) for s in samples}
    for sample in samples:
        own, options = scenes[sample.id], len(sample.options)
        for variant in ablations.SWAPS:
            for donor in range(DONORS):
                made = changed[variant, donor][sample.id]
                other = scene(of_file[str(made.audio if variant is Variant.swapped_audio else made.image)])
                sounds, shapes = (
                    (other.sounds, own.shapes) if variant is Variant.swapped_audio else (own.sounds, other.shapes)
                )
                rest = str(synthetic.remainder(sounds, shapes, options))
                scenes[sample.id, variant, donor] = frozenset(o[0] for o in sample.options if o[3:] == rest)
    rows: list[dict] = []
    for start in track(range(0, len(samples), BATCH), "measuring"):
        rows += measured(scorer, samples[start : start + BATCH], changed, scenes)
    report(rows)


def report(rows: Sequence[dict]) -> None:
    """Print the table."""
    names = [name for name in rows[0] if name not in ("id", "kind", "cue", "route")]
    both = [row for row in rows if row["kind"] == "both" and row["cue"] == "agrees"]
    routes = {way.name: sum(row["route"] == way.name for row in both) for way in Route}
    print(f"{len(rows)} right completions; to questions for both whose letter is the cue's {len(both)}: {routes}\n")
    reasoned = [r for r in rows if r["route"] == Route.reasoned.name]
    heads = ("measure", "AUC, against the cue", "against false sums", "by ear", "by eye", "both, reasoned", "both, cue")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in names:
        means = [np.mean([r[name] for r in reasoned if r["kind"] == kind]) for kind in ("ear", "eye", "both")]
        means.append(np.mean([r[name] for r in both if r["route"] in BY_THE_CUE]))
        cells = [name, *(interval(both, name, wrong) for wrong in (BY_THE_CUE, [Route.false_sum.name]))]
        print(f"| {' | '.join([*cells, *(f'{mean:.3f}' for mean in means)])} |")


if __name__ == "__main__":
    main(sys.argv[1:])
