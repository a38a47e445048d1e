"""Runs one job: everything before the model is loaded. `pipeline/execute.py` does the rest."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from echoink.common import console, signals
from echoink.common.errors import UserError
from echoink.common.startup import imports
from echoink.config import effects
from echoink.config.schema import OPTIONS, Adapter, Advantage, Config, Loss, Protocol, Scale, Split, Task, to_yaml
from echoink.config.validate import launched_processes, separate_tasks
from echoink.data.ablations import has_both
from echoink.data.splits import Splits, has_dev
from echoink.data.splits import describe as describe_splits
from echoink.data.splits import load as load_splits
from echoink.planning import plan, preflight
from echoink.planning.steps import of_curriculum, training_steps
from echoink.rewards import terms
from echoink.rewards.types import NEEDED, Rule
from echoink.rollout import vllm_environment
from echoink.run_folder import checkpoint, reader, resume
from echoink.run_folder import folder as run_folder
from echoink.run_folder.environment import environment
from echoink.run_folder.folder import RunFolder
from echoink.tracking import client


def run(config: Config, folder: Path, overrides: Sequence[str] = ()) -> float | None:
    """Run once: load data and model, evaluate the base, train, evaluate again, and show the results.

    Args:
        config: a validated configuration.
        folder: the folder for the run's files.
        overrides: the command line's; they name the run in MLflow.

    Returns:
        The final accuracy, or the base's if only the base was evaluated: the objective of a search. None for a dry run.
    """
    console.say("EchoInk", f"{config.task.name} · seed {config.seed} · {folder}")
    console.say("config", summary_line(config))
    if config.trains and config.grpo.loss is Loss.dr_grpo and config.grpo.scale is not Scale.none:
        console.say("", "Dr. GRPO divides advantages by nothing: grpo.scale=none")
    if idle := effects.idle_in_evaluations({word.partition("=")[0].lstrip("+") for word in overrides}, config):
        console.say("", f"no effect here: {', '.join(idle)}")
    if tasks := separate_tasks():
        console.say("warning", f"{tasks} processes were started, and each is a run of its own (docs/many_processes.md)")
    writes = int(os.environ.get("RANK", "0")) == 0
    start = _on_main_process(lambda: resume.begin(config, folder))
    if config.resume != resume.NEVER:
        console.say("resume", start.describe())
        if config.resume == resume.AUTO and not start.again and (other := resume.left_beside(config, folder)):
            console.say("", other)
    if start.finished:
        return run_folder.read_summary(folder)["final"]["accuracy"]
    if config.dry_run:
        with run_folder.RunFolder(folder, "plan", config.name, seed=config.seed, writes=writes) as files:
            _plan(config, files)
        return None
    uri = client.absolute_uri(config.tracking.uri, Path.cwd()) if config.tracking.enabled and writes else None
    if uri and os.environ.get("MLFLOW_TRACKING_URI", uri) != uri:
        console.say("MLflow", f"{uri}; for the store of MLFLOW_TRACKING_URI: tracking.uri=$MLFLOW_TRACKING_URI")
    opened = run_folder.RunFolder(folder, config.task.name, config.name, seed=config.seed, writes=writes)
    with _first_process_ends_first(folder, writes), opened as files:
        if not start.again:  # a run that goes on is taken up in `execute`, when its model is known too
            resume.take_up(files, start)
        files.write_json("environment.json", environment())
        if config.checkpoint:
            # Only the first process compares the model's digests: this reads gigabytes.
            config = replace(config, checkpoint=_on_main_process(lambda: checkpoint.resolve(config.checkpoint)))
            _warn_of_differences(config)
        _preflight(config, files, uri)
        splits = _load_data(config)
        with console.quiet_libraries():
            # The only boundary: code that needs torch, transformers and TRL is imported here, after all checks that
            # work without them.
            with imports():
                from echoink.distributed.process_group import device_name
                from echoink.pipeline.execute import execute

            files.write_json("environment.json", environment() | {"device": device_name()})
            tracker = execute(config, files, splits, start=start, uri=uri, overrides=overrides)
        if tracker.run_id:
            console.say_mlflow(tracker.uri, client.run_page(tracker.run_id, tracker.experiment_id))
        if tracker.refused:
            console.say("MLflow", f"did not take everything ({tracker.refused})")
            console.say("", f"the run folder has it all: python -m echoink.sync {files.path} uri={tracker.uri}")
    return (files.summary["final"] or files.summary["base"])["accuracy"]


@contextmanager
def _first_process_ends_first(folder: Path, is_first: bool) -> Iterator[None]:
    """After a signal the other processes wait for the first one, at most five minutes: it completes summary and MLflow,
    and a launcher may end all of them when one has ended. It holds the folder's lock until it ends.
    """
    try:
        yield
    except (KeyboardInterrupt, signals.Preempted):
        deadline = time.monotonic() + 300
        while not is_first and run_folder.in_use(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        raise


def _warn_of_differences(config: Config) -> None:
    for other in (other_prompt, other_data, other_hold_out, other_model):
        if warning := other(config):
            console.say("warning", warning)


def other_prompt(config: Config) -> str | None:
    """A warning if a checkpoint's run was trained with a different prompt than the one used now."""
    run, trained = _trained(config, "prompt")
    if not trained:
        return None
    then = {"options": OPTIONS, **trained}  # an older run lacks this key
    others = [key for key, text in vars(config.prompt).items() if then.get(key, "").split() != text.split()]
    if not others:
        return None
    shown = " ".join(f"{key} {' '.join(then.get(key, '').split())!r}" for key in others)
    shown = shown if len(shown) <= 90 else shown[:89] + "…"
    return f"{run} was trained with another prompt ({shown}); prompt=<its file>, with --config-dir if it is your own"


