"""What opens and what is refused, on files made here."""

import os
import struct
import tracemalloc
import unicodedata
from dataclasses import replace

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition
from PIL import Image, PngImagePlugin

from echoink.common.errors import UserError
from echoink.data import samples
from echoink.data.samples import parse_rows
from echoink.media import loaders
from echoink.media.loaders import (
    MAX_BYTES,
    SAMPLING_RATE,
    Embedded,
    VideoCaps,
    digest,
    has_soundtrack,
    load_image,
    load_sound,
    load_soundtrack,
    load_video,
    scaled,
)
from tests.helpers.files import picture, video


def tone(rate: int, seconds: float, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_sounds_are_resampled_to_16_khz_with_frequency_and_level(tmp_path, rate):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate, 1.0), rate)
    samples = load_sound(path, 10).samples
    assert samples.dtype == np.float32 and len(samples) == SAMPLING_RATE
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(spectrum.argmax() - 440) <= 1  # one bin is one hertz
    assert np.sqrt((samples[1000:-1000] ** 2).mean()) == pytest.approx(0.5 / 2**0.5, rel=0.01)


def test_channels_are_averaged_and_long_sounds_cut(tmp_path):
    path = tmp_path / "stereo.flac"
    left = tone(16_000, 3.0)
    soundfile.write(path, np.stack([left, -left], 1), 16_000)
    samples = load_sound(path, 2.0).samples
    assert len(samples) == 32_000
    assert np.abs(samples).max() < 1e-4


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"RIFF\x00\x00\x00\x00WAVE"])
def test_what_is_no_sound_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(UserError, match="bad.wav"):
        load_sound(path, 10)


def test_missing_empty_and_non_finite_sounds_are_refused(tmp_path):
    with pytest.raises(UserError, match="sound not found"):
        load_sound(tmp_path / "gone.wav", 10)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    with pytest.raises(UserError, match="lasts 0.000 s"):
        load_sound(tmp_path / "empty.wav", 10)
    broken = tone(16_000, 1.0).astype(np.float32)
    broken[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match="not finite"):
        load_sound(tmp_path / "nan.wav", 10)


