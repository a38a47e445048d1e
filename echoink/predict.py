"""Asks a trained or a base model about your own files; prints the reasoning and the answer.

    python -m echoink.predict --image cat.jpg --audio meow.wav --question "What is making the sound?" \\
        --options cat dog bell
    python -m echoink.predict --checkpoint outputs/tiny/<time> --video clip.mp4 --question "How many knocks?" \\
        --type counting
    python -m echoink.predict --checkpoint outputs/tiny/<time> --questions mine.jsonl --output answers.jsonl

A file of questions has one row per line, like a dataset (docs/data.md); solutions are not needed and are ignored. Each
answer is written at once; the same command continues where it stopped.
"""

import argparse
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from echoink.common import cli, console
from echoink.common.errors import UserError
from echoink.common.files import as_lines, read_rows, write_atomic
from echoink.common.startup import imports
from echoink.config.compose import compose, shipped_models
from echoink.config.schema import Config, flatten
from echoink.config.validate import typed
from echoink.data.choices import MAX_OPTIONS
from echoink.data.readers import open_split
from echoink.data.samples import DataType, Sample, check_text, parse_rows, with_any_solution, with_soundtrack
from echoink.media import loaders
from echoink.rewards.parsing import option_letter, parse_answer, read_letters
from echoink.rewards.types import Match, ProblemType
from echoink.run_folder import checkpoint, reader
from echoink.run_folder.folder import where_there_are_locks
from echoink.run_folder.inputs_on_disk import weight_files

LARGE = 10**9
"""Parameters from which a model is asked in bfloat16, for which it was made."""
LONGEST = 768
"""Tokens of an answer of a real model without a run, as in the paper."""


def parser() -> argparse.ArgumentParser:
    """The command line; free text and paths need no quoting beyond the shell's."""
    made = argparse.ArgumentParser(
        "python -m echoink.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--checkpoint", help="a run folder, a step or model folder, or a hub id (default: --model's)")
    made.add_argument("--model", default=None, help="a file of conf/model (default: that of the run or weights)")
    made.add_argument("--image", type=Path, help="a picture")
    made.add_argument("--audio", type=Path, help="a sound")
    made.add_argument("--video", type=Path, help="a video; its own sound is used unless --audio or --no-sound is given")
    made.add_argument("--no-sound", action="store_true", help="leave the video's sound out")
    asked = made.add_mutually_exclusive_group(required=True)
    asked.add_argument("--question", help="one question")
    asked.add_argument("--questions", type=Path, help="a .jsonl file with many questions")
    made.add_argument("--outside", nargs="+", default=[], help="further folders with media that --questions names")
    made.add_argument("--output", type=Path, help="a .jsonl file for the answers to --questions")
    made.add_argument("--options", nargs="+", default=[], help="texts without letters (those of --questions have them)")
    made.add_argument("--type", default=None, choices=[kind.value for kind in ProblemType], help="the problem type")
    made.add_argument("--prompt", default=None, help="a file of conf/prompt (default: that of the run, else reason)")
    made.add_argument("--config-dir", default=None, help="a folder of your own with files for --model, --prompt")
    made.add_argument("--samples", type=int, default=0, help="number of sampled answers (default 0: one greedy answer)")
    made.add_argument("--seed", type=int, default=0, help="seed of sampled answers (default 0)")
    made.add_argument(
        "--max-new-tokens",
        type=int,
        help=f"most tokens of an answer (default: the run's; without a run {LONGEST}, of the embedded model 96)",
    )
    return made


def configuration(arguments: argparse.Namespace) -> Config:
    """The configuration of the checkpoint's run, with --model and --prompt if given; without a run, the model's, by
    default that of the file of conf/model with the checkpoint's architecture.

    Raises:
        UserError: see `compose`.
    """
    run = checkpoint.run_of(Path(arguments.checkpoint)) if arguments.checkpoint else None
    model, limit = arguments.model, arguments.max_new_tokens
    real = model not in (None, "tiny")
    if arguments.checkpoint and run is None and model is None:
        model, real = _model_of(arguments.checkpoint)
    overrides = [f"{group}={name}" for group, name in (("model", model), ("prompt", arguments.prompt)) if name]
    if limit is None and run is None and (real or arguments.checkpoint):
        limit = LONGEST
    overrides += ["trainer.bf16=true"] if real else []  # real models are made for it
    overrides += [f"generation.max_new_tokens={limit}"] if limit is not None else []
    chosen = compose(overrides, config_dir=arguments.config_dir)[0].config
    if run is None:
        return chosen
    config = _of_run(run)
    for group in ("model", "prompt"):
        if getattr(arguments, group):
            setattr(config, group, getattr(chosen, group))
    if limit is not None:
        config.generation.max_new_tokens = limit
    return config


