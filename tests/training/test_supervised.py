"""task=sft: given responses learned as by plain cross-entropy, the prompt computed once, and all that a run does."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from echoink.common.errors import UserError
from echoink.data.samples import parse_rows
from echoink.models.loading import load_model
from echoink.pipeline.run import run
from echoink.training import supervised
from echoink.training.supervised import SupervisedTrainer
from tests.helpers import processes
from tests.helpers.configs import config_of
from tests.helpers.entry import lines
from tests.helpers.several import DIES_AFTER_STEP_2, start
from tests.helpers.tiny import tiny_model
from tests.helpers.trainers import G

THREE = ("<think>a</think>\n<answer>A</answer>", "<think>it is heard</think>\n<answer>A</answer>", "<answer>A</answer>")
TRAINED = "from echoink.train import main; main()"


def given(samples, counts=(1, 3)):
    """Samples with so many responses."""
    return [replace(sample, responses=THREE[:count]) for sample, count in zip(samples, counts, strict=False)]


def cross_entropy(model, processor, samples) -> torch.Tensor:
    """Mean over the response tokens, each response behind its own prompt and media, by transformers' own forward."""
    total, tokens = 0.0, 0
    for sample in samples:
        prompt = processor(sample)
        for text in sample.responses:
            own = torch.tensor(supervised._tokens(processor.processor.tokenizer, text))
            ids = torch.cat([prompt.input_ids, own])[None]
            logits = model(ids, attention_mask=torch.ones_like(ids), **prompt.media).logits[0, -len(own) - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits.double(), own, reduction="sum")
            tokens += len(own)
    return total / tokens


@pytest.mark.parametrize("settings", [[], ["grpo.shared_prefix=false"]], ids=["packed", "plain rows"])
def test_loss_and_gradient_are_those_of_plain_cross_entropy(make_trainer, make_processor, samples, settings):
    chosen, model = given(samples), tiny_model().double()
    trainer = make_trainer("grpo.beta=0", *settings, model=model, chosen=chosen, kind=SupervisedTrainer)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    ids = [sample.id for sample in chosen for _ in range(G)]
    batch = trainer._generate_and_score_completions([{"prompt": id} for id in ids])
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = cross_entropy(model, make_processor(model), chosen)
    expected.backward()
    # The model computes in float64, TRL's head gives log-probabilities in float32.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert (ours[name] - p.grad).norm() <= 1e-5 * p.grad.norm() + 1e-12, name


def test_a_prompt_is_computed_once_and_a_response_that_is_shown_twice_too(make_trainer, counts, samples):
    chosen, model = given(samples), load_model("tiny", freeze=("audio", "vision"))
    trainer = make_trainer("grpo.beta=0", "trainer.steps=1", model=model, chosen=chosen, kind=SupervisedTrainer)
    seen = counts(model)
    trainer.train()
    tokenizer = trainer._tokenizer
    own = sum(len(supervised._tokens(tokenizer, text)) for sample in chosen for text in sample.responses)
    prompts = sum(len(prompt.input_ids) - 1 for prompt in trainer.rollout.prompts)
    assert seen["tokens"] == prompts + own and seen["tokens calls"] == 1
    assert seen["patches"] == 2 * 64, "frozen towers run once"


def test_with_more_responses_than_places_each_pass_takes_the_next_ones(make_trainer, samples):
    many = replace(samples[0], responses=tuple(f"<answer>{n}</answer>" for n in range(6)))
    trainer = make_trainer("grpo.beta=0", chosen=[many, samples[1]], kind=SupervisedTrainer)
    passes = []
    for epoch in range(3):
        trainer.state.epoch = epoch + 0.5
        passes.append(trainer._responses(many, 4))
    assert [text[8] for one in passes for text in one] == list("012345012345")


def test_learning_raises_the_likelihood_of_the_responses(make_trainer, samples):
    chosen = given(samples, (1,) * 6)
    trainer = make_trainer(
        "grpo.beta=0", "trainer.steps=12", "trainer.learning_rate=1e-3", chosen=chosen, kind=SupervisedTrainer
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"response": 3}, "a response must be a text"),
        ({"response": ""}, "a response must be a text that is not empty"),
        ({"responses": ["x", " "]}, "a response must be a text that is not empty"),
        ({"response": "<|im_end|>"}, "takes for structure"),
    ],
)
def test_something_else_that_is_called_a_response_is_said_and_keeps_no_row_out(tmp_path, fields, says):
    row = {"problem": "What?", "options": ["A. x", "B. y"], "solution": "<answer>A</answer>", **fields}
    (sample,), dropped = parse_rows([row], tmp_path, "rows.jsonl")
    assert not dropped and not sample.responses and says in sample.notes[0]


def test_responses_that_are_too_long_are_counted_and_the_longest_is_named(make_processor, model, samples):
    tokenizer = make_processor(model).processor.tokenizer
    supervised.check(given(samples), tokenizer, 100)
    with pytest.raises(UserError) as error:
        supervised.check(given(samples), tokenizer, 3)
    assert f"2 training samples have more than 3 tokens; that of {samples[1].id} has" in error.value.problem
    assert "max_new_tokens=" in error.value.hint


