"""One evaluation of a run: the answers to disk as they come, then the summary, the screen and MLflow.

An evaluation that was killed goes on where it stopped: what predictions.jsonl already holds is not answered again, and
each answer stands there once. Several processes share the samples; the first of them writes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate.utils import gather_object
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from echoink import cache, console, evaluation, needs, reflection, together, variants
from echoink.config import EvalConfig, Protocol, Variant
from echoink.evaluation import Prediction, Setting
from echoink.models import processes
from echoink.processing import PromptProcessor
from echoink.prompts import Prompt
from echoink.rewards import Match
from echoink.rollout import Sampling
from echoink.samples import Sample
from echoink.tracker import Tracker
from echoink.tracking import PREDICTIONS, RunFolder


@dataclass(frozen=True)
class Evaluator:
    """What the evaluations of one run have in common.

    Args:
        config: the group `eval`.
        direct: the prompt without reasoning, for the public protocols.
        processor: turns a sample into model inputs, with the prompt of training.
        sampling: as in training.
        end_ids: tokens that end a completion.
        match: how an answer is read.
        own_reward: a user's.
        seed: of the sampled draws.
        bf16: autocast to bfloat16.
        clusters: by id, which evaluated samples share media.
        dev_clusters: the same of the development split.
        data: digest of the evaluated samples and their files.
        files: the run's folder.
        tracker: the run in MLflow.
    """

    config: EvalConfig
    direct: Prompt
    processor: PromptProcessor
    sampling: Sampling
    end_ids: Sequence[int]
    match: Match
    own_reward: Callable[[str, Sample], float] | None
    seed: int
    bf16: bool
    clusters: Mapping[str, str]
    dev_clusters: Mapping[str, str]
    data: str
    files: RunFolder
    tracker: Tracker

    def phase(
        self, model: Qwen2_5OmniThinkerForConditionalGeneration, samples: Sequence[Sample], phase: str, step: int
    ) -> list[Prediction]:
        """Evaluate a model as the protocol says, or take up where an earlier process stopped.

        Args:
            model: the thinker.
            samples: what to answer.
            phase: `base` or `final`.
            step: of training, for MLflow.
        """
        config = self.config
        how = evaluation.setting(
            config.protocol, phase, self.processor.prompt, self.direct, config.samples, config.greedy, self.match
        )
        answers = {Variant.full: self._variant(model, samples, phase, how, Variant.full)}
        found = self.files.summary[phase] = evaluation.summarize(answers[Variant.full])
        greedy = "" if found["greedy_accuracy"] is None else f"greedy {console.percent(found['greedy_accuracy'])} · "
        console.say(
            phase,
            f"accuracy {console.percent(found['accuracy'])} {console.interval(found['interval'])} · {greedy}"
            f"format {console.percent(found['format'])} · parse failures {console.percent(found['parse_failures'])}"
            + (f" · cut {console.percent(found['truncated'])}" if found["truncated"] else "")
            + (f" · a guess {console.percent(found['chance'])}" if found["chance"] else ""),
        )
        for variant in dict.fromkeys(config.ablations):
            if variant is Variant.full:
                continue
            if any(variants.applies(variant, sample) for sample in samples):
                answers[variant] = self._variant(model, samples, phase, how, variant)
            else:
                console.say(phase, f"no sample has what {variant.name} takes away")
        if len(answers) > 1:
            found["ablations"] = needs.summarize(answers)
            self.files.write_rows(f"needs-{phase}.jsonl", needs.rows(answers))
        if not any(row["phase"] == phase for row in self.files.read("eval.jsonl")):  # of an earlier process
            row = self.files.numbers("eval.jsonl", {"step": step, "phase": phase, **_metrics(found, "eval")})
            if phase == evaluation.BASE:  # the final numbers go with the checkpoint, see sync.py
                self.tracker.row(row)
        return answers[Variant.full]

    def _variant(
        self,
        model: Qwen2_5OmniThinkerForConditionalGeneration,
        samples: Sequence[Sample],
        phase: str,
        how: Setting,
        variant: Variant,
    ) -> list[Prediction]:
        """The answers to a variant of the samples; a base's may be those of an earlier run.

        Each draw of a swap has a donor of its own: one donor in four may by chance leave the answer as it was.
        """
        kept = None

        def started() -> bool:  # by an earlier process
            rows = self.files.read(PREDICTIONS)
            return any(row["phase"] == phase and row["variant"] == variant.name for row in rows)

        if self.config.cache and phase == evaluation.BASE and not together.first(started):
            kept = self._kept(model, how, samples[0], variant)
            if self.files.writes:
                self._take(kept, samples, how)
        processes().wait_for_everyone()
        answers: list[Prediction] = []
        for first, draws in enumerate([(draw,) for draw in how.draws] if variant in variants.SWAPS else [how.draws]):
            asked = variants.make(samples, variant, self.seed + first, self.clusters)
            answers += self._answers(model, asked, phase, how.prompt, draws, how.match, self.clusters, variant, first)
        if kept and self.files.writes and not kept.is_file():
            cache.keep(kept, answers)
        return answers

    def watch(self, model: Qwen2_5OmniThinkerForConditionalGeneration, samples: Sequence[Sample], step: int) -> None:
        """Answer the first samples with the noise of every other step, to `watched.jsonl`, for people to look at."""
        answers = evaluation.evaluate(
            model,
            self.processor,
            samples[: self.config.watched],
            self.sampling,
            self.end_ids,
            self.match,
            self.seed,
            f"step-{step}",
            self.config.batch_prompts,
            self.bf16,
            (evaluation.SAMPLED,),
        )
        self.files.append("watched.jsonl", [{"step": step, **asdict(answer)} for answer in answers])

    def _kept(
        self, model: Qwen2_5OmniThinkerForConditionalGeneration, how: Setting, sample: Sample, variant: Variant
    ) -> Path:
        """Where the answers of this base are kept for other runs."""
        example = replace(self.processor, prompt=how.prompt)(sample)  # for the tokenizer and its template
        name = cache.key(
            model,
            data=self.data,
            variant=variant.name,
            prompt=how.prompt,
            draws=how.draws,
            caps=self.processor.caps,
            pixels=self.processor.processor.image_processor.size,
            tokens=example.input_ids.tolist(),
            sampling=self.sampling,
            ends=sorted(self.end_ids),
            seed=self.seed,
            bf16=self.bf16,
            batch=self.config.batch_prompts,
        )
        return Path(self.config.cache) / f"base-{name}.jsonl"

    def _take(self, kept: Path, samples: Sequence[Sample], how: Setting) -> None:
        """Take kept answers into this run's predictions, judged as this run judges."""
        of_id = {sample.id: sample for sample in samples}
        taken = [
            replace(
                p,
                cluster=self.clusters.get(p.id, p.id),
                fields=of_id[p.id].fields,
                media=of_id[p.id].places if p.variant == Variant.full.name else p.media,
                **evaluation.judged(p.completion, of_id[p.id], how.match, p.thinks, self.own_reward),
            )
            for p in cache.take(kept)
        ]
        if taken:
            self.files.append(PREDICTIONS, map(asdict, taken))
            console.say(evaluation.BASE, f"answers of an earlier run of the same base, from {kept}")

    def development(
        self, model: Qwen2_5OmniThinkerForConditionalGeneration, samples: Sequence[Sample], step: int
    ) -> dict[str, float]:
        """Evaluate on the development split during training, always with the prompt and parser of training.

        Returns:
            `dev/accuracy` (the mean over draws), `dev/format`, … and `dev/pass_at_k` where there are several draws.
        """
        draws = evaluation.draw_names(self.config.dev_samples, greedy=False)
        prompt = self.processor.prompt
        answers = self._answers(model, samples, f"step-{step}", prompt, draws, self.match, self.dev_clusters)
        found = evaluation.summarize(answers)
        metrics = _metrics(found, "dev")
        if several := found["samples"]:
            metrics |= {"dev/accuracy": several["mean"], "dev/pass_at_k": several["pass"]}
        passed = (
            f" · pass@{found['samples']['k']} {console.percent(found['samples']['pass'])}" if found["samples"] else ""
        )
        console.say(
            "dev",
            f"step {step} · accuracy {console.percent(metrics['dev/accuracy'])}{passed} · "
            f"format {console.percent(found['format'])} · parse failures {console.percent(found['parse_failures'])}",
        )
        return metrics

    def _answers(
        self,
        model: Qwen2_5OmniThinkerForConditionalGeneration,
        samples: Sequence[Sample],
        phase: str,
        prompt: Prompt,
        draws: Sequence[str],
        match: Match,
        clusters: Mapping[str, str],
        variant: Variant = Variant.full,
        first: int = 0,
    ) -> list[Prediction]:
        label = phase if variant is Variant.full else f"{phase} {variant.name}"
        group, batch = processes(), self.config.batch_prompts
        have = self._have(phase, variant, samples, draws, batch * group.num_processes)
        open_samples = [s for s in samples if any((s.id, draw) not in have for draw in draws)]
        if have and open_samples:
            console.say(
                label, f"{len(samples) - len(open_samples):,} of {len(samples):,} samples were already answered"
            )
        group.wait_for_everyone()  # everyone has read before anyone writes
        own = open_samples[group.process_index :: group.num_processes]
        rounds = -(-len(open_samples) // (batch * group.num_processes))
        for number in console.progress(label, rounds)(range(rounds)):
            together.heed()
            together.at(f"{label}, round {number + 1} of {rounds}")
            answers = evaluation.evaluate(
                model,
                replace(self.processor, prompt=prompt),
                own[number * batch : (number + 1) * batch],
                self.sampling,
                self.end_ids,
                match,
                self.seed,
                phase,
                batch,
                self.bf16,
                draws,
                clusters,
                self.own_reward,
                variant,
                first,
            )
            new = [p for p in gather_object(list(answers)) if (p.id, p.draw) not in have]
            self.files.append(PREDICTIONS, map(asdict, new))
            have |= {(p.id, p.draw): p for p in new}
        return [have[sample.id, draw] for sample in samples for draw in draws]

    def _have(
        self, phase: str, variant: Variant, samples: Sequence[Sample], draws: Sequence[str], together: int
    ) -> dict[tuple[str, str], Prediction]:
        """The answers of earlier processes. A round that was cut off is answered again, so that the batches are those
        of an evaluation that nothing interrupted.
        """
        rows = self.files.read(PREDICTIONS)

        def ours(row: dict) -> bool:
            return row["phase"] == phase and row["variant"] == variant.name and row["draw"] in draws

        have = {(row["id"], row["draw"]): evaluation.of_row(row) for row in rows if ours(row)}
        done = next((n for n, s in enumerate(samples) if any((s.id, d) not in have for d in draws)), len(samples))
        if have and done < len(samples):
            whole = {sample.id for sample in samples[: done // together * together]}
            cut = [row for row in rows if not ours(row) or row["id"] in whole]
            if len(cut) < len(rows):
                self.files.write_rows(PREDICTIONS, cut)
            have = {key: answer for key, answer in have.items() if key[0] in whole}
        return have


def _metrics(found: dict, where: str) -> dict[str, float]:
    metrics = {
        f"{where}/accuracy": found["accuracy"],
        f"{where}/format": found["format"],
        f"{where}/parse_failure_ratio": found["parse_failures"],
        f"{where}/truncated_ratio": found["truncated"],
        f"{where}/mean_length": found["mean_tokens"],
    }
    if found["greedy_accuracy"] is not None:
        metrics[f"{where}/greedy_accuracy"] = found["greedy_accuracy"]
    if found["positions"] and found["positions"]["distance"] is not None:
        metrics[f"{where}/position_distance"] = found["positions"]["distance"]
    metrics |= {f"{where}/reflection_{name}": found["reflection"][name] for name in reflection.SIGNS}
    if found["samples"]:
        metrics |= {f"{where}/mean_accuracy": found["samples"]["mean"], f"{where}/pass_at_k": found["samples"]["pass"]}
    for variant, told in (found.get("ablations") or {}).items():
        if variant != "needs":
            metrics |= {
                f"{where}/{variant}/accuracy": told["accuracy"],
                f"{where}/{variant}/drop": told["drop"]["difference"],
                f"{where}/{variant}/parse_failure_ratio": told["parse_failures"],
            }
    return metrics


def conclude(
    files: RunFolder,
    base: Sequence[Prediction],
    final: Sequence[Prediction],
    protocol: Protocol = Protocol.matched,
) -> None:
    """Compare base and final where both were evaluated: summary, flips.jsonl, screen."""
    if base and final:
        sampled = evaluation.compare(base, final)
        drawn = [{p.draw for p in predictions} for predictions in (base, final)]
        both_greedy = all(evaluation.GREEDY in names and len(names) > 1 for names in drawn)
        greedy = evaluation.compare(base, final, evaluation.GREEDY) if both_greedy else None
        files.summary["paired"] = {**asdict(sampled), "greedy": greedy and asdict(greedy)}
        flipped = evaluation.flips(base, final)
        files.write_text("flips.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in flipped))
        low, high = (100 * end for end in sampled.interval)
        several = files.summary["final"]["samples"]
        unit = f" (mean of {several['k']} draws)" if several and files.summary["base"]["samples"] else ""
        how = "" if protocol is Protocol.matched else f" · protocol {protocol.name}, not matched"
        console.say(
            "gain",
            f"{100 * sampled.difference:+.1f} points{unit} [{low:+.1f}, {high:+.1f}], {sampled.test} "
            f"p = {sampled.p_value:.2g} · {sampled.gained} samples gained, {sampled.lost} lost"
            + (f" · greedy p = {greedy.p_value:.2g}" if greedy else "")
            + how,
        )
    told = {phase: files.summary[phase] for phase in ("base", "final") if files.summary[phase]}
    console.accuracy_table(told)
    if all("ablations" in found for found in told.values()):
        console.ablation_table({phase: found["ablations"] for phase, found in told.items()})
