"""What the model gets when a sense is taken away."""

from dataclasses import replace

import numpy as np
import pytest

from echoink.config.schema import Variant
from echoink.data.ablations import applies, make, without
from echoink.data.samples import DataType, Sample, load_sound
from echoink.media.loaders import load_image, load_soundtrack, load_video
from echoink.models.qwen2_5_omni import MEDIA
from echoink.rewards.types import ProblemType
from tests.conftest import VIDEO
from tests.helpers.files import picture, sound, video

SOUND = {"input_features", "feature_attention_mask"}
SIGHT = {"pixel_values", "image_grid_thw"}


@pytest.mark.parametrize(
    ("variant", "kind", "media", "words"),
    [
        (Variant.full, DataType.image_audio, SOUND | SIGHT, "Listen to the sound and look at the picture."),
        (Variant.no_audio, DataType.image, SIGHT, "Look at the picture."),
        (Variant.no_image, DataType.audio, SOUND, "Listen to the sound."),
        (Variant.text_only, DataType.text, set(), ""),
        (Variant.silent_audio, DataType.image_audio, SOUND | SIGHT, "Listen to the sound and look at the picture."),
        (Variant.blank_image, DataType.image_audio, SOUND | SIGHT, "Listen to the sound and look at the picture."),
    ],
)
def test_the_prompt_has_and_names_what_is_left_and_nothing_else_changes(
    processor, samples, variant, kind, media, words
):
    sample = samples[2]
    found = without(sample, variant)
    assert found.data_type is kind
    kept = ("id", "problem", "options", "solution", "problem_type", "fields")
    assert all(getattr(found, name) == getattr(sample, name) for name in kept)
    prompt, full = processor(found), processor(sample)
    assert set(prompt.media) == media <= set(MEDIA)
    text = processor.processor.decode(prompt.input_ids)
    assert words in text and sample.problem in text
    if kind is DataType.image_audio:
        assert prompt.input_ids.equal(full.input_ids), "as many tokens of each medium"


def test_silence_and_grey_are_as_long_and_as_large(samples):
    sample = samples[0]
    silent = load_sound(without(sample, Variant.silent_audio), 10)
    assert silent.seconds == pytest.approx(load_sound(sample, 10).seconds) and not silent.samples.any()
    blank = load_image(without(sample, Variant.blank_image).image)
    assert blank.size == load_image(sample.image).size and set(np.asarray(blank).flatten()) == {128}


def of_videos(tmp_path):
    tones = (440, 880)
    return [
        Sample(
            str(number),
            "Which tone?",
            ("A. low", "B. high"),
            "AB"[number],
            data_type=DataType.video_audio,
            video=video(tmp_path / f"{number}.mp4", hertz=hertz, start=0),
        )
        for number, hertz in enumerate(tones)
    ]


def pitch(samples):
    return np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples)


def test_a_video_leaves_its_soundtrack_and_a_swap_takes_only_one_sense(tmp_path, processor):
    one, other = of_videos(tmp_path)
    heard = without(one, Variant.no_image)
    assert heard.data_type is DataType.audio and heard.video is None
    assert np.allclose(load_sound(heard, 10).samples, load_soundtrack(one.video, 10).samples)
    assert without(one, Variant.no_audio).data_type is DataType.video
    for variant in (Variant.no_image, Variant.no_audio, Variant.silent_audio):
        assert len(processor(without(one, variant)).input_ids)
    ears, _ = make([one, other], Variant.swapped_audio, 0)
    assert ears.video == one.video and pitch(load_sound(ears, 10).samples) == pytest.approx(880, abs=5)
    eyes, _ = make([one, other], Variant.swapped_image, 0)
    assert eyes.video == other.video and pitch(load_sound(eyes, 10).samples) == pytest.approx(440, abs=5)
    assert load_video(eyes.video, VIDEO).seconds == load_video(other.video, VIDEO).seconds
    assert not applies(Variant.blank_image, one)


def test_what_a_sample_has_not_cannot_be_taken(tmp_path):
    text = Sample("0", "2 + 2?", ("A. 3", "B. 4"), "B", data_type=DataType.text)
    heard = replace(text, data_type=DataType.audio, audio=sound(tmp_path / "x.wav"))
    seen = replace(text, data_type=DataType.image, image=picture(tmp_path / "x.png"))
    assert [v.name for v in Variant if applies(v, text)] == ["full"]
    assert {v.name for v in Variant if applies(v, heard)} == {
        "full",
        "no_audio",
        "text_only",
        "silent_audio",
        "swapped_audio",
    }
    assert {v.name for v in Variant if applies(v, seen)} == {
        "full",
        "no_image",
        "text_only",
        "blank_image",
        "swapped_image",
    }
    assert make([text, heard, seen], Variant.no_audio, 0) == [without(heard, Variant.no_audio)]


