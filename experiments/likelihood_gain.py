"""Which ablation, and which measure, tells completions that used both senses from those that took a shortcut?

    python experiments/likelihood_gain.py model=outputs/prone_base data=outputs/data/shortcut_0.9_seed0_2000_256_1000

Samples completions of a base that knows two routes (it reasons, or it guesses in haste, mostly by the timbre) to
training questions of the set with a shortcut, and scores each under the full prompt and without each sense: removed,
blanked (silence, grey), swapped. Of the right completions it prints how well c_i, summed or per token, separates the
two routes (area under the ROC curve; 0.5 is none), and the median of each.
"""

import sys

import numpy as np
import torch
from rich.progress import track
from scipy.stats import mannwhitneyu
from trl.trainer.utils import add_fused_lm_head

from echoink.config.compose import compose
from echoink.config.schema import Variant
from echoink.data import ablations
from echoink.data.processor import Caps, PromptProcessor
from echoink.data.samples import Sample
from echoink.data.splits import read_split, video_caps
from echoink.models import loading
from echoink.models.logprobs import score
from echoink.rewards import integration
from echoink.rewards.accuracy import accuracy_reward
from echoink.rollout.generate import generate
from echoink.rollout.sampling import Sampling, uniforms

ABLATIONS = {
    "removed": (Variant.no_audio, Variant.no_image),
    "blank": (Variant.silent_audio, Variant.blank_image),
    "swapped": (Variant.swapped_audio, Variant.swapped_image),
}
GROUP, BATCH = 8, 16


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    config = compose([f"model.path={given['model']}"], False, None)[0].config
    model = loading.load_model(given["model"])
    add_fused_lm_head(model, temperature=config.generation.temperature)
    omni = loading.load_processor(given["model"], config.model.min_pixels, config.model.max_pixels)
    caps = Caps(config.model.max_audio_seconds, video_caps(config.model), config.model.max_prompt_tokens)
    processor = PromptProcessor(omni, model, config.prompt, caps)
    samples = read_split(given["data"], "train")[: int(given.get("samples", 256))]
    changed = {v: {s.id: s for s in ablations.make(samples, v, 0)} for pair in ABLATIONS.values() for v in pair}
    samples = [s for s in samples if all(s.id in found for found in changed.values())]
    ends, pad = loading.end_ids(model, omni), omni.tokenizer.pad_token_id
    sampling = Sampling(
        config.generation.temperature,
        config.generation.top_p,
        config.generation.top_k,
        config.generation.max_new_tokens,
    )
    hasty, gains, lengths = [], {name: [] for name in ABLATIONS}, []
    for start in track(range(0, len(samples), BATCH), "scoring"):
        batch = samples[start : start + BATCH]
        noise = torch.stack([uniforms(0, 0, s.id, GROUP, sampling.max_new_tokens) for s in batch])
        prompts = [processor(sample) for sample in batch]
        completions = generate(model, prompts, noise, [sampling.temperature] * GROUP, sampling, ends, pad)
        texts = omni.batch_decode(completions, skip_special_tokens=True)
        ids, mask = integration.padded(completions, torch.device("cpu"))
        prompt_index = [row // GROUP for row in range(len(ids))]
        right = [_right(text, batch[index]) for text, index in zip(texts, prompt_index, strict=True)]
        with torch.no_grad():
            full = score(model, prompts, None, prompt_index, ids, mask)[0]
            for name, pair in ABLATIONS.items():
                asked = [[processor(changed[variant][s.id]) for s in batch] for variant in pair]
                without = torch.stack([score(model, one, None, prompt_index, ids, mask)[0] for one in asked])
                gains[name] += ((full - without) * mask).sum(-1).amin(0)[right].tolist()
        hasty += ["no need" in text for text, kept in zip(texts, right, strict=True) if kept]
        lengths += mask.sum(1)[right].tolist()
    guess = np.array(hasty)
    print(f"{len(guess)} right completions of {len(samples) * GROUP}, {guess.mean():.0%} of them hasty guesses\n")
    print(
        "| ablation | measure | AUC | median, reasoned | median, guessed | guesses paid more than the median reason |"
    )
    print("|---|---|---|---|---|---|")
    for name, values in gains.items():
        for measure, c in (("sum", np.array(values)), ("per token", np.array(values) / np.array(lengths))):
            reasoned, guessed = c[~guess], c[guess]
            auc = mannwhitneyu(reasoned, guessed).statistic / (len(reasoned) * len(guessed))
            above = (guessed > np.median(reasoned)).mean()
            medians = f"{np.median(reasoned):.3f} | {np.median(guessed):.3f}"
            print(f"| {name} | {measure} | {auc:.3f} | {medians} | {above:.0%} |")


def _right(text: str, sample: Sample) -> bool:
    return accuracy_reward(text, sample.problem_type, sample.options, sample.solution) == 1


if __name__ == "__main__":
    main(sys.argv[1:])