@cache
def _model_of(path: str) -> tuple[str | None, bool]:
    """The file of conf/model with the architecture of weights without a run, and whether they are of a large model.

    Weights of no file's architecture get None and a warning.
    """
    with imports():
        from echoink.models.loading import dimensions
    steps = checkpoint.steps(Path(path))
    try:
        found = dimensions(str(steps[-1]) if steps else path)
    except UserError:  # loading says what is wrong with it
        return None, False
    for name, model in shipped_models().items():
        if (model.architecture.layers, model.architecture.width) == found:
            if name != "tiny":
                console.say("model", f"media are capped as in conf/model/{name}.yaml, which has this architecture")
            return name, model.architecture.language_parameters > LARGE
    what = "{} layers of width {:,}".format(*found)
    console.say("warning", f"{path} has {what}, as no file of conf/model: the caps are the embedded model's (--model)")
    return None, False


def _of_run(run: Path) -> Config:
    """A run's configuration; keys that it lacks get their defaults, and keys that no longer exist are ignored."""
    config, missing = OmegaConf.structured(compose([])[0].config), object()
    written = OmegaConf.to_container(reader.configuration(run), resolve=True)
    for key, value in reader.flat(written):
        if OmegaConf.select(config, key, default=missing) is not missing:
            OmegaConf.update(config, key, value)
    return typed(config, Config)


def sample_of(arguments: argparse.Namespace) -> Sample:
    """The question as a `Sample`.

    Raises:
        UserError: a problem type that does not fit.
    """
    if not arguments.question.strip():
        raise UserError("the question is empty", '--question "What is making the sound?"')
    if len({option.strip().lower() for option in arguments.options}) < len(arguments.options):
        raise UserError("two --options are the same", "an answer must name one of them")
    if len(arguments.options) == 1 or len(arguments.options) > MAX_OPTIONS:
        raise UserError(f"{len(arguments.options)} --options", f"give none, or 2 to {MAX_OPTIONS}")
    check_text([arguments.question, *arguments.options], "the question")
    if arguments.no_sound and arguments.audio:
        raise UserError("give --audio or --no-sound, not both")
    if arguments.image and arguments.video:
        raise UserError("give --image or --video, not both", "no data type has both")
    if arguments.video:
        kind = DataType.video_audio if arguments.audio else DataType.video
    else:
        kind = DataType("_".join(name for name in ("image", "audio") if getattr(arguments, name)) or "text")
    problem_type = ProblemType(arguments.type or ("multiple choice" if arguments.options else "free-form"))
    if (problem_type is ProblemType.multiple_choice) != bool(arguments.options):
        raise UserError(f"--type {problem_type.value} and {len(arguments.options)} --options do not go together")
    return Sample(
        id="yours",
        problem=arguments.question,
        options=tuple(f"{chr(ord('A') + place)}. {text}" for place, text in enumerate(arguments.options)),
        solution="",
        problem_type=problem_type,
        data_type=kind,
        image=arguments.image,
        audio=arguments.audio,
        video=arguments.video,
        asks_for_soundtrack=kind is DataType.video and not arguments.no_sound,
    )


class Answerer:
    """A model that is loaded once and asked one sample at a time."""

    def __init__(self, arguments: argparse.Namespace, checkpoint_folder: str | None):
        with imports():
            from echoink.models.loading import picture_caps
            from echoink.training.setup import load_for_inference

        self._arguments, self._config = arguments, configuration(arguments)
        model = self._config.model
        if checkpoint_folder and not arguments.model and not checkpoint.run_of(Path(checkpoint_folder)):
            model.min_pixels, model.max_pixels = picture_caps(checkpoint_folder)
        self.match = self._config.reward.match
        self._loaded = load_for_inference(self._config, checkpoint_folder or self._config.model.path)

    def __call__(self, sample: Sample) -> list[str]:
        """The completions.

        Raises:
            UserError: a file is missing or cannot be read.
        """
        import torch

        from echoink.rollout.generate import generate
        from echoink.rollout.sampling import uniforms

        loaded, given = self._loaded, self._arguments
        tokenizer, sampling = loaded.processor.processor.tokenizer, loaded.sampling
        if sample.asks_for_soundtrack:
            sample = with_soundtrack(sample, loaders.has_soundtrack(sample.video), self._config.dataset.soundtrack)
        media, cap = loaded.processor.load(sample), loaded.processor.caps.audio_seconds
        if media.sound and media.sound.seconds > cap + 0.01:
            heard = f"the first {cap:g} of {media.sound.seconds:.0f} s"
            console.say("warning", f"sample {sample.id}: only {heard} are heard (model.max_audio_seconds)")
        prompt, draws = loaded.processor.encoded(sample, media), max(1, given.samples)
        with torch.autocast(loaded.model.device.type, torch.bfloat16, enabled=self._config.trainer.bf16):
            completions = generate(
                loaded.model,
                [prompt],
                uniforms(given.seed, 0, sample.id, group_size=draws, length=sampling.max_new_tokens)[None],
                temperatures=[sampling.temperature if given.samples else 0.0] * draws,
                sampling=sampling,
            )
        if cut := sum(tokens[-1] not in sampling.end_ids for tokens in completions):
            what = "the answer is" if draws == 1 else f"{cut} of {draws} answers are"
            limit = f"{sampling.max_new_tokens} tokens (--max-new-tokens)"
            console.say("warning", f"sample {sample.id}: {what} cut at {limit}")
        return [text.strip() for text in tokenizer.batch_decode(completions, skip_special_tokens=True)]