def other_data(config: Config) -> str | None:
    """A warning if no dataset is named and a checkpoint that was trained on other data is evaluated on the default."""
    run, trained = _trained(config, "dataset")
    default = reader.defaults()["dataset.path"]
    if not trained or config.trains or config.dataset.path != default or trained.get("path") == default:
        return None
    return f"{run} was trained on dataset.path={trained.get('path')}; none is named, so the default is used: {default}"


def other_hold_out(config: Config) -> str | None:
    """A warning if the development split, held out of train here, may overlap a checkpoint's training data."""
    run, trained = _trained(config, "dataset")
    uses_dev = config.eval.split is Split.dev or (config.trains and config.eval.every)
    if not trained or not uses_dev or has_dev(config.dataset):
        return None
    keys = ("dev", "train", "seed")
    if others := [key for key in keys if trained.get(key) != getattr(config.dataset, key)]:
        listed = ", ".join(f"dataset.{key}={trained.get(key)}" for key in others)
        return f"{run} was trained with {listed}: samples that are held out here may be among those that it learned"
    return None


_SEES = (
    *("min_pixels", "max_pixels", "max_audio_seconds", "video_fps", "min_video_frames", "max_video_frames"),
    *("min_video_pixels", "max_video_pixels", "dtype"),
)
"""Keys of the group `model` that decide what a model sees and hears, and in which precision it computes."""


def other_model(config: Config) -> str | None:
    """A warning if a checkpoint is evaluated with other settings than in its run."""
    run = checkpoint.run_of(Path(config.checkpoint))
    if not run or config.trains:
        return None
    now, then = map(reader.method, (to_yaml(config), (run / "config.yaml").read_text(encoding="utf-8")))
    keys = [*(f"model.{name}" for name in _SEES), "trainer.bf16", "reward.match"]
    keys += [f"generation.{name}" for name in ("temperature", "top_p", "top_k", "max_new_tokens")]
    # Without quantization adapter.kind does not change how an adapter is evaluated.
    keys += ["adapter.kind"] if "qlora" in (now["adapter.kind"], then["adapter.kind"]) else []
    if others := [key for key in keys if then[key] != now[key]]:
        said = " ".join(f"adapter={then[key]}" if key == "adapter.kind" else f"{key}={then[key]}" for key in others)
        return f"{run} was evaluated with {said}; these settings differ here, so expect different numbers"
    return None


def _trained(config: Config, group: str) -> tuple[Path | None, Any]:
    """The folder of a checkpoint's run, and a group of that run's configuration; None and None outside a run."""
    run = checkpoint.run_of(Path(config.checkpoint))
    return run, reader.configuration(run).get(group) if run else None


def _preflight(config: Config, files: RunFolder, uri: str | None) -> None:
    """Check now what a run needs later: GPUs, disk, MLflow's store, the hub, vLLM."""
    preflight.check_attention(config.model.attention)
    if warning := preflight.check_gpus(config.trainer.bf16):
        console.say("warning", warning)
    disk = _disk_bytes(config, files.path) if config.trains else 0
    store = None if client.PARENT in os.environ else uri  # the sweep has checked it; a job continues without the store

    def check() -> None:
        preflight.check_disk(files.path, disk)
        if store is not None:
            preflight.check_store(store, config.tracking.experiment)
        if config.trainer.push_to_hub is not None:
            preflight.check_hub(config.trainer.push_to_hub)

    _on_main_process(check)
    if launched_processes() > 1:
        _check_shared(files.path)
    if config.uses_vllm:
        _on_main_process(lambda: vllm_environment.check(config.generation.vllm.python))


def _check_shared(folder: Path) -> None:
    """Raises `UserError` in all processes if one of them does not see the run's folder, which all of them use."""
    from echoink.distributed import collectives

    def probe() -> Path:
        with tempfile.NamedTemporaryFile(prefix=".seen-by-all-", dir=folder, delete=False) as file:
            return Path(file.name)

    def appears(number: int, count: int) -> bool:
        for _ in range(100):  # a network's disk may show it a few seconds later
            if there.exists():
                return True
            time.sleep(0.1)
        return False

    there = collectives.on_main_process(probe)
    seen = collectives.share(appears)

    def conclude() -> None:
        there.unlink()
        if not all(seen):
            raise UserError(
                f"process {seen.index(False)} does not see {folder} of the first process",
                "all nodes use it: set hydra.run.dir to a folder that they share",
            )

    collectives.on_main_process(conclude)


