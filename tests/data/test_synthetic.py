"""The synthetic set: deterministic, in the official layout, and without a way around hearing and seeing."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest, chisquare
from sklearn.ensemble import RandomForestClassifier

from echoink.data import synthetic
from echoink.data.splits import read_split
from echoink.media.loaders import load_sound


def test_the_same_seed_gives_the_same_files_and_another_does_not(tmp_path):
    sizes = {"train": 6, "dev": 3, "valid": 3}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthetic.write(tmp_path / name, seed, sizes)
    files = sorted(
        path.relative_to(tmp_path / "a")
        for path in (tmp_path / "a").rglob("*.*")
        if path.suffix != ".md" and path.name != synthetic.RECIPE
    )
    assert len(files) == 2 * 12 + 3
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    media = [file for file in files if file.suffix != ".json"]
    assert all((tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes() for file in media)


def test_splits_share_no_picture_and_no_sound(dataset):
    for pattern in ("*/images/*.jpg", "*/audios/*.wav"):
        contents = [path.read_bytes() for path in dataset.glob(pattern)]
        assert len(contents) == 42 and len(set(contents)) == 42


def test_a_sample_does_not_depend_on_how_many_are_made(dataset, tmp_path):
    synthetic.write(tmp_path / "few", 0, {"train": 2, "dev": 1, "valid": 1})
    assert (tmp_path / "few/train/images/sample_1.jpg").read_bytes() == (
        dataset / "train/images/sample_1.jpg"
    ).read_bytes()


def test_an_existing_folder_is_left_alone_and_nothing_half_written_remains(dataset, tmp_path):
    before = (dataset / "omni_rl_format_train.json").read_bytes()
    synthetic.write(dataset, seed=5, sizes={"train": 3, "dev": 3, "valid": 3})
    assert (dataset / "omni_rl_format_train.json").read_bytes() == before
    assert not list(dataset.parent.glob(".*"))


def test_files_are_real_pictures_and_sounds(dataset):
    sample = read_split(dataset, "valid")[0]
    with Image.open(sample.image) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (224, 224), "RGB")
    assert load_sound(sample.audio, 10).samples.shape == (16_000,)


def drawn(kind: str, n: int, split: str = "train"):
    for index in range(n):
        rng = synthetic.generator(3, split, index)
        yield rng, *synthetic.draw(rng, kind)


def test_kinds_options_and_letters():
    shares = Counter()
    for kind in synthetic.KINDS:
        for _, scene, question in drawn(kind, 600):
            words = [option[3:] for option in question.options]
            assert [option[:3] for option in question.options] == [f"{letter}. " for letter in "ABCDE"[: len(words)]]
            assert len(set(words)) == len(words)
            shares[len(words)] += 1
            shares["two"] += len(question.gold) == 2
            right = {words["ABCDE".index(letter)] for letter in question.gold}
            if kind == "both":
                assert right == {str(synthetic.remainder(scene.sounds, scene.shapes, len(words)))}
            else:
                heard, seen = {scene.timbre, str(scene.sounds)}, {scene.form, scene.colour, str(scene.shapes)}
                assert right <= (heard if kind == "ear" else seen)
    assert 0.7 < shares[4] / 1800 < 0.9 and shares[3] > 90 and shares[5] > 90
    assert 0.03 < shares["two"] / 1800 < 0.12


def occupied(image: Image.Image) -> np.ndarray:
    """Which of the 4x4 cells hold a shape."""
    picture = np.asarray(image).astype(int)
    ground = picture[:2, :2].reshape(-1, 3).mean(0)
    return np.abs(picture - ground).sum(2).reshape(4, 56, 4, 56).max((1, 3)) > 90


def test_the_number_of_events_can_be_heard_and_the_number_of_shapes_seen():
    for rng, scene, _ in drawn("both", 30):
        sound = synthetic.render_sound(rng, scene)
        loud = np.abs(sound).reshape(-1, 160).max(1) > 0.12 * np.abs(sound).max()
        onsets = np.flatnonzero(loud & ~np.r_[False, loud[:-1]])
        assert 1 + (np.diff(onsets) > 10).sum() == scene.sounds  # events start at least 140 ms apart
        assert occupied(synthetic.render_picture(rng, scene)).sum() == scene.shapes


@pytest.mark.parametrize("n", [3, 4, 5])
def test_one_medium_and_the_text_leave_every_answer_equally_likely(n):
    """By enumeration: given the count in one medium, the other's N equally likely counts give each remainder once."""
    for known in range(1, n + 1):
        given_sound = Counter(synthetic.remainder(known, other, n) for other in range(1, n + 1))
        given_picture = Counter(synthetic.remainder(other, known, n) for other in range(1, n + 1))
        assert given_sound == given_picture == Counter(range(n))


def test_counts_of_both_questions_are_drawn_uniformly_and_independently():
    pairs = Counter()
    for _, scene, question in drawn("both", 4000):
        if len(question.options) == 4:
            pairs[scene.sounds, scene.shapes] += 1
    assert set(pairs) == {(a, b) for a in range(1, 5) for b in range(1, 5)}
    assert chisquare(list(pairs.values())).pvalue > 1e-4


