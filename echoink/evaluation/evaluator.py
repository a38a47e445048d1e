"""Evaluates a model in a run: writes answers to disk as they come, then results to summary, screen and MLflow.

A killed evaluation resumes where it stopped: answers that are in predictions.jsonl are not generated again, and each
occurs there once. Several processes share the samples; the first one writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from accelerate.utils import gather_object
from transformers import PreTrainedModel

from echoink.common import console
from echoink.common.clusters import Clusters
from echoink.common.errors import UserError
from echoink.common.files import as_lines, read_json, read_rows, write_atomic
from echoink.config.schema import EvalConfig, Split, Task, Variant
from echoink.data import ablations
from echoink.data.samples import Sample
from echoink.distributed import collectives, watchdog
from echoink.distributed.process_group import processes
from echoink.evaluation import engine_difference, evaluate, modality_need, prediction_cache
from echoink.evaluation.evaluate import EvaluationSetup
from echoink.evaluation.metrics import metrics_of_phase, summarize
from echoink.evaluation.prediction import BASE, SAMPLED, Prediction, draw_names, judged, number_of, of_row
from echoink.models.fingerprint import settings_digest, weights_digest
from echoink.rollout.vllm_engine import Engine
from echoink.run_folder.folder import PREDICTIONS, RunFolder, finite
from echoink.tracking.logger import Tracker

UNREADABLE = 0.9
"""A larger share of parse failures causes a warning."""

ANSWERED = "answered.json"
"""Holds the digests of weights and data behind a phase's answers."""

WHAT_TO_DO = (
    "See predictions.jsonl. The embedded model (model.path=tiny) knows only the synthetic questions; for others use a "
    "real one, model=qwen2_5_omni_3b. If answers are cut, raise generation.max_new_tokens; if they ignore the "
    "format, change the prompt."
)


