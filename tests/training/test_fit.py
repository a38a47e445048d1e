"""How training is left and taken up."""

import json
from types import SimpleNamespace

import pytest

from echoink.common.errors import UserError
from echoink.training import fit
from echoink.training.resumable_trainer import ResumableTrainer


@pytest.mark.parametrize(
    ("error", "several", "steps", "left"),
    [
        (KeyboardInterrupt, True, 3, 1),
        (UserError("a reward fails"), False, 3, 1),
        (UserError("a reward fails"), True, 3, 0),
        (UserError("of another trainer"), False, 0, 0),  # there is nothing to save, and the command will not go on
    ],
)
def test_what_ends_training_leaves_a_checkpoint_where_all_processes_know_of_it(
    monkeypatch, error, several, steps, left
):
    kept = []

    def fails(checkpoint):
        raise error

    monkeypatch.setattr(fit.collectives, "several", lambda: several)
    trainer = SimpleNamespace(go_on=fails, close=lambda: None, state=SimpleNamespace(global_step=2 + steps))
    keeper, recorder = SimpleNamespace(leave=lambda: kept.append(1)), SimpleNamespace(close=lambda: None)
    with pytest.raises(type(error) if isinstance(error, UserError) else error):
        fit._go_on(trainer, SimpleNamespace(checkpoint=None, step=2), recorder, keeper)
    assert len(kept) == left


def test_a_run_with_fewer_steps_than_its_checkpoint_is_refused(tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 5}))
    trainer = object.__new__(ResumableTrainer)
    trainer.args = SimpleNamespace(max_steps=4)
    with pytest.raises(UserError, match="is of step 5, and this run ends at step 4"):
        trainer.go_on(tmp_path)