def test_rows_without_a_response_are_named_before_anything_is_loaded(tmp_path, capsys):
    sizes = ("dataset.train=8", "dataset.dev=2", "dataset.valid=4")
    with pytest.raises(UserError, match="8 of 8 training samples have no response to learn") as error:
        run(config_of("task=sft", *sizes, f"dataset.path={tmp_path / 'set'}"), tmp_path / "run")
    assert "mode=traces" in error.value.hint and "\nmodel " not in capsys.readouterr().out


@pytest.fixture(scope="module")
def place(tmp_path_factory, dataset):
    """A folder of rows with one or two responses, beside a set of the official layout."""
    folder = tmp_path_factory.mktemp("sft")
    (folder / "mine").mkdir()
    for split, count in (("train", 8), ("valid", 4)):
        rows = json.loads(next(dataset.rglob(f"omni_rl_format_{split}.json")).read_text())[:count]
        for number, row in enumerate(rows):
            row["path"] = {name: str((dataset / split / path).resolve()) for name, path in row["path"].items()}
            told = [f"<think>{word}</think>\n{row['solution']}" for word in ("one", "two")]
            row["responses"] = told[: 1 + number % 2]
        (folder / f"mine/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(place, dataset):
    """The folder of a run of three steps with an adapter or none, and the words of its command."""

    @functools.cache
    def make(adapter):
        words = ["task=sft", "dataset=rows", "dataset.path=mine", f"dataset.outside=[{dataset.resolve()}]"]
        words += [f"adapter={adapter}", "generation.max_new_tokens=48", "trainer.prompts_per_step=4", "trainer.steps=3"]
        words += ["trainer.micro_batch_prompts=2", "trainer.save_every=1", "trainer.learning_rate=1e-3", "tracking=off"]
        words += ["eval.base=false", "eval.greedy=false", "eval.watched=0", "eval.cache=null"]
        done = processes.run(place, *words, f"hydra.run.dir=outputs/{adapter}-whole")
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stdout.partition("\nfinal")[0]
        return f"outputs/{adapter}-whole", words

    return make


# That dropout and adapter go on the same is shown by GRPO's own test of it.
@pytest.mark.parametrize("adapter", ["none", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_that_dies_goes_on_to_the_same_weights_and_grpo_goes_on_from_them(place, uninterrupted, adapter):
    (whole, words), again = uninterrupted(adapter), f"outputs/{adapter}-again"
    died = processes.run(place, *words, f"hydra.run.dir={again}", code=DIES_AFTER_STEP_2 + TRAINED)
    assert died.returncode == 3
    done = processes.run(place, *words, f"hydra.run.dir={again}", "resume=auto")
    assert done.returncode == 0, done.stderr
    file = "adapter_model.safetensors" if adapter == "lora" else "model.safetensors"
    ones, others = (load_file(place / folder / "checkpoints/step-3" / file) for folder in (whole, again))
    assert ones.keys() == others.keys() and all(torch.equal(ones[name], others[name]) for name in ones)
    rows = [lines(place / folder / "metrics.jsonl") for folder in (whole, again)]
    assert [row["train/loss"] for row in rows[0]] == [row["train/loss"] for row in rows[1]]
    assert rows[0][-1]["train/loss"] < rows[0][0]["train/loss"]
    if adapter == "none":
        grpo = [word for word in words if word != "task=sft"] + ["trainer.steps=1", f"checkpoint={whole}"]
        done = processes.run(place, *grpo, "grpo.group_size=4", "hydra.run.dir=outputs/grpo")
        assert done.returncode == 0, done.stderr


def test_the_plan_of_a_supervised_run(place, dataset, monkeypatch):
    monkeypatch.chdir(place)
    words = ["task=sft", "dataset=rows", "dataset.path=mine", f"dataset.outside=[{dataset.resolve()}]", "dry_run=true"]
    run(config_of(*words), place / "outputs/plan")
    plan = json.loads((place / "outputs/plan/plan.json").read_text())
    needed = plan["memory_bytes_per_process"]["not sharded"]
    assert plan["samples"]["train"] == 8 and needed["reference"] == needed["cache"] == 0
    spent = plan["gpus"]["1"]["H100 80 GB"]["seconds_per_step"]
    assert spent["rollout"] == 0 and spent["update"] > 0, "nothing is decoded"


@pytest.mark.parametrize("trainer", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns(place, uninterrupted, trainer):
    """Rows of one and of two responses: the processes' shares differ in tokens, and each token counts once."""
    alone, words = uninterrupted("none")
    more = [f"trainer={trainer}", "trainer.processes=2", "trainer.save_every=0", f"hydra.run.dir=outputs/{trainer}"]
    for one in start(place, [*words, *more]):
        assert (done := one.wait()).returncode == 0, done.stderr
    rows, wanted = (lines(place / folder / "metrics.jsonl") for folder in (f"outputs/{trainer}", alone))
    for name in ("train/loss", "train/grad_norm", "completion/mean_length"):
        found, expected = ([row[name] for row in run if name in row] for run in (rows, wanted))
        assert len(found) == 3 and found == pytest.approx(expected, rel=1e-5, abs=1e-5), name
    ones, others = (
        load_model(str(place / folder / "checkpoints/step-3")).state_dict() for folder in (f"outputs/{trainer}", alone)
    )
    assert all(torch.allclose(ones[name], others[name], atol=1e-5) for name in others)