def test_pictures_are_rgb_upright_and_transparency_is_white(tmp_path):
    Image.new("RGBA", (8, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (8, 4), (255, 0, 0, 0)).convert("PA").save(tmp_path / "clear.tif")
    for name in ("clear.png", "clear.tif"):
        image = load_image(tmp_path / name)
        assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    turned = Image.new("L", (40, 20), 9)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize("exif", [b"Exif\0\0MM", b"Exif\0\0nothing", b"Exif\0\0II*\0\xff\xff\xff\x7f"])
def test_a_picture_with_broken_exif_is_shown_as_it_is_stored(exif, tmp_path):
    Image.new("RGB", (40, 20), (9, 99, 9)).save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").size == (40, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_in_exif_is_turned_upright(orientation, tmp_path):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    first_row_is_right_or_left, first_row_is_below = orientation > 4, orientation in (3, 4)
    shown = pixels.T if first_row_is_right_or_left else pixels[::-1] if first_row_is_below else pixels
    shown = shown[::-1] if orientation in (7, 8) else shown
    shown = shown[:, ::-1] if orientation in (2, 3, 6, 7) else shown
    assert np.array_equal(np.asarray(load_image(tmp_path / "x.png"))[..., 0], shown)


def test_a_picture_may_hold_a_long_text(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2 * 2**20, zip=True)
    Image.new("RGB", (8, 4)).save(tmp_path / "x.png", pnginfo=text)
    assert load_image(tmp_path / "x.png").size == (8, 4)


@pytest.mark.parametrize(
    ("content", "what", "way_out"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "it is in HEIC", "convert it"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "it is in JPEG 2000", "convert it"),
        (b"\xff\x0a" + bytes(99), "it is in JPEG XL", "convert it"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is in SVG", "convert it"),
        (b"<?xml version='1.0'?>\n<!-- Inkscape -->\n<svg></svg>", "it is in SVG", "convert it"),
        (b"<?xml version='1.0'?>\n<!DOCTYPE svg PUBLIC>\n<svg></svg>", "it is in SVG", "convert it"),
        (b"<!DOCTYPE html><html>404</html>", "it is a web page", "download it again"),
        (b"\xef\xbb\xbf<!-- saved --><html>404</html>", "it is a web page", "download it again"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(99), "cannot", "replace the file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS", "git lfs pull"),
        (b"", "it is empty", "replace the file"),
        (b"noise", "cannot identify", "replace the file"),
    ],
)
def test_what_stands_in_place_of_a_picture_is_named(content, what, way_out, tmp_path):
    (tmp_path / "x.jpg").write_bytes(content)
    for medium in (tmp_path / "x.jpg", Embedded("row 1", lambda: content)):
        with pytest.raises(UserError, match=what) as error:
            load_image(medium)
        assert way_out in error.value.hint


def test_a_medium_that_its_table_cannot_give_is_an_error_of_its_sample():
    def broken():
        raise ValueError("a damaged page")

    with pytest.raises(UserError, match="row 1.*a damaged page"):
        load_image(Embedded("row 1, image", broken))


def test_an_animated_webp_is_refused_as_a_video_with_the_way_out(tmp_path):
    pictures = [Image.new("RGB", (64, 64), (level, 0, 0)) for level in (0, 99, 200)]
    pictures[0].save(tmp_path / "x.webp", save_all=True, append_images=pictures[1:], duration=300)
    with pytest.raises(UserError, match=r"WebP that cannot be read(.|\n)*an animation as GIF or MP4"):
        load_video(tmp_path / "x.webp", CAPS)
    (tmp_path / "x.mp4").write_bytes(bytes(999))
    with pytest.raises(UserError, match=r"x\.mp4: (?!.*WebP)"):
        load_video(tmp_path / "x.mp4", CAPS)


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


@pytest.mark.parametrize("kind", ["I;16", "CMYK", "P", "LA", "1", "L"])
def test_every_kind_of_picture_keeps_its_brightness(tmp_path, kind):
    grey = np.full((8, 8), 128, dtype=np.uint8)
    grey[:4] = 32
    plain = Image.fromarray(grey)
    made = {
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
        "1": lambda: plain.convert("1", dither=Image.Dither.NONE),
    }
    image = made.get(kind, lambda: plain.convert(kind))()
    path = tmp_path / ("x.jpg" if kind == "CMYK" else "x.png")
    image.save(path)
    seen = np.asarray(load_image(path)).astype(int)
    expected = np.where(grey > 127, 255, 0) if kind == "1" else grey
    assert seen.shape == (8, 8, 3) and np.abs(seen - expected[..., None]).max() <= (8 if kind == "CMYK" else 1)


@pytest.mark.parametrize("values", [np.int32, np.uint16])
def test_integers_of_an_unknown_range_are_refused(tmp_path, values):
    Image.fromarray((np.arange(64).reshape(8, 8) * 60).astype(values)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match="of an unknown range, at most 3780"):
        load_image(tmp_path / "x.tif")


def test_16_bits_of_a_rare_kind_are_refused(tmp_path):
    ramp = (np.arange(64, dtype=np.uint16).reshape(8, 8)) * 1000
    Image.fromarray(ramp // 4).save(tmp_path / "sensor.png")  # 14 bits of 16
    with pytest.raises(UserError, match="at most 15750"):
        load_image(tmp_path / "sensor.png")
    Image.fromarray(ramp).save(tmp_path / "inverted.tif", tiffinfo={262: 0})
    Image.fromarray(ramp).save(tmp_path / "transparent.png", transparency=1000)
    for name in ("inverted.tif", "transparent.png"):
        with pytest.raises(UserError, match="of a rare kind of 16 bits"):
            load_image(tmp_path / name)


def test_of_an_animation_the_first_frame_is_shown(tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert load_image(tmp_path / name).getpixel((8, 8))[0] > 200


def test_other_formats_are_not_even_tried(tmp_path):
    """An EPS would start a program of its own to be drawn."""
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(UserError, match="cannot read the picture"):
        load_image(tmp_path / "x.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "y.ppm")
    with pytest.raises(UserError, match="cannot read the picture"):
        load_image(tmp_path / "y.ppm")


@pytest.mark.parametrize("load", [load_image, lambda path: load_sound(path, 9), lambda path: load_video(path, CAPS)])
def test_pipes_folders_and_files_that_are_too_large_are_refused_before_they_are_opened(tmp_path, load, monkeypatch):
    os.mkfifo(tmp_path / "pipe.wav")  # to open it would wait for ever
    (tmp_path / "folder.wav").mkdir()
    for name in ("pipe.wav", "folder.wav"):
        with pytest.raises(UserError, match=f"{name} is no file"):
            load(tmp_path / name)
        with pytest.raises(UserError, match="is no file"):
            digest(tmp_path / name)
    with open(tmp_path / "large.wav", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no disk
    for medium in (tmp_path / "large.wav", Embedded("row 3", lambda: b"x" * 101)):
        monkeypatch.setattr(loaders, "MAX_BYTES", 100)
        with pytest.raises(UserError, match="more than"):
            load(medium)


def test_a_sound_is_not_longer_in_memory_than_its_cap(tmp_path):
    """Half an hour of silence is 90 kB of FLAC and 115 MB of samples."""
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(1800 * 16_000, dtype=np.int16), 16_000)
    assert path.stat().st_size < 300_000
    tracemalloc.start()
    sound = load_sound(path, 5.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (sound.seconds, len(sound.samples)) == (1800, 80_000) and peak < 4_000_000


def test_absurd_sounds_are_refused(tmp_path):
    soundfile.write(tmp_path / "many.wav", np.zeros((1600, 100)), 16_000)
    with pytest.raises(UserError, match="claims 100 channels"):
        load_sound(tmp_path / "many.wav", 9)
    soundfile.write(tmp_path / "fast.wav", np.zeros(80_000), 800_000)
    with pytest.raises(UserError, match="claims 1 channels at 800,000 Hz"):
        load_sound(tmp_path / "fast.wav", 9)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("channels", [1, 6])
def test_every_kind_of_sound_keeps_its_level(tmp_path, subtype, channels):
    wave = tone(44_100, 1.0)
    soundfile.write(tmp_path / "x.wav", np.stack([wave] * channels, 1), 44_100, subtype=subtype)
    samples = load_sound(tmp_path / "x.wav", 10).samples
    level = 20 * np.log10(np.sqrt((samples[1000:-1000] ** 2).mean()) * 2**0.5 / 0.5)
    assert abs(level) <= 0.1


def test_a_wav_that_is_cut_off_is_refused_and_one_of_unknown_length_is_not(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, tone(16_000, 1.0), 16_000)
    whole = path.read_bytes()
    for kept in (len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match="is cut off"):
            load_sound(path, 10)
        with pytest.raises(UserError, match="is cut off"):
            load_sound(Embedded("row 3", path.read_bytes), 10)
    at = whole.index(b"data") + 4
    path.write_bytes(whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :])  # as a program that writes to a pipe
    assert len(load_sound(path, 10).samples) == 16_000


@pytest.mark.parametrize("rest", [b"TAG" + b"title".ljust(125), b"\n" * 16, b"<!-- saved from a page -->"])
def test_bytes_after_an_mp4_are_no_box_that_is_cut_off(tmp_path, rest):
    whole = video(tmp_path / "x.mp4").read_bytes()
    (tmp_path / "x.mp4").write_bytes(whole + rest)
    assert load_video(tmp_path / "x.mp4", CAPS).frames.shape[0] >= 2
    (tmp_path / "x.mp4").write_bytes(whole[:-200])
    with pytest.raises(UserError, match="is cut off"):
        load_video(tmp_path / "x.mp4", CAPS)


CAPS = VideoCaps(fps=2, max_frames=8, max_pixels=112 * 112, grid=28)


def test_frames_are_spread_over_the_whole_video_and_scaled(tmp_path):
    found = load_video(video(tmp_path / "clip.mp4", seconds=3, fps=8), CAPS)
    assert found.frames.shape == (6, 3, 84, 140) and found.frames.dtype == np.uint8
    assert found.fps == pytest.approx(2) and found.seconds == pytest.approx(3, abs=0.1)
    levels = found.frames.mean((1, 2, 3))  # 20 a second, from the middle of each half second
    assert levels == pytest.approx([20 * (0.25 + 0.5 * number) for number in range(6)], abs=6)


def test_a_long_video_gives_fewer_frames_a_second(tmp_path):
    found = load_video(video(tmp_path / "clip.mp4", seconds=8, fps=4), CAPS)
    assert len(found.frames) == 8 and found.fps == pytest.approx(1, rel=0.05)
    short = load_video(video(tmp_path / "short.mp4", seconds=0.5, fps=4), CAPS)
    assert len(short.frames) == 2, "the processor takes frames two by two"


def test_the_soundtrack_is_16_khz_and_cut(tmp_path):
    path = video(tmp_path / "clip.mp4", seconds=3, hertz=1000)
    found = load_soundtrack(path, 1.0)
    assert len(found.samples) == SAMPLING_RATE and found.seconds == pytest.approx(3, abs=0.15)
    assert abs(np.abs(np.fft.rfft(found.samples)).argmax() - 1000) <= 2


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "22.2"])
def test_the_channels_of_a_soundtrack_are_averaged_however_many(tmp_path, layout):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout=layout)
        channels = stream.layout.nb_channels
        levels = (np.arange(channels) * 1_000 + np.arange(4_000)[:, None]).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(levels.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate, frame.pts = 16_000, 0
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    found = load_soundtrack(tmp_path / "clip.mkv", 10)
    assert found.samples == pytest.approx((np.arange(4_000) + 500 * (channels - 1)) / 2**15, abs=1e-4)


def test_a_soundtrack_of_too_many_channels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "MAX_CHANNELS", 0)
    with pytest.raises(UserError, match=r"the sound of .*clip\.mp4 claims 1 channels at 16,000 Hz"):
        load_soundtrack(video(tmp_path / "clip.mp4"), 10)


def test_a_video_without_what_is_asked_for_is_refused(tmp_path):
    silent = video(tmp_path / "silent.mp4", with_sound=False)
    with pytest.raises(UserError, match=r"silent\.mp4 has no sound"):
        load_soundtrack(silent, 10)
    with pytest.raises(UserError, match="video not found"):
        load_video(tmp_path / "gone.mp4", CAPS)
    (tmp_path / "page.mp4").write_text("<html>")
    with pytest.raises(UserError, match=r"cannot read the video .*page\.mp4"):
        load_video(tmp_path / "page.mp4", CAPS)
    (tmp_path / "cut.mp4").write_bytes(silent.read_bytes()[:400])
    with pytest.raises(UserError, match=r"cut\.mp4"):
        load_video(tmp_path / "cut.mp4", CAPS)
    soundfile.write(tmp_path / "only.wav", tone(16_000, 1), 16_000)
    with pytest.raises(UserError, match="no picture track"):
        load_video(tmp_path / "only.wav", CAPS)


def test_a_sound_track_without_packets_is_no_sound(tmp_path):
    path = tmp_path / "late.ts"  # cut from a broadcast before its sound begins: the track is declared, and nothing more
    with av.open(str(path), "w", format="mpegts") as container:
        pictures = container.add_stream("mpeg4", rate=5)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        container.add_stream("aac", rate=16_000, layout="mono")
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * number, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
    assert not has_soundtrack(path)
    assert len(load_video(path, CAPS).frames) == 4
    with pytest.raises(UserError, match=r"the video .*late\.ts has no sound"):
        load_soundtrack(path, 10)
    with pytest.raises(UserError, match=r"late\.ts has no sound"):
        load_sound(path, 10)


def test_media_may_be_bytes(tmp_path):
    path = video(tmp_path / "clip.mp4", seconds=1)
    inside = Embedded("row 3", path.read_bytes)
    assert (load_video(inside, CAPS).frames == load_video(path, CAPS).frames).all()
    assert digest(inside) == digest(path)
    with pytest.raises(UserError, match="cannot read the picture row 4"):
        load_image(Embedded("row 4", lambda: b"nothing"))
    with pytest.raises(UserError, match="cannot read the sound row 4"):
        load_sound(Embedded("row 4", lambda: b"nothing"), 10)


def test_scaled_sides_are_multiples_within_the_cap():
    for width, height in ((1920, 1080), (160, 96), (27, 5), (3000, 40)):
        found = scaled(width, height, 12_544, 28)
        assert all(side % 28 == 0 and side for side in found)
        assert found[0] * found[1] <= 12_544 or min(found) == 28


@pytest.mark.parametrize(
    ("width", "height", "sides"),
    [
        (640, 360, (448, 252)),  # 420 x 224 within the cap are fewer than the least
        (320, 240, (392, 280)),
        (160, 120, (392, 280)),
        (256, 256, (336, 336)),
        (1920, 1080, (448, 252)),
    ],
)
def test_frames_of_a_real_model_are_as_large_as_in_the_papers_code(width, height, sides):
    """The paper's code scales to at least and at most 128 squares of 28 pixels, and the processor then enlarges."""
    assert scaled(width, height, 100_352, 28, min_pixels=100_352) == sides


def test_a_short_video_gives_the_fewest_frames_if_it_has_them(tmp_path):
    few = replace(CAPS, min_frames=4)
    assert len(load_video(video(tmp_path / "a.mp4", seconds=1, fps=8), few).frames) == 4
    assert len(load_video(video(tmp_path / "b.mp4", seconds=1, fps=3), few).frames) == 2, "it has three"
    assert len(load_video(video(tmp_path / "c.mp4", seconds=4, fps=1), CAPS).frames) == 4, "none is given twice"


def test_fine_stripes_of_a_frame_fade_less_than_by_bilinear_scaling(tmp_path):
    stripes = np.repeat(np.where(np.arange(320) % 6 < 3, 255, 0).astype(np.uint8)[None], 240, 0)
    with av.open(str(tmp_path / "s.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=2)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for _ in range(4):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.stack([stripes] * 3, -1), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    frame = load_video(tmp_path / "s.mkv", replace(CAPS, max_pixels=200 * 150)).frames[0]
    with av.open(str(tmp_path / "s.mkv")) as container:
        size = {"width": frame.shape[2], "height": frame.shape[1]}
        plain = next(container.decode(video=0)).to_ndarray(format="rgb24", **size, interpolation="BILINEAR")
    assert frame.std() > 1.05 * plain.std()


def test_a_clock_that_starts_late_changes_nothing(tmp_path):
    plainly = load_video(video(tmp_path / "a.mp4", seconds=4), CAPS)
    for name in ("late.mp4", "late.mkv"):
        late = load_video(video(tmp_path / name, seconds=4, start=3), CAPS)
        assert late.seconds == pytest.approx(plainly.seconds, abs=0.3) and len(late.frames) == len(plainly.frames)
        assert late.frames.mean((1, 2, 3)) == pytest.approx(plainly.frames.mean((1, 2, 3)), abs=8)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_a_sound_that_begins_before_its_pictures_is_heard_from_its_beginning(tmp_path, name):
    """As files are that were cut between two key frames: a player plays all of it, over the first picture."""
    path = video(tmp_path / name, seconds=4, start=3, sound_start=-3, sound_seconds=7)
    sound, shown = load_soundtrack(path, 20), load_video(path, CAPS)
    assert sound.seconds == pytest.approx(7, abs=0.15) and len(sound.samples) / SAMPLING_RATE == pytest.approx(
        7, abs=0.15
    )
    assert shown.seconds == pytest.approx(7, abs=0.3)
    levels = shown.frames.mean((1, 2, 3))
    moments = (np.arange(len(levels)) + 0.5) * shown.seconds / len(levels)
    assert levels == pytest.approx(20 * np.clip(moments - 3, 0, 4), abs=12)


def silent(path, levels, codec, rate, every, **how):
    """A video of grey frames, every so many a key frame."""
    with av.open(str(path), "w", **how) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 160, 96, "yuv420p", every
        for level in levels:
            frame = np.full((96, 160, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_the_frames_of_a_fragmented_file_are_those_of_all_its_fragments(tmp_path):
    """Its header counts the frames of the first fragment alone."""
    fragmented = {"movflags": "frag_keyframe"}
    silent(tmp_path / "f.mp4", range(0, 160, 5), "mpeg4", rate=8, every=1, options=fragmented)
    with av.open(str(tmp_path / "f.mp4")) as container:
        assert 0 < container.streams.video[0].frames < 8
    found = load_video(tmp_path / "f.mp4", CAPS)
    assert len(found.frames) == 8 and found.fps == pytest.approx(2, rel=0.05)


def test_pictures_of_a_file_that_was_cut_between_key_frames_are_on_the_clock_of_its_sound(tmp_path):
    silent(tmp_path / "whole.ts", range(0, 240, 2), "mpeg2video", rate=10, every=40, format="mpegts")
    content = (tmp_path / "whole.ts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(content[188 * int(len(content) / 188 * 0.12) :])
    with av.open(str(tmp_path / "cut.ts")) as container:
        first = container.streams.video[0].start_time / 90_000
        whole = next(container.decode(video=0)).time
        assert whole - first > 1, "the pictures before the first key frame cannot be decoded"
    levels = load_video(tmp_path / "cut.ts", replace(CAPS, max_frames=30)).frames.mean((1, 2, 3))
    waits = int(2 * (whole - first))
    assert np.ptp(levels[:waits]) < 2 and (np.diff(levels[waits:-1]) > 5).all(), levels


def test_a_disk_that_fails_is_not_a_missing_file(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"RIFF")

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(loaders.hashlib, "file_digest", fails)
    with pytest.raises(UserError, match="cannot read .*a.wav: Input/output error"):
        digest(tmp_path / "a.wav")
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match="cannot read the file .*a.wav: Permission denied"):
        digest(tmp_path / "a.wav")


def test_of_several_tracks_the_one_that_players_take_is_taken(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        tracks = [container.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
        tracks[0].disposition, tracks[1].disposition = Disposition(0), Disposition.default
        for track, hertz in zip(tracks, (440, 880), strict=True):
            wave = np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000)
            frame = av.AudioFrame.from_ndarray((wave[None] * 20_000).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate = 16_000
            for packet in [*track.encode(frame), *track.encode()]:
                container.mux(packet)
    heard = load_sound(path, 10).samples
    assert np.abs(np.fft.rfft(heard)).argmax() * SAMPLING_RATE / len(heard) == pytest.approx(880, abs=5)


def test_a_turned_video_is_shown_upright(tmp_path):
    """A quarter turn in the file's header, as phones write it."""
    path = video(tmp_path / "turned.mp4", seconds=1, half=True)  # its left half is white
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 96 << 16, 0, 1 << 30)
    path.write_bytes(content)
    frames = load_video(path, CAPS).frames
    assert frames.shape[2:] == (140, 84)
    top, bottom = frames[:, :, :60].mean(), frames[:, :, 80:].mean()
    assert top > 200 > 60 > bottom, "what was on the left is above after a turn to the right"


def test_a_soundtrack_that_starts_late_is_late(tmp_path):
    late = load_soundtrack(video(tmp_path / "v.mkv", seconds=3, sound_start=1), 10).samples
    assert np.abs(late[: SAMPLING_RATE // 2]).max() < 0.01 < np.abs(late[SAMPLING_RATE * 3 // 2 :]).max()
    row = {"problem": "Q?", "options": ["A. x", "B. y"], "solution": "<answer>A</answer>"}
    row["path"] = {"video": "v.mkv", "audio": "v.mkv"}
    (sample,), _ = parse_rows([row], tmp_path, "here")
    assert np.array_equal(samples.load_sound(sample, 10).samples, late), "also if the row names the video twice"


def test_frames_come_in_pairs():
    caps = VideoCaps(fps=2, max_frames=9, max_pixels=784, grid=28)
    assert [caps.frame_count(seconds) for seconds in (0.1, 3.6, 60)] == [2, 6, 8]


@pytest.mark.parametrize("size", [(201, 1), (1, 201)])
def test_a_picture_that_is_too_narrow_either_way_is_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="too narrow"):
        load_image(tmp_path / "x.png")


def test_a_name_in_the_other_form_of_unicode_is_pointed_out(tmp_path):
    made = picture(tmp_path / unicodedata.normalize("NFD", "café.png"))
    with pytest.raises(UserError, match=r"picture not found(.|\n)*other form of Unicode"):
        load_image(made.with_name(unicodedata.normalize("NFC", "café.png")))
    with pytest.raises(UserError, match=r"picture not found(.|\n)*check the sample's path"):
        load_image(tmp_path / "cafe.png")


@pytest.mark.parametrize(
    ("written", "way_out"),
    [
        ("images\\a b.png", "with / in place of"),
        ("images/a b.png ", "without a blank at its end"),
        ("images/a%20b.png", "without %20"),
        ("Images/A b.PNG", "in other capitals"),
        ("images/c.png", "check the sample's path"),
    ],
)
def test_a_path_that_looks_almost_like_that_of_a_file_is_pointed_out(written, way_out, tmp_path):
    (tmp_path / "images").mkdir()
    picture(tmp_path / "images" / "a b.png")
    with pytest.raises(UserError) as error:
        load_image(tmp_path / written)
    assert way_out in error.value.hint