@pytest.mark.parametrize("variant", [Variant.swapped_audio, Variant.swapped_image])
def test_a_donor_is_of_the_same_kind_with_another_answer_and_other_media(samples, variant):
    of_audio = {sample.audio: sample for sample in samples}
    of_image = {sample.image: sample for sample in samples}
    made = make(samples, variant, 0)
    assert len(made) > len(samples) / 2
    full = {sample.id: sample for sample in samples}

    def words(sample):
        return {option[3:] for option in sample.options if option[0] in sample.gold}

    for found in made:
        sample = full[found.id]
        donor = of_audio[found.audio] if variant is Variant.swapped_audio else of_image[found.image]
        kept = "image" if variant is Variant.swapped_audio else "audio"
        assert getattr(found, kept) == getattr(sample, kept)
        assert donor.id != sample.id and donor.fields["kind"] == sample.fields["kind"]
        assert words(donor) != words(sample)
    assert made == make(samples, variant, 0) != make(samples, variant, 1)


def test_samples_that_share_media_are_no_donors_and_one_without_a_donor_is_left_out(samples):
    one, other = [s for s in samples if s.fields["kind"] == "ear"][:2]
    one = replace(one, problem_type=ProblemType.free_form, options=(), solution="dog")
    other = replace(other, problem_type=ProblemType.free_form, options=(), solution="bell")
    assert [s.id for s in make([one, other], Variant.swapped_audio, 0)] == [one.id, other.id]
    assert make([one, other], Variant.swapped_audio, 0, {one.id: "x", other.id: "x"}) == []
    assert make([one, replace(other, solution="dog")], Variant.swapped_audio, 0) == []
    seven, again = (replace(s, problem_type=ProblemType.counting, solution=n) for s, n in ((one, "7"), (other, "14/2")))
    assert make([seven, again], Variant.swapped_audio, 0) == [], "the same answer, written in another way"
    choices = [
        replace(s, problem_type=ProblemType.multiple_choice, options=options, solution="A")
        for s, options in ((one, ("A. dog", "B. cat")), (other, ("A. Dog.", "B. bee")))
    ]
    assert make(choices, Variant.swapped_audio, 0) == []
    without_words = [
        replace(choice, options=("A.", "B."), solution=gold) for choice, gold in zip(choices, "AB", strict=True)
    ]
    assert len(make(without_words, Variant.swapped_audio, 0)) == 2
    crossed = {one.id: ("sound 1", "sight 1"), other.id: ("sound 2", "sight 2")}
    assert len(make([one, other], Variant.swapped_audio, 0, crossed)) == 2
    assert make([one, other], Variant.swapped_audio, 0, crossed | {other.id: ("sound 2", "sight 1")}) == []


def test_where_nobody_is_asked_the_same_the_donor_is_of_another_question(samples):
    one, other = [s for s in samples if s.fields["kind"] == "ear"][:2]
    one, other = (replace(s, problem_type=ProblemType.free_form, options=()) for s in (one, other))
    one, other = replace(one, problem="P", solution="dog"), replace(other, problem="Q", solution="bell")
    third = replace(one, id="third", solution="cat", audio=samples[-1].audio)
    assert [s.audio for s in make([one, other], Variant.swapped_audio, 0)] == [other.audio, one.audio]
    for seed in range(8):  # with a third that is asked the same, it is the donor
        assert make([one, other, third], Variant.swapped_audio, seed)[0].audio == third.audio


def test_a_donor_has_the_same_media_and_is_asked_in_the_same_way(samples):
    one, other = [s for s in samples if s.fields["kind"] == "ear"][:2]
    one = replace(one, problem="Which?", problem_type=ProblemType.free_form, options=(), solution="dog")
    other = replace(one, id=other.id, audio=other.audio, solution="bell")
    assert len(make([one, other], Variant.swapped_audio, 0)) == 2
    heard = replace(other, data_type=DataType.audio, image=None)
    assert make([one, heard], Variant.swapped_audio, 0) == []
    assert make([one, replace(other, problem_type=ProblemType.ocr)], Variant.swapped_audio, 0) == []
