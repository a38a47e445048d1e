"""Numbers that are not finite: a step is left out, a run stops, nothing is saved."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from echoink.common.errors import UserError
from echoink.data.splits import Splits
from echoink.run_folder import checkpoint
from echoink.run_folder.folder import RunFolder
from echoink.tracking.client import Record
from echoink.tracking.logger import Tracker
from echoink.training.callbacks import Keeper, Recorder
from tests.helpers.configs import config_of
from tests.helpers.trainers import Catch, weights

CONFIG = config_of(
    "trainer.max_skipped_steps=2",
    "trainer.save_every=1",
    "trainer.keep_checkpoints=2",
    "eval.every=0",
    "eval.watched=0",
)


def recorder_of(files, steps):
    return Recorder(CONFIG, files, Tracker(None, Record("x", "x", {}, {}), files.path), steps)


def keeper_of(files, recorder):
    """It evaluates nothing."""
    return Keeper(SimpleNamespace(config=CONFIG, splits=Splits([], [], [])), files, None, recorder, provenance={})


# --- numbers that are not finite ---


def spoil(trainer, steps, value):
    """Make the gradient of some steps (counted from 1) nan or infinite."""
    compute = trainer._compute_loss

    def spoiled(model, inputs):
        loss = compute(model, inputs)
        return loss * value if trainer.state.global_step + 1 in steps else loss

    trainer._compute_loss = spoiled


@pytest.mark.parametrize(("value", "accumulation"), [(float("nan"), 1), (float("inf"), 2)])
def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_counted(make_trainer, value, accumulation):
    catch, seen = Catch(), []

    class See(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append((weights(trainer.model).clone(), moments(trainer)))

    micro = 2 // accumulation
    settings = ["trainer.steps=3", f"trainer.micro_batch_prompts={micro}", "trainer.learning_rate=1e-3"]
    trainer = make_trainer(*settings, callbacks=[catch, See()])
    spoil(trainer, {2}, value)
    trainer.train()
    (w1, m1), (w2, m2), (w3, m3) = seen
    assert torch.equal(w1, w2) and torch.equal(m1, m2), "neither weights nor the optimizer's moments"
    assert not torch.equal(w2, w3) and w3.isfinite().all() and m3.isfinite().all()
    assert [row.get("train/skipped") for row in catch.rows] == [None, 1, None]
    assert all(torch.tensor(row["train/loss"]).isfinite() for row in (catch.rows[0], catch.rows[2]))


def moments(trainer):
    state = trainer.optimizer.state_dict()["state"]
    return torch.cat([entry[name].flatten() for entry in state.values() for name in ("exp_avg", "exp_avg_sq")])


@pytest.mark.parametrize(("bad", "stops_after"), [({2, 4, 5}, None), ({2, 3, 4}, 4)])
def test_several_such_steps_in_a_row_stop_the_run_and_no_number_that_is_not_finite_is_written(
    make_trainer, tmp_path, bad, stops_after
):
    with RunFolder(tmp_path / "run", "train", "x", 0) as files:
        recorder = recorder_of(files, 6)
        trainer = make_trainer("trainer.steps=6", callbacks=[recorder])
        spoil(trainer, bad, float("nan"))
        if stops_after:
            with pytest.raises(UserError, match="3 steps in a row"):
                trainer.train()
        else:
            trainer.train()
    text = (files.path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    rows = files.read("metrics.jsonl")
    assert len(rows) == (stops_after or 6)
    assert [row["step"] for row in rows if "train/skipped" in row] == sorted(bad)
    assert all(("train/loss" in row) != (row["step"] in bad) for row in rows)
    assert weights(trainer.model).isfinite().all()


def test_weights_that_are_not_finite_are_never_saved(make_trainer, tmp_path):
    with RunFolder(tmp_path / "run", "train", "x", 0) as files:
        recorder = recorder_of(files, 2)
        keeper = keeper_of(files, recorder)

        class Break(TrainerCallback):
            def on_optimizer_step(self, args, state, control, **_):
                if state.global_step == 1:
                    next(trainer.model.parameters()).data.view(-1)[0] = float("inf")

        trainer = keeper.trainer = make_trainer("trainer.steps=2", callbacks=[recorder, keeper, Break()])
        with pytest.raises(UserError, match="at step 2 weights are not finite"):
            trainer.train()
    assert [path.name for path in (files.path / "checkpoints").glob("step-*")] == ["step-1"]


def test_a_save_that_fails_is_said_and_training_goes_on_but_for_the_last(make_trainer, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise RuntimeError("unexpected pos 64 vs 0: No space left on device")

    with RunFolder(tmp_path / "run", "train", "x", 0) as files:
        recorder = recorder_of(files, 3)
        keeper = keeper_of(files, recorder)
        trainer = keeper.trainer = make_trainer("trainer.steps=3", callbacks=[recorder, keeper])
        monkeypatch.setattr(trainer, "save_state_beside", lambda folder: trainer.state.global_step == 1 or full())
        with pytest.raises(UserError, match=r"step 3 could not be saved \(unexpected pos .*\); .* GiB are free"):
            trainer.train()
    said = " ".join(capsys.readouterr().out.split())
    assert "step 2 could not be saved" in said and "the newest checkpoint is" in said
    assert [path.name for path in (files.path / "checkpoints").iterdir()] == ["step-1"]


def test_a_best_that_cannot_be_saved_leaves_the_best_before_it(make_trainer, tmp_path, monkeypatch):
    class Answers:
        def development(self, model, samples, step):
            return {"dev/accuracy": {1: 0.5, 2: 0.9, 3: 0.95, 4: 0.1}[step]}

    config = replace(CONFIG, eval=replace(CONFIG.eval, every=1), trainer=replace(CONFIG.trainer, keep_checkpoints=1))
    with RunFolder(tmp_path / "run", "train", "x", 0) as files:
        recorder = recorder_of(files, 4)
        job = SimpleNamespace(config=config, splits=Splits([], [], []))
        keeper = Keeper(job, files, Answers(), recorder, provenance={})
        trainer = keeper.trainer = make_trainer("trainer.steps=4", callbacks=[recorder, keeper])
        save = trainer.save_state_beside

        def full_at_step_3(folder):
            if trainer.state.global_step == 3:
                raise OSError("No space left on device")
            save(folder)

        monkeypatch.setattr(trainer, "save_state_beside", full_at_step_3)
        trainer.train()
        again = Keeper(job, files, Answers(), recorder, provenance={})
    assert keeper.best == again.best == {"step": 2, "accuracy": 0.9}
    assert checkpoint.best(files.path).name == "step-2"
    assert sorted(path.name for path in checkpoint.steps(files.path)) == ["step-2", "step-4"]