def predict(arguments: argparse.Namespace) -> list[str]:
    """The completions to one question.

    Raises:
        UserError: a file, the checkpoint or the configuration is wrong.
    """
    sample, resolved = sample_of(arguments), _resolved(arguments)
    with console.quiet_libraries():
        answer = Answerer(arguments, resolved)
        try:
            return answer(sample)
        except UserError as error:
            found = "not found" not in error.problem
            hint = error.hint if found else "check the path"
            raise UserError(error.problem.removeprefix("sample yours: "), hint) from error


def questions(file: Path, outside: Sequence[str] = ()) -> list[Sample]:
    """The questions of a file, whose rows need no solution.

    Args:
        file: .jsonl or .json.
        outside: folders, beside the file's own, that may hold media.

    Raises:
        UserError: there is no such file, or some rows are not questions; it names them all.
    """
    if not file.is_file():
        raise UserError(f"no such file: {file}", "a .jsonl file, one question per line")
    found = open_split(str(file), "valid")
    rows = [row if isinstance(row, UserError) else with_any_solution(row) for row in found.rows]
    samples, bad = parse_rows(rows, found.folder, found.where, outside=outside)
    if bad:
        raise UserError("\n".join(each.reason for each in bad), bad[0].hint.replace("dataset.outside", "--outside"))
    return samples


def answer_all(arguments: argparse.Namespace) -> None:
    """Answer a file of questions into a file; continue if some are answered already.

    Raises:
        UserError: see `questions`; or there is no file for the answers.
    """
    if arguments.output is None:
        raise UserError("--questions needs --output", "--output answers.jsonl")
    samples = questions(arguments.questions, arguments.outside)
    if not samples:
        raise UserError(f"{arguments.questions} holds no question", "one question per line")
    if arguments.output.is_dir():
        raise UserError(f"--output: {arguments.output} is a folder", "--output answers.jsonl")
    if arguments.output.exists() and not arguments.output.is_file():
        raise UserError(f"--output: {arguments.output} is no ordinary file", "--output answers.jsonl")
    arguments.output = Path(os.path.realpath(arguments.output))  # a link stays; what it leads to is written
    if not arguments.output.parent.is_dir():
        raise UserError(f"--output: no such folder: {arguments.output.parent}", "make it first")
    with _alone(arguments.output):
        _answer_left(arguments, samples)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Refuse a second process on one file of answers: each would remove what the other writes."""
    lock = FileLock(output.with_name(f".{output.name}.lock"), fallback_to_soft=False)
    try:
        with where_there_are_locks():
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process writes to {output}", "wait for it, or give another --output") from None
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror}", "give another place") from error
    try:
        yield
    finally:
        lock.release()


def _answer_left(arguments: argparse.Namespace, samples: list[Sample]) -> None:
    """Answer the questions that the file of answers lacks."""
    try:
        answered = read_rows(arguments.output)
    except ValueError as error:
        raise UserError(f"{arguments.output} is no file of answers: {error}", "give a new --output") from error
    resolved = _resolved(arguments)
    asks = _settings(configuration(arguments))
    how = (_of_model(resolved or arguments.model), asks, arguments.samples, arguments.seed)
    asked = {sample.id: identity(sample, how) for sample in console.progress("digest", len(samples))(samples)}
    if not all(isinstance(row, dict) for row in answered):
        raise UserError(f"{arguments.output} is no file of answers: a line is no object", "give a new --output")
    if other := next((row for row in answered if asked.get(row.get("id")) != row.get("asked", "")), None):
        what = f"another question {other.get('id')}, or with other media"
        source = "of another model, prompt, setting, seed, number of samples or version of this program"
        raise UserError(f"{arguments.output} holds an answer to {what}, or {source}", "give a new --output")
    write_atomic(arguments.output, as_lines(answered))  # without a line that was cut off
    done = {row["id"] for row in answered}
    left = [sample for sample in samples if sample.id not in done]
    console.say("predict", f"{console.counted(len(left), 'question')} left of {len(samples):,} · {arguments.output}")
    if not left:
        return
    with console.quiet_libraries():
        answer = Answerer(arguments, resolved)
        with open(arguments.output, "a", encoding="utf-8") as file:
            for sample in console.progress("predict", len(left))(left):
                try:
                    texts = answer(sample)
                except UserError as error:
                    hint = "check the path in the row; the answers so far are kept"
                    raise UserError(error.problem, hint if "not found" in error.problem else error.hint) from error
                row = {"id": sample.id, "asked": asked[sample.id], "problem": sample.problem}
                row |= {"options": sample.options}
                row |= {"completions": texts, "answers": [meaning(text, sample, answer.match) for text in texts]}
                file.write(as_lines([row]))
                file.flush()
    rows = read_rows(arguments.output)
    read = sum(any(answer is not None for answer in row["answers"]) for row in rows)
    console.say("answered", f"{console.counted(len(rows), 'question')}, {read:,} with an answer that can be read")


def _resolved(arguments: argparse.Namespace) -> str | None:
    """The folder or hub id of `--checkpoint`, with the model's digests checked; None without it."""
    if arguments.checkpoint == "":
        raise UserError("--checkpoint is empty", "is a variable of the shell not set? Leave it out for the model's own")
    return checkpoint.resolve(arguments.checkpoint) if arguments.checkpoint else None


