"""NameEmbeddings before words: what a projection and a new tower learn, and what stays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from echoink.training import tower_alignment
from echoink.training.tower_alignment import NameEmbeddings, Teacher
from tests.helpers.files import picture, sound
from tests.helpers.tiny import tiny_model

NAMES = ("bell", "ring", "beep")


@pytest.fixture
def model():
    return tiny_model()


def test_the_loss_is_that_of_its_formula(model, processor):
    tokenizer = processor.processor.tokenizer
    names = NameEmbeddings(model, tokenizer, NAMES)
    embedding = model.get_input_embeddings().weight.detach().double()
    words = [embedding[tokenizer(f" {name}", add_special_tokens=False)["input_ids"]].mean(0) for name in NAMES]
    mean = sum(words) / len(words)
    given = torch.randn(4, len(mean), generator=torch.Generator().manual_seed(0))
    labels, total = torch.tensor([0, 2, 2, 1]), 0.0
    for vector, label in zip(given.double(), labels.tolist(), strict=True):
        cosines = [torch.cosine_similarity(vector - mean, word - mean, dim=0) / 0.07 for word in words]
        scale = sum((word - mean).square().sum() for word in words) / len(words)
        total += -torch.stack(cosines).log_softmax(0)[label] + (vector - words[label]).square().sum() / scale
    assert names.loss(given, labels).item() == pytest.approx(total.item() / 4, rel=1e-4)


@pytest.fixture
def short(monkeypatch):
    """Few and small steps."""
    monkeypatch.setattr(tower_alignment, "PROJECTION", replace(tower_alignment.PROJECTION, steps=60, batch=32))
    monkeypatch.setattr(
        tower_alignment, "TOWER", replace(tower_alignment.TOWER, steps=60, batch=16, learning_rate=3e-3)
    )


def learn(sense, model, processor, folder):
    """Six media learned: their files, the record."""
    made, kept = [(number, NAMES[number % 3]) for number in range(6)], folder / "kept.pt"
    torch.manual_seed(0)
    if sense == "sounds":
        files = [(sound(folder / f"{n}.wav", seed=n % 3, seconds=0.4), name) for n, name in made]
        return files, Teacher(model, processor.processor).sounds(files, kept)
    files = [(picture(folder / f"{n}.png", seed=n % 3, size=(112, 112)), name) for n, name in made]
    return files, Teacher(model, processor.processor).pictures(files, 0, kept)


@pytest.mark.parametrize("sense", ["sounds", "pictures"])
def test_what_learns_finds_the_names_and_nothing_else_moves(model, processor, tmp_path, short, capsys, sense):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    files, record = learn(sense, model, processor, tmp_path)
    heard, moves = sense == "sounds", {"sounds": "audio_tower.proj.", "pictures": "visual."}[sense]
    teacher = Teacher(model, processor.processor)
    assert teacher.recognized(files, NAMES, heard) >= 4, "of six that were learned"
    wrong = [(file, NAMES[(NAMES.index(name) + 1) % 3]) for file, name in files]
    assert teacher.recognized(wrong, NAMES, heard) <= 2
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(moves in name for name in moved)
    label, said = capsys.readouterr().out.strip().splitlines()[-1].split(maxsplit=1)
    first, last = (float(number) for number in said.split("loss ")[1].split(" → "))
    assert (record["names"], record["media"], record["steps"]) == (3, 6, 60)
    assert record["last_loss"] < record["first_loss"]
    assert label == ("hearing" if sense == "sounds" else "seeing") and last < 0.7 * first


@pytest.mark.parametrize("sense", ["sounds", pytest.param("pictures", marks=pytest.mark.slow)])
def test_what_is_interrupted_goes_on_to_the_same_weights(processor, tmp_path, short, monkeypatch, capsys, sense):
    monkeypatch.setattr(tower_alignment, "KEPT_EVERY", 8)
    found, steps = [], []

    def bar(stops):
        def of(label, total):
            def items(given):
                for number, item in enumerate(given):
                    if label != "listening":
                        if number == stops:
                            raise KeyboardInterrupt
                        steps.append(item)
                    yield item

            return items

        return of

    for folder, stops in (("whole", None), ("interrupted", 20), ("interrupted", None)):
        (tmp_path / folder).mkdir(exist_ok=True)
        model = tiny_model()
        try:
            monkeypatch.setattr(tower_alignment, "progress", bar(stops))
            _, record = learn(sense, model, processor, tmp_path / folder)
            found.append((record, model.state_dict()))
        except KeyboardInterrupt:
            assert stops
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())
    assert steps == [*range(1, 61), *range(1, 21), *range(17, 61)]
    assert "16 of 60 steps are learned already" in capsys.readouterr().out
    steps.clear()
    learn(sense, tiny_model(), processor, tmp_path / "whole")
    assert not steps, "what is learned is not learned again"
    capsys.readouterr()
    monkeypatch.setattr(tower_alignment, "PROJECTION", replace(tower_alignment.PROJECTION, steps=3))
    monkeypatch.setattr(tower_alignment, "TOWER", replace(tower_alignment.TOWER, steps=3))
    learn(sense, tiny_model(), processor, tmp_path / "whole")
    assert steps == [1, 2, 3] and "is from other media or settings" in capsys.readouterr().out


def test_a_picture_is_varied_within_its_size():
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    rng = np.random.default_rng(1)
    made = [tower_alignment.varied(shown, rng) for _ in range(3)]
    assert all(one.size == (64, 64) for one in made)
    assert len({one.tobytes() for one in made}) == 3
