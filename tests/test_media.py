"""What opens and what is refused, on files made here."""

import numpy as np
import pytest
import soundfile
from PIL import Image

from echoink.errors import UserError
from echoink.media import SAMPLING_RATE, load_audio, load_image


def tone(rate: int, seconds: float, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_sounds_are_resampled_to_16_khz_with_frequency_and_level(tmp_path, rate):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate, 1.0), rate)
    samples = load_audio(path, 10)
    assert samples.dtype == np.float32 and len(samples) == SAMPLING_RATE
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(spectrum.argmax() - 440) <= 1  # one bin is one hertz
    assert np.sqrt((samples[1000:-1000] ** 2).mean()) == pytest.approx(0.5 / 2**0.5, rel=0.01)


def test_channels_are_averaged_and_long_sounds_cut(tmp_path):
    path = tmp_path / "stereo.flac"
    left = tone(16_000, 3.0)
    soundfile.write(path, np.stack([left, -left], 1), 16_000)
    samples = load_audio(path, 2.0)
    assert len(samples) == 32_000
    assert np.abs(samples).max() < 1e-4


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"RIFF\x00\x00\x00\x00WAVE"])
def test_what_is_no_sound_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(UserError, match="bad.wav"):
        load_audio(path, 10)


def test_missing_empty_and_non_finite_sounds_are_refused(tmp_path):
    with pytest.raises(UserError, match="sound not found"):
        load_audio(tmp_path / "gone.wav", 10)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    with pytest.raises(UserError, match="lasts 0.000 s"):
        load_audio(tmp_path / "empty.wav", 10)
    broken = tone(16_000, 1.0).astype(np.float32)
    broken[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match="not finite"):
        load_audio(tmp_path / "nan.wav", 10)


def test_pictures_are_rgb_upright_and_transparency_is_white(tmp_path):
    Image.new("RGBA", (8, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    image = load_image(tmp_path / "clear.png")
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    turned = Image.new("L", (40, 20), 9)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (20, 40)


def test_truncated_missing_and_absurd_pictures_are_refused(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((200, 200), 90).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot read the picture .*cut.jpg"):
        load_image(tmp_path / "cut.jpg")
    with pytest.raises(UserError, match="picture not found"):
        load_image(tmp_path / "gone.jpg")
    Image.new("1", (9_000, 9_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="over the limit"):
        load_image(tmp_path / "bomb.png")
    Image.new("RGB", (2000, 4)).save(tmp_path / "thin.png")
    with pytest.raises(UserError, match="too narrow"):
        load_image(tmp_path / "thin.png")
    (tmp_path / "page.jpg").write_text("<html>")
    with pytest.raises(UserError, match="page.jpg"):
        load_image(tmp_path / "page.jpg")
