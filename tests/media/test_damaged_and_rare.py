"""Files that people have: rare containers are read, damaged ones are refused or read behind the damage, none is taken
for a shorter one; a video's moments, gaps and orientation are those of its file.
"""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from echoink.common.errors import UserError
from echoink.media.loaders import VideoCaps, load_image, load_sound, load_soundtrack, load_video
from tests.helpers import files

RATE = 44_100
CAPS = VideoCaps(10, 100, 128 * 128, 28)


def browser_recording(path):
    """Four seconds of picture and sound as a browser's recorder writes them: nothing says how long they are."""
    with av.open(str(path), "w", format="webm", container_options={"live": "1"}) as container:
        shown, heard = container.add_stream("libvpx", rate=10), container.add_stream("libopus", rate=48_000)
        shown.width, shown.height, shown.pix_fmt = 160, 96, "yuv420p"
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((96, 160, 3), 6 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(shown.encode(frame))
        wave = tone(4.0, 48_000)
        for place in range(0, len(wave), 960):
            frame = av.AudioFrame.from_ndarray(wave[None, place : place + 960], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, place, Fraction(1, 48_000)
            container.mux(heard.encode(frame))
        container.mux(shown.encode())
        container.mux(heard.encode())
    return path


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_of_several_streams_is_heard_to_its_end(tmp_path, subtype):
    """As a recording of internet radio, or `cat a.ogg b.ogg`: libsndfile knows the first of them."""
    parts = []
    for seconds in (2, 3):
        content = io.BytesIO()
        soundfile.write(content, tone(float(seconds), 48_000), 48_000, format="OGG", subtype=subtype)
        parts.append(content.getvalue())
    file = tmp_path / "radio.ogg"
    file.write_bytes(parts[0])
    assert load_sound(file, 30).seconds == pytest.approx(2, abs=0.05)
    file.write_bytes(b"".join(parts))
    sound = load_sound(file, 30)
    assert sound.seconds == pytest.approx(5, abs=0.1) and len(sound.samples) == pytest.approx(5 * 16_000, abs=1600)


def test_a_recording_that_declares_no_length_is_read_to_its_end(tmp_path):
    path = browser_recording(tmp_path / "live.webm")
    found = load_video(path, CAPS)
    assert found.seconds == pytest.approx(4.0, abs=0.11) and len(found.frames) == 40
    assert found.frames[0].mean() < 10 < 225 < found.frames[-1].mean()
    assert load_sound(path, 60).seconds == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_a_sound_that_is_shorter_than_its_pictures_is_no_sound_that_is_cut_off(tmp_path, name):
    files.video(tmp_path / name, seconds=10, sound_seconds=5)
    assert load_sound(tmp_path / name, 60).seconds == pytest.approx(5.0, abs=0.2)
    assert load_sound(tmp_path / name, 2).seconds > 4, "and its length is known where it is capped"


def test_an_aac_stream_whose_bit_rate_changes_is_whole(tmp_path):
    """Without a header, FFmpeg tells its length from the bit rate of what it has seen."""
    quiet, loud = 1e-4 * tone(10.0), np.random.default_rng(0).uniform(-1, 1, 10 * RATE).astype(np.float32)
    with av.open(str(tmp_path / "x.aac"), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        wave = np.concatenate([quiet, loud])
        for place in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, place : place + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, place, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert load_sound(tmp_path / "x.aac", 60).seconds == pytest.approx(20.0, abs=0.2)


def tone(seconds=3.0, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * 1000 * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def encoded(path, codec, layout="mono", rate=RATE, format=None):
    """Three seconds of 1 kHz."""
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(tone(rate=rate)[None], format="fltp", layout="mono")
        frame.rate, resampler = rate, av.AudioResampler(stream.format, stream.layout, rate, stream.frame_size or 1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def hertz(samples):
    return np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.m4a", "aac", RATE),
        ("a.mp4", "aac", RATE),
        ("a.3gp", "aac", RATE),
        ("a.mka", "aac", RATE),
        ("a.ac3", "ac3", RATE),
        ("a.webm", "libopus", 48_000),
        ("a.opus", "libopus", 48_000),
        ("a.mp3", "libmp3lame", RATE),
    ],
)
def test_sounds_that_only_ffmpeg_knows_are_read(name, codec, rate, tmp_path, capfd):
    found = load_sound(encoded(tmp_path / name, codec, rate=rate), 10)
    assert abs(found.seconds - 3) < 0.05 and abs(len(found.samples) / 16_000 - 3) < 0.05
    assert abs(hertz(found.samples) - 1000) < 2 and not found.warnings
    assert capfd.readouterr().err == ""


def test_aac_behind_the_name_of_another_format_is_read(tmp_path):
    path = encoded(tmp_path / "a.m4a", "aac")
    for name in ("a.mp3", "a.wav"):
        (tmp_path / name).write_bytes(path.read_bytes())
        assert abs(load_sound(tmp_path / name, 10).seconds - 3) < 0.05


@pytest.mark.parametrize(
    ("format", "subtype", "name"),
    [
        ("WAV", "PCM_16", "a.wav"),
        ("WAVEX", "PCM_24", "a.wav"),
        ("RF64", "PCM_16", "a.rf64"),
        ("W64", "PCM_16", "a.w64"),
        ("AIFF", "PCM_16", "a.aiff"),
        ("AU", "PCM_16", "a.au"),
        ("CAF", "PCM_16", "a.caf"),
        ("FLAC", "PCM_16", "a.flac"),
    ],
)
@pytest.mark.parametrize("part", [0.5, 0.96])
def test_a_sound_that_ends_before_its_header_says_is_refused(format, subtype, name, part, tmp_path):
    soundfile.write(tmp_path / name, tone(), RATE, subtype, format=format)
    assert load_sound(tmp_path / name, 10).seconds == pytest.approx(3, abs=0.01)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match=r"cut off|cannot read"):
        load_sound(tmp_path / name, 10)


def test_big_endian_wav_is_read_and_refused_where_it_is_cut(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE, "PCM_16", endian="BIG")
    content = (tmp_path / "a.wav").read_bytes()
    assert content[:4] == b"RIFX" and load_sound(tmp_path / "a.wav", 10).seconds == 3
    (tmp_path / "a.wav").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut off"):
        load_sound(tmp_path / "a.wav", 10)


def test_a_recorder_that_was_killed_leaves_a_length_of_0_and_all_samples_are_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE, "PCM_16")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = bytes(4)
    (tmp_path / "a.wav").write_bytes(bytes(content))
    assert load_sound(tmp_path / "a.wav", 10).seconds == pytest.approx(3, abs=0.01)


def test_flac_of_unknown_length_is_read(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(), RATE)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # 36 bits of the stream's header say how many samples there are
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(bytes(content))
    assert load_sound(tmp_path / "a.flac", 10).seconds == pytest.approx(3, abs=0.1)


def test_a_damaged_mp3_goes_on_behind_the_damage_and_a_cut_one_is_refused(tmp_path, capfd):
    content = encoded(tmp_path / "a.mp3", "libmp3lame").read_bytes()
    third = len(content) // 3
    (tmp_path / "bad.mp3").write_bytes(content[:third] + bytes([0xAA]) * 600 + content[third + 600 :])
    found = load_sound(tmp_path / "bad.mp3", 10)
    assert found.seconds > 2.7 and np.abs(found.samples[-16_000:-8_000]).max() > 0.3, "the sound behind the damage"
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut.mp3 is cut off: it has"):
        load_sound(tmp_path / "cut.mp3", 10)
    assert capfd.readouterr().err == "", "no word of a library on the screen"


def test_an_mp3_behind_a_large_tag_has_its_true_length(tmp_path):
    content = encoded(tmp_path / "a.mp3", "libmp3lame").read_bytes()
    size = 3_000_000
    tag = b"ID3\x03\x00\x00" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]) + bytes(size)
    sound = content[content.index(b"\xff\xfb") :]
    (tmp_path / "tagged.mp3").write_bytes(tag + sound)
    assert load_sound(tmp_path / "tagged.mp3", 10).seconds == pytest.approx(3, abs=0.1)