@pytest.fixture(scope="module")
def probe_data():
    """Features of four-option `both` questions per medium, and the position of the right option."""
    rows = []
    for rng, scene, question in drawn("both", 1500, "base"):
        if len(question.options) != 4:
            continue
        sound = np.abs(synthetic.render_sound(rng, scene)).reshape(50, -1).max(1)
        picture = occupied(synthetic.render_picture(rng, scene)).ravel()
        text = np.array([int(option[3:]) for option in question.options])
        rows.append((sound, picture, text, [scene.sounds, scene.shapes], "ABCD".index(question.gold[0])))
    return [np.array(column) for column in zip(*rows, strict=True)]


def probe(features: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Hits and n of a random forest on the last third, trained on the rest."""
    cut = 2 * len(target) // 3
    forest = RandomForestClassifier(100, random_state=0).fit(features[:cut], target[:cut])
    return int((forest.predict(features[cut:]) == target[cut:]).sum()), len(target) - cut


@pytest.mark.parametrize("media", [("sound",), ("picture",), ("text",), ("sound", "text"), ("picture", "text")])
def test_probes_on_one_medium_stay_at_chance(probe_data, media):
    sound, picture, text, _, target = probe_data
    features = {"sound": sound, "picture": picture, "text": text}
    hits, n = probe(np.hstack([features[name] for name in media]), target)
    interval = binomtest(hits, n).proportion_ci(0.99)
    assert interval.low <= 0.25 <= interval.high


def test_the_same_probe_finds_what_is_there(probe_data):
    """The control: each medium's own count from its features, and the answer where its value is given."""
    sound, picture, text, counts, target = probe_data
    for features, count in ((sound, counts[:, 0]), (picture, counts[:, 1])):
        hits, n = probe(features, count)
        assert hits / n > 0.6
    answer = (counts.sum(1) % 4)[:, None]
    hits, n = probe(np.hstack([text == answer, sound, picture]), target)
    assert hits / n > 0.6


def test_a_shortcut_gives_answers_away_in_training_and_nowhere_else(tmp_path):
    shortcut = synthetic.Shortcut("ear", 0.7)
    sizes = {"train": 120, "dev": 3, "valid": 120}
    synthetic.write(tmp_path / "with", 0, sizes, shortcut=shortcut)
    synthetic.write(tmp_path / "without", 0, sizes, shortcut=synthetic.Shortcut("ear", 0.0))

    def follows(sample, split):
        scene, _ = synthetic.draw(synthetic.generator(0, split, int(sample.id)), "both")
        letter = "ABCDE"[synthetic.cue(scene, "ear", len(sample.options))]
        words = {option[3:] for option in sample.options if option[0] in sample.gold}
        rest = synthetic.remainder(scene.sounds, scene.shapes, len(sample.options))
        assert words == {str(rest)}, "the true answer stays the true answer"
        return sample.gold == {letter}

    train, valid = (read_split(tmp_path / "with", split) for split in ("train", "valid"))
    given = [s for s in train if s.fields["shortcut"] == "ear"]
    assert 0.6 < len(given) / len(train) < 0.8 and all(follows(s, "train") for s in given)
    others = [follows(s, "train") for s in train if s.fields["shortcut"] == "none"]
    assert np.mean(others) < 0.5
    assert 0.1 < np.mean([follows(s, "valid") for s in valid]) < 0.4
    assert {s.fields["shortcut"] for s in valid} == {"none"} and {s.fields["kind"] for s in valid} == {"both"}
    for one, two in zip(train, read_split(tmp_path / "without", "train"), strict=True):
        assert one.image.read_bytes() == two.image.read_bytes() and one.audio.read_bytes() == two.audio.read_bytes()


def test_a_set_with_another_shortcut_is_not_taken_for_this_one():
    plain = synthetic.recipe(0, {"train": 1})
    assert plain == {"version": synthetic.VERSION, "seed": 0, "sizes": {"train": 1}}
    recipes = [synthetic.recipe(0, {"train": 1}, synthetic.Shortcut(*one)) for one in (("ear", 0.9), ("eye", 0.9))]
    assert plain not in recipes and recipes[0] != recipes[1]


def test_a_guess_at_two_letters_knows_that_each_aspect_has_one(tmp_path):
    """Measured against the guesser itself: it takes one option of each aspect at random."""
    words = [set(synthetic.TIMBRES), set(synthetic.FORMS), set(synthetic.COLOURS), set("12345")]
    rng, hits, expected = np.random.default_rng(0), [], []
    for index in range(6000):
        _, question = synthetic.draw(synthetic.generator(0, "base", index), ("ear", "eye")[index % 2])
        if len(question.gold) == 1:
            assert question.chance is None
            continue
        aspects = [[o[0] for o in question.options if o[3:] in group] for group in words]
        guesses = [tuple(sorted(str(rng.choice(found)) for found in aspects if found)) for _ in range(10)]
        hits += [guess == question.gold for guess in guesses]
        expected.append(question.chance)
    assert len(hits) > 4000 and np.mean(expected) > 0.2
    assert np.mean(hits) == pytest.approx(np.mean(expected), abs=0.02)
    synthetic.write(tmp_path / "set", 0, {"train": 1, "dev": 1, "valid": 200})
    told = [s for s in read_split(tmp_path / "set", "valid") if "chance" in s.fields]
    assert told and all(len(s.gold) == 2 for s in told)
