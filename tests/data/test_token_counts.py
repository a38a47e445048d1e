"""The arithmetic of tokens against the processor itself."""

import pytest

from echoink.data.media_check import inspect
from echoink.data.processor import Caps
from echoink.data.samples import DataType, Sample
from echoink.data.token_counts import prompt_tokens
from echoink.media.loaders import VideoCaps, load_video
from echoink.models.qwen2_5_omni_tokens import audio_tokens, image_tokens
from tests.helpers.configs import config_of
from tests.helpers.files import picture, sound, video


@pytest.mark.parametrize("data_type", DataType)
@pytest.mark.parametrize(("seconds", "size"), [(0.31, (30, 200)), (2.005, (640, 480)), (7.77, (113, 57))])
def test_a_prompt_has_as_many_tokens_as_its_files_say(processor, tmp_path, data_type, seconds, size):
    from dataclasses import replace

    made = {
        "image": lambda: picture(tmp_path / "p.png", size=size),
        "audio": lambda: sound(tmp_path / "s.wav", seconds=seconds),
        "video": lambda: video(tmp_path / "v.mp4", seconds=max(1, seconds)),
    }
    media = {name: made[name]() for name in data_type.media}
    sample = Sample("1", "What is it?", ("A. x", "B. y"), "A", data_type=data_type, **media)
    caps = VideoCaps(2, 6, 80 * 80, 28)
    wider = replace(processor, caps=Caps(5.0, caps, 4096))
    media_info = inspect(sample, 5.0, caps)
    found = prompt_tokens(media_info, wider.text_tokens(sample), config_of().model)
    prompt = wider(sample)
    config = processor.model.config
    counts = {
        name: int((prompt.input_ids == token).sum())
        for name, token in (
            ("image", config.image_token_id),
            ("audio", config.audio_token_id),
            ("video", config.video_token_id),
        )
    }
    assert {"image": found.image, "audio": found.audio, "video": found.video} == counts
    assert found.total == len(prompt.input_ids) and found.text == len(prompt.input_ids) - sum(counts.values())


def test_the_papers_caps_by_hand():
    assert audio_tokens(160_000) == 250
    assert image_tokens(448, 448, 3136, 200_704) == 256
    assert image_tokens(20, 20, 3136, 200_704) == 4, "scaled up"


def test_frames_arrive_as_they_were_scaled(processor, tmp_path):
    """The processor's own resizing leaves decoded frames alone."""
    from dataclasses import replace

    caps = VideoCaps(2, 4, 60 * 60, 28)
    path = video(tmp_path / "v.mp4", seconds=2)
    sample = Sample("1", "What?", ("A. x", "B. y"), "A", data_type=DataType.video, video=path)
    grid = replace(processor, caps=Caps(5.0, caps, 4096))(sample).media["video_grid_thw"][0].tolist()
    frames = load_video(path, caps).frames
    assert grid == [len(frames) // 2, frames.shape[2] // 14, frames.shape[3] // 14]