@dataclass(frozen=True)
class Evaluator:
    """What the evaluations of one run have in common.

    Args:
        config: the group `eval`.
        setup: training's prompt and parser; a phase may use others, see `evaluate.of_phase`.
        clusters: by id; evaluated samples that share media share a name.
        dev_clusters: the same for the development split.
        data: digest of the evaluated samples and their files.
        files: the run's folder.
        tracker: the run in MLflow.
        engine: answers instead of the model, see `eval.engine`.
    """

    config: EvalConfig
    setup: EvaluationSetup
    clusters: Mapping[str, Clusters]
    dev_clusters: Mapping[str, Clusters]
    data: str
    files: RunFolder
    tracker: Tracker
    engine: Engine | None = None

    def phase(self, model: PreTrainedModel, samples: Sequence[Sample], phase: str, step: int) -> list[Prediction]:
        """Evaluate a model as the protocol says, or continue where an earlier process stopped.

        Args:
            model: the policy, not wrapped.
            samples: what to answer.
            phase: `base` or `final`.
            step: the training step, for MLflow.
        """
        config = self.config
        how = evaluate.of_phase(self.setup, config, phase)
        weights = self._check_answers_on_disk(model, phase)
        differs = self.engine and engine_difference.push_and_compare(
            self.engine, model, samples, self.setup, phase=phase
        )
        answers = {Variant.full: self._variant(model, samples, phase, how=how, variant=Variant.full, weights=weights)}
        found = self.files.summary[phase] = summarize(answers[Variant.full])
        if differs:
            found["engine"] = differs
        greedy = "" if found["greedy_accuracy"] is None else f"greedy {console.percent(found['greedy_accuracy'])} · "
        console.say(
            phase,
            f"accuracy {console.percent(found['accuracy'])} {console.interval(found['interval'])} · {greedy}"
            f"format {console.percent(found['format'])} · parse failures {console.percent(found['parse_failures'])}"
            + (f" · cut {console.percent(found['truncated'])}" if found["truncated"] else "")
            + (f" · a guess {console.percent(found['chance'])}" if found["chance"] else ""),
        )
        if found["parse_failures"] > UNREADABLE:
            console.say("warning", f"hardly any answer can be read, so accuracies and rewards say little. {WHAT_TO_DO}")
        for variant in dict.fromkeys(config.ablations):
            if variant is Variant.full:
                continue
            if any(ablations.applies(variant, sample) for sample in samples):
                answers[variant] = self._variant(model, samples, phase, how=how, variant=variant, weights=weights)
            else:
                console.say(phase, f"no sample has what {variant.name} takes away")
        if len(answers) > 1:
            found["ablations"] = modality_need.summarize(answers)
            self.files.write_rows(f"needs-{phase}.jsonl", modality_need.rows(answers))
        if self.engine:
            self.engine.rest()  # training, or the next model, needs the GPU's memory
        self._log({"step": step, "phase": phase, **metrics_of_phase(found, "eval")})
        return answers[Variant.full]

    def _log(self, row: dict) -> None:
        """Write a phase's numbers, unless an earlier process wrote the same.

        A new base row removes the final row, which is written again after it: MLflow shows the last row.
        """
        rows, row = self.files.read("eval.jsonl"), finite(row)
        if any(row == {name: value for name, value in each.items() if name != "timestamp"} for each in rows):
            return
        kept = [] if row["phase"] == BASE else [each for each in rows if each["phase"] != row["phase"]]
        self.files.write_rows("eval.jsonl", kept)
        row = self.files.numbers("eval.jsonl", row)
        if row["phase"] == BASE:  # the final numbers are logged with the checkpoint, see tracking/sync.py
            self.tracker.row(row)

    def _check_answers_on_disk(self, model: PreTrainedModel, phase: str) -> str:
        """Return the digests of weights and settings; refuse answers on disk of other weights or to other questions.

        Raises:
            UserError: an earlier process has left such answers.
        """
        if phase != BASE and self.files.summary["task"] in (Task.train.name, Task.sft.name):
            return ""  # a training run has made these answers itself; `resume.begin` has checked them
        here = {"weights": weights_digest(model), "settings": settings_digest(model), "data": self.data}

        def check() -> None:
            file = self.files.path / ANSWERED
            before = read_json(file) if file.is_file() else {}
            begun = any(row["phase"] == phase for row in self.files.read(PREDICTIONS))
            was = here | before.get(phase, {})  # earlier versions did not note the settings
            if begun and (others := [name for name in here if here[name] != was[name]]):
                raise UserError(
                    f"{self.files.path} has answers ({phase}) of other {' and '.join(others)} than there are now",
                    "choose another hydra.run.dir; a training also takes resume_allow=[data,model]",
                )
            self.files.write_json(ANSWERED, before | {phase: here})

        collectives.on_main_process(check)
        return f"{here['weights']} {here['settings']}"

    def _variant(
        self,
        model: PreTrainedModel,
        samples: Sequence[Sample],
        phase: str,
        how: EvaluationSetup,
        variant: Variant,
        weights: str,
    ) -> list[Prediction]:
        """The answers to a variant of the samples; the base's may come from the cache of an earlier run. In a swap each
        draw takes another donor, because by chance one donor in four leads to the same right answer.
        """
        cache_file = None

        def started() -> bool:  # by an earlier process
            rows = self.files.read(PREDICTIONS)
            return any(row["phase"] == phase and row["variant"] == variant.name for row in rows)

        # Only the base is the same in many runs. Cached answers are not mixed into an evaluation that has begun.
        if self.config.cache and phase == BASE and not collectives.on_main_process(started):
            cache_file = self._cache_file(weights, model, how, sample=samples[0], variant=variant)
            if self.files.writes:
                self._load_cached(cache_file, samples)
        processes().wait_for_everyone()  # cached answers are on disk before other processes look for them
        answers: list[Prediction] = []
        for first, draws in enumerate([(draw,) for draw in how.draws] if variant in ablations.SWAPS else [how.draws]):
            part, seed = replace(how, draws=draws), how.seed + number_of(draws[0])
            asked = ablations.make(samples, variant, seed, self.clusters)
            answers += self._answers(
                model, asked, phase, how=part, clusters=self.clusters, variant=variant, first_draw=first
            )
        if cache_file and self.files.writes and not cache_file.is_file():
            try:
                cache_file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(cache_file, as_lines(map(asdict, answers)))  # several runs may write it at once
            except OSError as error:
                console.say("warning", f"the base's answers are not kept for other runs: {error}")
        return answers

    def watch(self, model: PreTrainedModel, samples: Sequence[Sample], step: int) -> None:
        """Answer the first samples, with the same noise at every step, and append the answers to `watched.jsonl`."""
        setup = replace(self.setup, draws=(SAMPLED,), extra_rewards=())
        answers = evaluate.evaluate(model, samples[: self.config.watched], setup, f"step-{step}")
        self.files.append("watched.jsonl", [{"step": step, **asdict(answer)} for answer in answers])

    def _cache_file(
        self, weights: str, model: PreTrainedModel, how: EvaluationSetup, sample: Sample, variant: Variant
    ) -> Path:
        """The file that caches the answers of this base for other runs."""
        example = how.processor(sample)  # stands for the tokenizer and its template
        name = prediction_cache.key(
            weights=weights,
            device=model.device.type,
            attention=model.config._attn_implementation,
            data=self.data,
            variant=variant.name,
            prompt=how.processor.prompt,
            draws=how.draws,
            caps=how.processor.caps,
            pixels=how.processor.processor.image_processor.size,
            tokens=example.input_ids.tolist(),
            sampling=how.sampling,
            seed=how.seed,
            split=how.split,
            bf16=how.bf16,
            batch=how.batch_prompts,
            engine=self.engine and self.engine.version,
            # The choice of donors depends on which media samples share, also through `Sample.sources`.
            **({"clusters": sorted(self.clusters.items())} if variant in ablations.SWAPS else {}),
        )
        return Path(self.config.cache) / f"base-{name}.jsonl"

    def _load_cached(self, cache_file: Path, samples: Sequence[Sample]) -> None:
        """Copy cached answers into this run's predictions; `_answers_on_disk` judges them as this run does."""
        # The texts stay; clusters and fields of the rows may have changed since they were cached.
        of_id, rows = {sample.id: sample for sample in samples}, read_rows(cache_file)
        for row in rows:
            sample = of_id[row["id"]]
            row.update(cluster=self.clusters.get(sample.id, sample.id), fields=sample.fields)
            if row["variant"] == Variant.full.name:
                row["media"] = sample.places
        if rows:
            self.files.append(PREDICTIONS, rows)
            console.say(BASE, f"answers of an earlier run of the same base, from {cache_file}")

    def development(self, model: PreTrainedModel, samples: Sequence[Sample], step: int) -> dict[str, float]:
        """Evaluate on the development split during training, always with the prompt and parser of training.

        Returns:
            `dev/accuracy` (the mean over draws), `dev/format`, … and, if there are several draws, `dev/pass_at_k`.
        """
        if self.engine:
            self.engine.push(model)
        draws = tuple(draw_names(self.config.dev_samples, greedy=False))
        how = replace(self.setup, draws=draws, split=Split.dev.name)
        answers = self._answers(model, samples, f"step-{step}", how=how, clusters=self.dev_clusters)
        if self.engine:
            self.engine.rest()
        found = summarize(answers)
        metrics = metrics_of_phase(found, "dev")
        passed = ""
        if several := found["samples"]:
            metrics |= {"dev/accuracy": several["mean"], "dev/pass_at_k": several["pass"]}
            passed = f" · pass@{several['k']} {console.percent(several['pass'])}"
        console.say(
            "dev",
            f"step {step} · accuracy {console.percent(metrics['dev/accuracy'])}{passed} · "
            f"format {console.percent(found['format'])} · parse failures {console.percent(found['parse_failures'])}",
        )
        return metrics

    def _answers(
        self,
        model: PreTrainedModel,
        samples: Sequence[Sample],
        phase: str,
        how: EvaluationSetup,
        clusters: Mapping[str, Clusters],
        variant: Variant = Variant.full,
        first_draw: int = 0,
    ) -> list[Prediction]:
        label = phase if variant is Variant.full else f"{phase} {variant.name}"
        group, batch = processes(), how.batch_prompts
        have, begun = self._answers_on_disk(phase, variant, samples, how=how, round_size=batch * group.num_processes)
        group.wait_for_everyone()  # all processes have read before the first one writes
        for done, draws in begun.items():
            left = samples[done:]
            if have and left:
                which = "" if len(begun) == 1 else f" ({', '.join(draws)})"
                console.say(label, f"{done:,} of {len(samples):,} samples were already answered{which}")
            # Processes take samples in turn, so that every round answers the next samples of the split.
            own = left[group.process_index :: group.num_processes]
            rounds = -(-len(left) // (batch * group.num_processes))
            answers = evaluate.evaluate(
                model,
                own,
                replace(how, draws=draws),
                phase,
                clusters=clusters,
                variant=variant,
                first_draw=first_draw + how.draws.index(draws[0]),
                engine=self.engine,
            )
            for number in console.progress(label, rounds)(range(rounds)):
                collectives.heed()
                watchdog.at(f"{label}, round {number + 1} of {rounds}")
                part = list(islice(answers, batch * len(draws)))
                new = [p for p in gather_object(part) if (p.id, p.draw) not in have]
                self.files.append(PREDICTIONS, map(asdict, new))
                have |= {(p.id, p.draw): p for p in new}
        return [have[sample.id, draw] for sample in samples for draw in how.draws]

    def _answers_on_disk(
        self, phase: str, variant: Variant, samples: Sequence[Sample], how: EvaluationSetup, round_size: int
    ) -> tuple[dict[tuple[str, str], Prediction], dict[int, tuple[str, ...]]]:
        """The answers of earlier processes, judged as this process judges; and how many samples, from the first on,
        have which draws. These are fewer for draws that an earlier process did not ask for.

        An incomplete round is answered again, so that the batches are those of an uninterrupted evaluation.
        """
        rows, of_id, changed = self.files.read(PREDICTIONS), {sample.id: sample for sample in samples}, 0

        def ours(row: dict) -> bool:
            is_of = row["phase"] == phase and row["variant"] == variant.name
            return is_of and row["draw"] in how.draws and row["id"] in of_id

        for row in filter(ours, rows):
            sample, text = of_id[row["id"]], row["completion"]
            says = judged(text, sample, how.match, thinks=row["thinks"], extra_rewards=how.extra_rewards)
            if any(row.get(name, value) != value for name, value in says.items()):
                row.update(says)
                changed += 1
        if changed:
            console.say(phase, f"{changed:,} answers on disk are judged differently now")
        have = {(row["id"], row["draw"]): of_row(row) for row in rows if ours(row)}
        begun: dict[int, tuple[str, ...]] = {}
        for draw in how.draws:
            done = next((n for n, sample in enumerate(samples) if (sample.id, draw) not in have), len(samples))
            whole = done if done == len(samples) else done // round_size * round_size
            begun[whole] = (*begun.get(whole, ()), draw)
        complete = {(sample.id, draw) for whole, draws in begun.items() for sample in samples[:whole] for draw in draws}
        remaining = [row for row in rows if not ours(row) or (row["id"], row["draw"]) in complete]
        if changed or len(remaining) < len(rows):
            self.files.write_rows(PREDICTIONS, remaining)
        return {key: answer for key, answer in have.items() if key in complete}, begun