def _on_main_process(work: Callable[[], Any]) -> Any:
    """Run work in the first process; return its result in all."""
    if launched_processes() == 1:
        return work()
    from echoink.distributed import collectives  # imports torch; one process does not need it

    return collectives.on_main_process(work)


def summary_line(config: Config) -> str:
    """What a run is, in one line; config.yaml in its folder has every value."""
    compared = f"model {config.model.path} with {config.checkpoint}"
    model = compared if config.task is Task.compare else f"model {config.checkpoint or config.model.path}"
    parts = [model, f"dataset {config.dataset.source.name}"]
    if config.eval.protocol is not Protocol.matched:
        parts.append(f"protocol {config.eval.protocol.name}: base and trained model are asked in different ways")
    if not config.trains:
        return " · ".join(parts)
    if config.adapter.kind is not Adapter.none:
        parts.append(f"{config.adapter.kind.name} of rank {config.adapter.rank}")
    steps, epochs = config.trainer.steps, config.trainer.epochs
    how_long = console.counted(steps, "step") if steps else console.counted(epochs, "epoch")
    if config.task is Task.sft:
        responses = console.counted(config.sft.responses, "response")
        return " · ".join([*parts, f"supervised, up to {responses} per row", how_long])
    parts.append("reward " + ", ".join(f"{name} {weight:g}" for name, weight in terms.listed(config.reward)))
    variant = (config.grpo.loss, config.grpo.scale) != (Loss.grpo, Scale.group)
    if config.grpo.advantage is not Advantage.group:
        parts.append(f"advantage {config.grpo.advantage.name}")
    parts += [f"loss {config.grpo.loss.name}, scale {config.grpo.scale.name}"] if variant else []
    parts += [f"G {config.grpo.group_size}", f"β {config.grpo.beta:g}"]
    return " · ".join([*parts, how_long])


def _load_data(config: Config) -> Splits:
    trains = config.trains
    splits = load_splits(config.dataset, config.eval, config.model, train=trains, on_main_process=_on_main_process)
    for line in describe_splits(splits, config.eval.split.name, config.dataset):
        console.say("data", line)
    if trains:
        takes_both = {
            "reward.lambda_int": config.reward.lambda_int,
            "grpo.modality_dropout": config.grpo.modality_dropout,
        }
        if any(takes_both.values()) and not any(map(has_both, splits.train)):
            key = next(key for key, value in takes_both.items() if value)
            raise UserError(f"{key} needs samples with sound and sight, and no training sample has both", "set it to 0")
        rule = config.reward.integration
        twins = config.reward.lambda_int and rule in (Rule.twin, Rule.redraw)
        if twins and not any(sample.fields.get("need") in NEEDED for sample in splits.train):
            raise UserError(
                f"reward.integration={rule.name} pays questions whose need is known, and no training sample states one",
                "a field `need` (audio, image or both) in each row: python -m echoink.curate mode=difficulty",
            )
        if config.task is Task.sft and (empty := [sample.id for sample in splits.train if not sample.responses]):
            some = ", ".join(empty[:5]) + (" …" if len(empty) > 5 else "")
            raise UserError(
                f"{len(empty):,} of {len(splits.train):,} training samples have no response to learn: {some}",
                'each row wants "response": "<think>…</think>\\n<answer>B</answer>", or "responses": a list of them; '
                "python -m echoink.curate mode=traces makes them",
            )
        # Raises if there are fewer samples than a step takes, or no step after the warm-up.
        steps = training_steps(config.trainer, config.grpo.updates_per_rollout, len(splits.train))
        if config.dataset.curriculum:
            prompts = -(-steps // config.grpo.updates_per_rollout) * config.trainer.prompts_per_step
            _say_reach(config.dataset.curriculum, [sample.fields["need"] for sample in splits.train], prompts)
    return splits


def _say_reach(curriculum: Sequence[str], needs: Sequence[str], prompts: int) -> None:
    found = of_curriculum(curriculum, needs, prompts)
    console.say("data", "curriculum: " + ", ".join(f"{n:,} of {of:,} {need}" for need, (n, of) in found.items()))
    if never := [need for need, (n, _) in found.items() if not n]:
        hint = "trainer.steps=null goes through all"
        console.say("warning", f"trainer.steps ends before the first sample that needs {never[0]}: {hint}")


def _plan(config: Config, files: RunFolder) -> None:
    made = plan.make(config, _load_data(config))
    files.write_json("plan.json", made)
    if warning := plan.warning_before_loading(config.model):
        console.say("warning", warning)
    for label, text in plan.lines(made):
        console.say(label, text)
    console.say("plan", str(files.path / "plan.json"))


def _disk_bytes(config: Config, folder: Path) -> int:
    """Disk space that checkpoints will take in addition to the existing ones."""
    there = sum(file.stat().st_size for file in folder.glob("checkpoints/**/*") if file.is_file())
    return max(0, plan.disk_bytes(config, plan.count_parameters(config))["total"] - there)