def _of_model(model: str | None) -> tuple:
    """What identifies a model without reading it: its path, and the sizes and times of its weight files."""
    if not model or not Path(model).is_dir():
        return (model,)
    files = weight_files(Path(model))
    return (str(Path(model).resolve()), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


def _settings(config: Config) -> list[tuple[str, Any]]:
    """The keys on which an answer depends."""
    groups = ("model.", "prompt.", "generation.", "trainer.bf16", "adapter.kind", "dataset.soundtrack")
    return [(key, value) for key, value in flatten(config).items() if key.startswith(groups)]


def identity(sample: Sample, how: tuple) -> str:
    """A digest of what an answer depends on: the question, its media (paths and contents), and how it is asked."""
    what = (sample.problem, sample.options, sample.problem_type.value, sample.data_type.value)
    what += (sample.asks_for_soundtrack, sorted(sample.places.items()))
    files = [medium for medium in sample.media.values() if isinstance(medium, Path) and medium.is_file()]
    what += tuple(map(loaders.digest, files))
    return hashlib.sha256(repr((what, how)).encode()).hexdigest()[:16]


def meaning(text: str, sample: Sample, match: Match) -> str | None:
    """The options that a completion's answer names, or its text; None if no answer can be read."""
    if sample.problem_type is not ProblemType.multiple_choice:
        return parse_answer(text)
    letters = read_letters(text, sample.options, match)
    return ", ".join(option for option in sample.options if option_letter(option) in letters) or None


def main(words: Sequence[str]) -> None:
    """Print each completion and what its answer means, or write the answers of a file."""
    arguments = parser().parse_args(words)
    if negative := [name for name in ("seed", "samples") if getattr(arguments, name) < 0]:
        raise UserError(f"--{negative[0]} is negative", "0 or more")
    if arguments.questions:
        single = ("options", "image", "audio", "video", "type", "no_sound")
        if beside := [name for name in single if getattr(arguments, name)]:
            raise UserError(
                f"--{beside[0].replace('_', '-')} is for one question; the rows of --questions have their own",
                "put it into the rows, or leave --questions out",
            )
        answer_all(arguments)
        return
    if arguments.output:
        raise UserError("--output is for --questions; one answer is printed", "leave it out")
    sample, match = sample_of(arguments), configuration(arguments).reward.match
    for text in predict(arguments):
        print(text)
        print(f"→ {meaning(text, sample, match) or 'no answer can be read'}")


if __name__ == "__main__":
    cli.run(main, parser().format_help(), again="with --questions the same command continues where it stopped")