def test_channels_that_cancel_and_integers_stored_as_floats_are_warned_of(tmp_path):
    soundfile.write(tmp_path / "phase.wav", np.stack([tone(), -tone()], 1), RATE)
    soundfile.write(tmp_path / "loud.wav", 32_767 * tone(), RATE, "FLOAT")
    soundfile.write(tmp_path / "left.wav", np.stack([tone(), 0 * tone()], 1), RATE)
    soundfile.write(tmp_path / "hot.wav", 4 * tone(), RATE, "FLOAT")
    assert "phase.wav: its channels cancel each other out" in load_sound(tmp_path / "phase.wav", 10).warnings[0]
    assert "loud.wav: its samples reach 16,38" in load_sound(tmp_path / "loud.wav", 10).warnings[0]
    for name in ("left.wav", "hot.wav"):
        assert not load_sound(tmp_path / name, 10).warnings


def film(path, times, levels, codec="libx264", size=(128, 96), sar=None, sound=()):
    """A video with a grey frame of each level from its time on, and a tone in the given seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if sar:
            stream.codec_context.sample_aspect_ratio = sar
        if sound:
            heard = container.add_stream("aac", rate=RATE, layout="mono")
        for time, level in zip(times, levels, strict=True):
            pixels = np.full((size[1], size[0], 3), level, np.uint8) if np.isscalar(level) else level
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start, end in sound:
            for number in range(int(start * RATE) // 1024, int(end * RATE) // 1024):
                part = tone(12)[number * 1024 : (number + 1) * 1024]
                frame = av.AudioFrame.from_ndarray(part[None], format="fltp", layout="mono")
                frame.rate, frame.pts, frame.time_base = RATE, number * 1024, Fraction(1, RATE)
                container.mux(heard.encode(frame))
        if sound:
            container.mux(heard.encode(None))
    return path


@pytest.mark.parametrize("name", ["slides.mkv", "slides.mp4"])
def test_at_a_moment_the_model_sees_the_frame_that_is_shown_then(name, tmp_path):
    times, levels = [0, 1, 2, 4, 4.4, 4.48, 4.52], [0, 60, 120, 180, 240, 240, 240]
    video = load_video(film(tmp_path / name, times, levels), CAPS)
    for number, frame in enumerate(video.frames):
        moment = (number + 0.5) / video.fps
        shown = max(level for time, level in zip(times, levels, strict=True) if time <= moment)
        assert abs(float(frame.mean()) - shown) < 12, moment


@pytest.mark.parametrize("name", ["gap.mkv", "gap.mp4"])
def test_a_gap_in_a_soundtrack_is_silence_of_its_length(name, tmp_path):
    path = film(tmp_path / name, np.arange(0, 6, 0.2), [100] * 30, sound=[(0, 1), (3, 5)])
    samples = load_soundtrack(path, 10).samples
    loud = [np.abs(samples[int(t * 16_000) : int((t + 0.2) * 16_000)]).max() > 0.1 for t in (0.5, 1.5, 2.5, 3.5, 4.5)]
    assert loud == [True, False, False, True, True]


def test_a_video_that_ends_before_its_header_says_is_refused(tmp_path):
    for name in ("a.mkv", "a.avi", "a.mp4"):
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        content = film(tmp_path / name, np.arange(0, 6, 0.04), list(range(150)), codec).read_bytes()
        (tmp_path / name).write_bytes(content[: int(0.6 * len(content))])
        with pytest.raises(UserError, match=r"cut off|cannot read"):
            load_video(tmp_path / name, CAPS)


def test_every_display_matrix_shows_the_picture_as_players_do(tmp_path):
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:48, :64] = (255, 0, 0)  # red on the upper left, green on the upper right, blue below
    pixels[:48, 64:] = (0, 255, 0)
    pixels[48:] = (0, 0, 255)
    path = film(tmp_path / "a.mp4", np.arange(0, 1, 0.1), [pixels] * 10)
    one, content = 1 << 16, path.read_bytes()
    at = content.index(b"tkhd") + 44
    shown = {  # a, b, c, d: where red and green are then
        (one, 0, 0, one): ("upper left", "upper right"),
        (-one, 0, 0, one): ("upper right", "upper left"),
        (one, 0, 0, -one): ("lower left", "lower right"),
        (-one, 0, 0, -one): ("lower right", "lower left"),
        (0, one, -one, 0): ("upper right", "lower right"),
        (0, -one, one, 0): ("lower left", "upper left"),
        (0, one, one, 0): ("upper left", "lower left"),
        (0, -one, -one, 0): ("lower right", "upper right"),
    }
    for (a, b, c, d), expected in shown.items():
        matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(content[:at] + matrix + content[at + 36 :])
        frame = load_video(path, CAPS).frames[0]
        assert frame.shape[1:] == ((96 // 28 * 28, 128 // 28 * 28) if a else (128 // 28 * 28, 96 // 28 * 28))
        height, width = frame.shape[1:]
        corners = {
            f"{row} {column}": frame[:, y, x]
            for row, y in (("upper", height // 5), ("lower", -height // 5))
            for column, x in (("left", width // 5), ("right", -width // 5))
        }
        for place, channel in zip(expected, (0, 1), strict=True):
            assert corners[place].argmax() == channel, ((a, b, c, d), place)


@pytest.mark.parametrize(
    ("name", "codec", "form", "options"),
    [
        ("v.mov", "qtrle", "argb", {}),
        ("v.mov", "png", "rgba", {}),
        ("v.mov", "prores_ks", "yuva444p10le", {}),
        ("v.webm", "libvpx-vp9", "yuva420p", {}),
        ("v.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
    ],
)
def test_what_is_transparent_in_a_video_is_white(name, codec, form, options, tmp_path):
    pixels = np.full((96, 128, 4), (200, 0, 0, 255), np.uint8)
    pixels[48:, :, 3] = 0
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=5, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, form
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode(None))
    frames = load_video(tmp_path / name, VideoCaps(fps=2, max_frames=8, max_pixels=128 * 96, grid=28)).frames
    height = frames.shape[2]
    upper, lower = frames[:, :, : height // 3], frames[:, :, 2 * height // 3 :]
    assert len(frames) == 4 and abs(upper.mean(axis=(0, 2, 3)) - (200, 0, 0)).max() < 6 and lower.min() > 250


def test_a_fourth_byte_that_only_fills_up_is_no_transparency(tmp_path):
    pixels = np.full((96, 128, 4), (200, 0, 0, 0), np.uint8)
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("rawvideo", rate=5)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "bgra"
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode(None))
    frames = load_video(tmp_path / "v.avi", VideoCaps(fps=2, max_frames=8, max_pixels=128 * 96, grid=28)).frames
    assert abs(frames.mean(axis=(0, 2, 3)) - (200, 0, 0)).max() < 6


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    path = film(tmp_path / "a.mp4", np.arange(0, 1, 0.1), [100] * 10, size=(64, 96), sar=Fraction(3, 1))
    _, _, height, width = load_video(path, CAPS).frames.shape
    assert width / height == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("format", ["TIFF", "AVIF"])
def test_tiff_and_avif_pictures_are_read(format, tmp_path):
    path = tmp_path / f"a.{format.lower()}"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(path, format)
    found = np.asarray(load_image(path)).mean((0, 1))
    assert abs(found - (200, 30, 30)).max() < 6


@pytest.mark.parametrize("second", [("stereo", 44_100), ("mono", 22_050)])
def test_joined_sounds_may_change_their_channels_or_their_rate(tmp_path, second):
    parts = []
    for layout, rate in (("mono", 44_100), second):
        part = tmp_path / f"{layout}-{rate}.aac"
        with av.open(str(part), "w", format="adts") as container:
            stream = container.add_stream("aac", rate=rate, layout=layout)
            tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
            wave = np.tile(tone.astype(np.float32), (stream.layout.nb_channels, 1))
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
            frame.sample_rate = rate
            for packet in [*stream.encode(frame), *stream.encode()]:
                container.mux(packet)
        parts.append(part.read_bytes())
    (tmp_path / "joined.aac").write_bytes(b"".join(parts))
    found = load_sound(tmp_path / "joined.aac", 60).samples
    assert 3.9 < len(found) / 16_000 < 4.2
    assert all(np.std(second) > 0.1 for second in (found[4_000:28_000], found[36_000:60_000]))
