"""Two processes on a CPU (gloo) against one: the same loss, gradients, metrics, completions and weights, in whatever
way the model is divided between them.
"""

import json
from pathlib import Path

import pytest
import torch

from echoink.distributed.process_group import PATIENCE
from tests.helpers import processes
from tests.helpers.several import start

COMMON = [
    "grpo.group_size=4",
    "generation.max_new_tokens=48",
    "trainer.prompts_per_step=4",
    "trainer.micro_batch_prompts=1",
    "trainer.learning_rate=1e-3",
    "trainer.steps=2",
]
KINDS = {
    "kl": ["grpo.beta=0.05"],
    "silent groups": ["grpo.beta=0"],
    "lora": ["grpo.beta=0.05", "adapter=lora"],
    "plain rows": ["grpo.beta=0.05", "grpo.shared_prefix=false"],
    "integration": ["reward=integration", "two senses"],
    "mixed media": ["grpo.beta=0.05", "mixed"],
    "mixed media, plain rows": ["grpo.beta=0.05", "mixed", "grpo.shared_prefix=false"],
    "not finite": ["grpo.beta=0.05", "spoiled"],
    "half precision": ["trainer.bf16=true", "trainer.learning_rate=3e-8", "trainer.steps=1"],
}
WRAPPED = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDPQwen2_5OmniThinkerForConditionalGeneration",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
}
TOGETHER = (("single",), ("ddp", "fsdp2"), ("zero2", "zero3"))
"""What may be tried in one process after the other: DeepSpeed leaves its mark on what is loaded after it."""


NEEDS_A_GPU = {("zero2", "half precision"), ("zero3", "half precision")}
"""There transformers refuses bfloat16."""

SLOW = {("ddp", kind) for kind in ("lora", "integration", "mixed media, plain rows", "not finite", "half precision")}
SLOW |= {(trainer, kind) for trainer in ("single", *WRAPPED) for kind in ("kl", "plain rows")}
"""FSDP2 does all other kinds, and differs from one process in more than DDP; what is of mixed media has β > 0 too."""


def train(dataset: Path, folder: Path, trainers: tuple[str, ...], slow: bool) -> dict:
    """Every kind of run with each of the trainers, those that are slow or the others, in one launch."""
    several = trainers != ("single",)
    pairs = [(trainer, kind) for trainer in trainers for kind in KINDS]
    asked = [pair for pair in pairs if pair not in NEEDS_A_GPU and (pair in SLOW) == slow]
    cases = json.dumps([[f"trainer={trainer}", *COMMON, *KINDS[kind]] for trainer, kind in asked])
    words, worker = [str(dataset), str(folder), cases], "from tests.helpers.distributed_worker import main; main()"
    started = start(folder, words, code=worker) if several else [processes.start(folder, *words, code=worker)]
    ended = [one.wait(600) for one in started]
    assert not any(one.returncode for one in ended), "".join(one.stderr[-3000:] for one in ended)
    return dict(zip(asked, torch.load(folder / "found.pt"), strict=True))


@pytest.fixture(scope="module")
def found(dataset, tmp_path_factory):
    """The results of a trainer, run when it is first asked for, with those that share its launch."""
    results: dict = {}

    def of(trainer: str, kind: str) -> dict:
        if trainer.startswith("zero"):
            pytest.importorskip("deepspeed", reason="needs pip install deepspeed")
        if (trainer, kind) not in results:
            trainers = next(names for names in TOGETHER if trainer in names)
            folder = tmp_path_factory.mktemp(trainers[0])
            results.update(train(dataset, folder, trainers, (trainer, kind) in SLOW))
        return results[trainer, kind]

    return of


@pytest.mark.parametrize(
    ("trainer", "kind"),
    [
        pytest.param(trainer, kind, marks=pytest.mark.slow if (trainer, kind) in SLOW else [], id=f"{trainer}-{kind}")
        for trainer in WRAPPED
        for kind in KINDS
        if kind != "half precision"
    ],
)
def test_two_processes_do_what_one_does(found, trainer, kind):
    two = found(trainer, kind)
    one = found("single", kind)
    assert (one["processes"], two["processes"]) == (1, 2)
    divided_adapter = trainer == "fsdp2" and kind == "lora"  # the base is divided inside of PEFT's model
    assert two["wrapped"] == ("PeftModelForCausalLM" if divided_adapter else WRAPPED[trainer])
    assert [row["text"] for row in one["rollouts"]] == [row["text"] for row in two["rollouts"]]
    assert [row["id"] for row in one["rollouts"]] == [row["id"] for row in two["rollouts"]]
    if not trainer.startswith("zero"):  # DeepSpeed has taken its step before anyone could look
        assert (one["gradient"] - two["gradient"]).norm() <= 1e-5 * one["gradient"].norm() > 0
    for first, second in zip(one["metrics"], two["metrics"], strict=True):
        assert set(first) == set(second)
        # A loss is nan or infinite, and DeepSpeed's schedule of the learning rate waits.
        skipped = ("train/loss", "train/grad_norm", "train/lr") if "train/skipped" in first else ()
        for name in first:
            if not name.startswith(("time/", "perf/", *skipped)):
                assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-6), name
    assert (one["weights"] - two["weights"]).norm() <= 1e-5 * one["weights"].norm()
    assert [row.get("train/skipped") for row in two["metrics"]] == [None, 1 if kind == "not finite" else None]


def test_the_groups_of_a_mesh_wait_as_long_as_the_run_and_a_reference_gives_its_root_back(found):
    divided = found("fsdp2", "mixed media")
    assert divided["waits"] and set(divided["waits"]) == {PATIENCE.total_seconds()}
    assert divided["reference"] and all(divided["reference"]), "embedding and head are left gathered"


@pytest.mark.parametrize("trainer", ["single", pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_a_small_update_is_not_lost_in_half_precision(found, trainer):
    """A step of 3e-8 is about 1e-6 of a weight: bfloat16, with its 8 bits, would drop it."""
    before, after = (found(trainer, "half precision")[name] for name in ("before", "weights"))
    assert after.dtype == torch.float32
    ordinary = (before.abs() > 0.01) & (before.abs() < 0.1)
    relative = ((after - before).abs() / before.abs())[ordinary]
    assert 1e-7 < relative.median() < 1e-5
    assert torch.equal(before[ordinary].bfloat16(), after[ordinary].bfloat16())


def test_in_the_case_of_silent_groups_one_rank_has_a_signal_while_the_other_has_none(found):
    """Else it would show nothing. Of a step's four prompts each rank has two, one per micro-batch."""
    rows = found("ddp", "silent groups")["rollouts"]
    rewards = [{row["accuracy"] + row["format"] for row in rows[start : start + 4]} for start in range(0, len(rows), 4)]
    loud = [len(group) > 1 for group in rewards]
    pairs = [(loud[step + k], loud[step + 2 + k]) for step in (0, 4) for k in (0, 1)]
    assert any(first != second for first, second in pairs)


def test_in_the_case_of_mixed_media_one_rank_has_a_video_while_the_other_has_text_alone(found):
    """Else it would show nothing: of the samples (see `mixed`) 0 and 4 have a video, 3 and 7 nothing."""
    ids = list(dict.fromkeys(row["id"] for row in found("fsdp2", "mixed media")["rollouts"]))
    kinds = [int(id) % 4 for id in ids]
    pairs = [{kinds[step + k], kinds[step + 2 + k]} for step in (0, 4) for k in (0, 1)]
    assert {0, 3} in pairs, ids
