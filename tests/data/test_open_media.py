"""Real media out of packages: here packages of the same make with made-up files, and no network."""

import gzip
import hashlib
import io
import json
import lzma
import struct
import sys
import tarfile
import threading
import zlib
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image, ImageDraw

from echoink.common.errors import UserError
from echoink.data.open_media import catalogue, packages, probes, questions
from echoink.data.open_media.build import OpenMediaConfig, build, by_recording, draw
from echoink.data.splits import read_split
from experiments import new_recordings

ANIMALS = ("dog", "cat", "cow", "horse", "sheep")
THINGS = ("bell", "clock", "saw", "car")


def wav(seed: int, kind: str = "WAV", seconds: float = 0.6, level: float = 0.5, offset: float = 0.0) -> bytes:
    """A burst of noise in a band of its own, which no other seed has, around a constant."""
    rng, n = np.random.default_rng(seed), int(16_000 * seconds)
    bands = np.exp(-(((np.fft.rfftfreq(n) - 0.03 - 0.04 * (seed % 11)) / 0.02) ** 2))
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * bands, n) * np.abs(
        np.sin(np.arange(n) * (seed + 2) / 4e3)
    )
    file = io.BytesIO()
    soundfile.write(file, offset + level * noise / np.abs(noise).max(), 16_000, format=kind)
    return file.getvalue()


def picture(seed: int, kind: str = "PNG", cut_out: bool = True) -> bytes:
    rng = np.random.default_rng(seed)
    image = Image.new("RGBA", (120, 90), (0, 0, 0, 0) if cut_out else (200, 220, 255, 255))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, *colour = (int(v) for v in rng.integers(0, 200, 5))
        pen.ellipse((x // 3, y // 4, x // 3 + 40, y // 4 + 30), fill=(*colour, 255))
    file = io.BytesIO()
    (image if kind == "PNG" else image.convert("RGB")).save(file, kind)
    return file.getvalue()


def rcc(files: dict[str, bytes], how: str = "plain") -> bytes:
    """A Qt binary resource of format version 1 with all files in one chain of folders."""
    (folder,) = {path.rpartition("/")[0] for path in files}
    parts, names, offsets = folder.split("/"), b"", {}
    for name in [*parts, *(Path(path).name for path in files)]:
        offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    flag = {"plain": 0, "zlib": 1, "zstd": 4}[how]
    data, nodes = b"", [struct.pack(">IHII", 0, 2, 1, 1)]
    for depth, name in enumerate(parts):
        last = depth == len(parts) - 1
        nodes.append(struct.pack(">IHII", offsets[name], 2, len(files) if last else 1, depth + 2))
    for path, content in files.items():
        nodes.append(struct.pack(">IHHHI", offsets[Path(path).name], flag, 0, 0, len(data)))
        if how == "zlib":
            content = struct.pack(">I", len(content)) + zlib.compress(content)
        elif how == "zstd":
            content = pa.compress(content, codec="zstd", asbytes=True)
        data += struct.pack(">I", len(content)) + content
    tree = b"".join(nodes)
    head = 20
    return b"qres" + struct.pack(">4I", 1, head, head + len(tree), head + len(tree) + len(data)) + tree + data + names


def cat(sounds: list[bytes]) -> bytes:
    """A sound set of OpenTTD's."""
    head, body = b"", b""
    for sound in sounds:
        head += struct.pack("<II", 8 * len(sounds) + len(body), len(sound))
        body += b"\x05name\x00" + sound
    return head + body


def deb(files: dict[str, bytes]) -> bytes:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    made = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("data.tar.xz", lzma.compress(inner.getvalue()))):
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        made += b"\n" * (len(content) % 2)
    return made


@pytest.fixture(scope="module")
def contents() -> dict[str, dict[str, bytes]]:
    """What the packages hold: of each class one to three recordings and pictures, out of several packages."""
    made = {package.key: {f"usr/share/doc/{package.name}/copyright": b"License: X\n"} for package in packages.PACKAGES}
    stamps, scratch = "usr/share/tuxpaint/stamps/animals", "usr/share/scratch/Media"
    for number, name in enumerate((*ANIMALS, *THINGS)):
        made["tuxpaint"][f"{stamps}/{name}.ogg"] = wav(number, "OGG")
        made["tuxpaint"][f"{stamps}/{name}.png"] = picture(number)
        made["tuxpaint"][f"{stamps}/cartoon/{name}.png"] = picture(number + 500)
        made["scratch"][f"{scratch}/Sounds/Animal/{name}.wav"] = wav(number + 100, offset=0.3)
        made["scratch"][f"{scratch}/Costumes/{name}1.png"] = picture(number + 100)
        made["sonic-pi"][f"etc/samples/{name}.flac"] = wav(number + 200, "FLAC")
    for number in range(4):
        made["scratch"][f"{scratch}/Backgrounds/Nature/{number}.jpg"] = picture(900 + number, "JPEG", False)
    made["tuxpaint"][f"{stamps}/silent.ogg"] = wav(0, "OGG", level=1e-5)
    made["tuxpaint"][f"{stamps}/silent.png"] = picture(77)
    made["sonic-pi"]["etc/samples/copy.flac"] = wav(200, "FLAC")  # the dog's
    made["gcompris"]["usr/share/explore_farm_animals.rcc"] = rcc(
        {"gcompris/explore_farm_animals/dog.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90">'
         b'<rect width="60" height="80" fill="#a33"/></svg>'}, "zstd"
    )  # fmt: skip
    made["opensfx"]["usr/share/doc/openttd-opensfx/readme.txt.gz"] = gzip.compress(b"Who made which sound.")
    made["opensfx"]["usr/share/opensfx.cat"] = cat([wav(301), wav(302)])
    return made


TABLE = [
    *(f"{n}\tanimal\ttuxpaint:{n} scratch:{n} sonic-pi:{n}\ttuxpaint:{n} scratch:{n}1" for n in ANIMALS),
    *(f"{n}\tthing\ttuxpaint:{n} scratch:{n} sonic-pi:{n}\ttuxpaint:{n} scratch:{n}1" for n in THINGS),
    "wolf\tanimal\topensfx:1 opensfx:9\tgcompris:farm/dog",
    "silence\tthing\ttuxpaint:silent\ttuxpaint:silent",
    "copy\tthing\tsonic-pi:copy\t",
]


@pytest.fixture
def given(tmp_path, monkeypatch, contents) -> Path:
    """The packages as a folder of the user's, and a table of what is in them."""
    folder = tmp_path / "debs"
    folder.mkdir()
    pinned = []
    for package in packages.PACKAGES:
        data = deb(contents[package.key])
        (folder / package.file).write_bytes(data)
        pinned.append(replace(package, sha256=hashlib.sha256(data).hexdigest(), size=len(data)))
    monkeypatch.setattr(packages, "PACKAGES", tuple(pinned))
    (tmp_path / "open_media.tsv").write_text("# a table\n" + "\n".join(TABLE) + "\n")
    monkeypatch.setattr(catalogue, "ASSETS", tmp_path)
    return folder


def made(tmp_path, given, **settings) -> tuple[Path, list[tuple[str, str]]]:
    output = tmp_path / "set"
    given_ones = {"train": 120, "valid": 60, "work": str(tmp_path / "work"), **settings}
    config = OpenMediaConfig(output=str(output), debs=str(given), **given_ones)
    return output, build(config)


def test_no_recording_and_no_picture_crosses_a_split_and_all_rows_can_be_read(tmp_path, given):
    output, lines = made(tmp_path, given)
    listed = [json.loads(line) for line in (output / "sources.jsonl").read_text().splitlines()]
    sources = {row["file"]: row for row in listed}
    assert len(sources) == len(listed), "a recording and a picture of one name are two"
    assert all(Path(row["file"]).suffix == Path(row["path"]).suffix or "sound" in row["path"] for row in listed)
    for split_by in ("recordings", "packages"):
        used = {}
        for split, count in (("train", 120), ("valid", 60)):
            samples = read_split(output / split_by, split)
            assert len(samples) == count, "a row cannot be used"
            files = [path for s in samples for path in (s.image, s.audio) if path is not None]
            # a sound's name ends in how often something is played, a picture's in its background
            stems = {name for path in files for name in path.stem.rpartition("_")[0].split("+")}
            assert stems <= set(sources)
            sounds = [soundfile.read(path)[0] for path in {s.audio for s in samples if s.audio}]
            assert all(abs(sound.mean()) < 0.02 for sound in sounds), "a constant would fill every pause"
            # the rows name them too, so that a drawing before two backgrounds counts once
            assert all(s.image.stem.rpartition("_")[0] == s.fields["image_source"] for s in samples if s.image)
            assert all(s.audio.stem.startswith(s.fields["audio_source"]) for s in samples if s.audio)
            used[split] = stems
            letters = Counter(s.solution for s in samples if len(s.options) == 4 and len(s.gold) == 1)
            assert max(letters.values()) < 0.45 * letters.total(), letters
            assert {s.fields["need"] for s in samples} == {"audio", "image", "both", "none"}
        assert used["train"] and used["valid"] and not used["train"] & used["valid"]
        if split_by == "recordings":  # of what is held out something is left to learn from
            for sense in ((".ogg", ".wav", ".flac"), (".png", ".svg")):
                classes = {
                    split: {sources[name]["class"] for name in names if name.endswith(sense)}
                    for split, names in used.items()
                }
                assert classes["valid"] <= classes["train"]
    held = {sources[source]["package"] for source in used["valid"]}
    assert not held & {"tuxpaint-stamps-default", "gcompris-qt-data"}
    said = [f"{label} {text}" for label, text in lines]
    assert "dropped silence: tuxpaint:silent.ogg: nothing is heard" in said
    assert any("dropped copy: sonic-pi:copy.flac: it is nearly the same as a sound of dog" in line for line in said)
    credits = (output / "CREDITS.md").read_text()
    assert "| scratch_dog1.png | dog | scratch | usr/share/scratch/Media/Costumes/dog1.png |" in credits
    assert "| tuxpaint_dog.ogg | dog | tuxpaint-stamps-default | usr/share/tuxpaint/stamps/animals/dog.ogg |" in credits
    assert "| (a background) | | scratch | usr/share/scratch/Media/Backgrounds/Nature/0.jpg |" in credits
    written = {path.name: path.read_text() for path in (output / "licences").iterdir()}
    assert written.pop("openttd-opensfx-readme.txt") == "Who made which sound."
    assert set(written) == {f"{package.name}.txt" for package in packages.PACKAGES}
    assert set(json.loads((output / "recordings/probes.json").read_text())) == {
        "words alone", "the other sense", "nearest recording", "nearest picture",
    }  # fmt: skip


def test_recordings_that_a_base_has_never_heard_are_divided_by_recording_and_words_alone_do_not_help(tmp_path, given):
    made(tmp_path, given)
    new_recordings.main(tmp_path / "new", tmp_path / "work")
    used = {}
    for split in ("train", "valid"):
        samples = read_split(tmp_path / "new", split)
        used[split] = {s.fields["audio_source"] for s in samples}
        right = Counter(s.fields["heard"] for s in samples)
        offered = Counter(option[3:] for s in samples for option in s.options)
        assert len(set(right.values())) == 1 and set(right) == set(offered)
        assert all(right[name] / offered[name] == pytest.approx(1 / 4, abs=0.02) for name in right)
        assert len(set(Counter(s.solution for s in samples).values())) == 1
    assert used["train"] and used["valid"] and not used["train"] & used["valid"]
    assert not any(name.startswith(("tuxpaint", "gcompris")) for name in used["train"] | used["valid"])
    assert json.loads((tmp_path / "new/probes.json").read_text()).keys() == {"words alone", "nearest recording"}


def test_the_same_seed_makes_the_same_bytes_and_a_full_folder_is_refused(tmp_path, given):
    one, _ = made(tmp_path / "a", given)
    other, _ = made(tmp_path / "b", given)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert all((one / file).read_bytes() == (other / file).read_bytes() for file in files)
    with pytest.raises(UserError, match="is not empty"):
        made(tmp_path / "a", given)


def test_a_package_that_is_another_one_is_refused_and_named(tmp_path, given):
    broken = given / packages.PACKAGES[2].file
    broken.write_bytes(broken.read_bytes() + b"x")
    with pytest.raises(UserError) as error:
        made(tmp_path, given)
    assert str(broken) in error.value.problem and "SHA-256" in error.value.problem


class Mirror(BaseHTTPRequestHandler):
    asked: list[str | None] = []
    data = b""
    most = None

    def do_GET(self):
        wanted = self.headers.get("Range")
        Mirror.asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.end_headers()
        self.wfile.write(Mirror.data[first:][: Mirror.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setattr(Mirror, "asked", [])
    monkeypatch.setattr(Mirror, "most", None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_download_that_is_cut_off_is_kept_and_one_that_is_whole_is_not_asked_for_again(
    tmp_path, contents, mirror, monkeypatch
):
    Mirror.data = deb(contents["opensfx"])
    size, digest = len(Mirror.data), hashlib.sha256(Mirror.data).hexdigest()
    package, part = (
        replace(packages.PACKAGES[3], sha256=digest, size=size),
        tmp_path / f"{packages.PACKAGES[3].file}.part",
    )
    monkeypatch.setattr(Mirror, "most", 500)
    with pytest.raises(UserError, match=f"cut off after 500 of {size:,} bytes"):
        packages.obtain(package, tmp_path, None, advance=lambda count: None, mirror=mirror)
    assert part.stat().st_size == 500
    part.write_bytes(Mirror.data)  # killed before it was looked at
    packages.obtain(package, tmp_path, None, advance=lambda count: None, mirror=mirror)
    assert Mirror.asked == [None] and not part.exists()


@pytest.mark.parametrize("cut", [0, 700])
def test_a_download_goes_on_where_it_was_cut_off(tmp_path, contents, mirror, monkeypatch, cut):
    Mirror.data = deb(contents["opensfx"])
    digest = hashlib.sha256(Mirror.data).hexdigest()
    package = replace(packages.PACKAGES[3], sha256=digest, size=len(Mirror.data))
    if cut:
        (tmp_path / f"{package.file}.part").write_bytes(Mirror.data[:cut])
    seen = []
    file = packages.obtain(package, tmp_path, None, advance=seen.append, mirror=mirror)
    assert file.read_bytes() == Mirror.data and sum(seen) == len(Mirror.data)
    assert Mirror.asked == [f"bytes={cut}-" if cut else None]
    packages.obtain(package, tmp_path, None, advance=seen.append, mirror=mirror)
    assert len(Mirror.asked) == 1, "what is there is not downloaded again"


def test_a_download_that_is_damaged_is_thrown_away_and_a_mirror_that_is_away_is_named(tmp_path, mirror):
    Mirror.data, package = b"!<arch>\n", replace(packages.PACKAGES[0], size=8)
    with pytest.raises(UserError, match="is not tuxpaint"):
        packages.obtain(package, tmp_path, None, advance=lambda count: None, mirror=mirror)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        packages.obtain(package, tmp_path, None, advance=lambda count: None, mirror="http://127.0.0.1:9")
    assert "debs=" in error.value.hint


def test_a_folder_of_packages_that_is_not_there_is_said_before_a_download(tmp_path):
    with pytest.raises(UserError, match="debs=.*no such folder"):
        made(tmp_path, tmp_path / "nowhere")


def test_what_would_fail_in_the_end_is_said_before_a_download(tmp_path, given, monkeypatch):
    with pytest.raises(UserError, match="work=.* is in output="):
        made(tmp_path, given, work=str(tmp_path / "set/work"))
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match="needs resvg_py"):
        made(tmp_path, given)
    assert {path.name for path in tmp_path.iterdir()} == {"debs", "open_media.tsv"}
    with pytest.raises(UserError, match="cannot download mirror.org/debian/pool"):
        packages.obtain(packages.PACKAGES[0], tmp_path, None, advance=lambda count: None, mirror="mirror.org/debian")


def test_a_package_cannot_write_outside_its_folder(tmp_path):
    (tmp_path / "x.deb").write_bytes(deb({"../outside": b"x"}))
    with pytest.raises(UserError, match="cannot unpack"):
        packages.unpack(tmp_path / "x.deb", tmp_path / "in")
    assert not (tmp_path / "outside").exists()
    (tmp_path / "y.deb").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot unpack"):
        packages.unpack(tmp_path / "y.deb", tmp_path / "in")


@pytest.mark.parametrize("how", ["plain", "zlib", "zstd"])
def test_qt_resources_and_sound_sets_give_their_files(how):
    files = {"a/b/one.ogg": b"1" * 50, "a/b/two.png": b"22"}
    assert packages.resources(rcc(files, how)) == files
    assert packages.sounds_of_cat(cat([wav(1), wav(2)])) == [wav(1), wav(2)]
    with pytest.raises(ValueError, match="no Qt resource"):
        packages.resources(b"something else")


SIDE = questions.Side(
    {name: [f"p:{name}{n}" for n in range(2)] for name in (*ANIMALS, *THINGS)},
    {name: [f"p:{name}"] for name in (*ANIMALS, *THINGS)},
    {**dict.fromkeys(ANIMALS, "animal"), **dict.fromkeys(THINGS, "thing")},
    {f"p:{name}{n}" for name in (*ANIMALS, *THINGS) for n in range(2)},
)


@pytest.mark.parametrize("form", list(questions.FORMS))
def test_the_right_answer_of_every_form_is_what_is_heard_and_seen(form):
    writer, alike = questions.Writer(SIDE, 3), []
    for turn in range(60):
        asked = writer.draw(form, turn)
        of = lambda name: name.removeprefix("p:").rstrip("01")  # noqa: E731
        heard, seen = [of(name) for name in asked.heard], of(asked.seen)
        letters = [letter.strip() for letter in asked.answer.split(",")]
        said = [asked.options["ABCD".index(letter)] for letter in letters] if asked.options else [asked.answer]
        assert len(set(asked.options)) == len(asked.options)
        expected = {
            "heard": heard, "heard_name": heard, "seen": [seen], "seen_name": [seen], "first": heard[:1],
            "several": sorted(heard), "count": [str(len(heard))], "together": ["yes" if [seen] == heard else "no"],
            "rule": ["the same"] if [seen] == heard else heard, "pair": [f"{seen} is seen, {''.join(heard)} is heard"],
        }  # fmt: skip
        if form == "words":
            kinds = [SIDE.kinds[option] for option in asked.options]
            assert kinds.count(SIDE.kinds[said[0]]) == 1 and not heard and not seen
            assert SIDE.kinds[said[0]] in questions.NOUNS and not {*asked.options} & {*questions.UNCLEAR}
        else:
            assert sorted(said) == expected[form]
        if form in ("heard", "seen"):
            assert {seen, *heard} <= set(asked.options), "what the other sense shows is an option"
            alike.append(sum(SIDE.kinds[o] == SIDE.kinds[said[0]] for o in asked.options))
    if alike:
        assert np.mean(alike) > 2.5, "distractors of its kind"


def test_a_class_is_no_option_beside_one_that_holds_it_and_only_single_bursts_are_counted():
    names = ("guitar", "electric guitar", "piano", "harp", "banjo", "flute")
    side = questions.Side(
        {name: [f"p:{name}.1", f"p:{name}.2"] for name in names},
        {name: [f"p:{name}.png"] for name in names},
        dict.fromkeys(names, "instrument"),
        {f"p:{name}.1" for name in names},
    )
    writer = questions.Writer(side, 0)
    for form in questions.FORMS:
        if form == "words":  # wants another kind
            continue
        for turn in range(40):
            asked = writer.draw(form, turn)
            right = asked.options["ABCD".index(asked.answer[0])] if asked.options else ""
            if form in ("heard", "seen", "rule", "first"):
                assert not {"guitar", "electric guitar"} <= set(asked.options) or right not in (
                    "guitar",
                    "electric guitar",
                )
            if form == "count":
                assert set(asked.heard) <= set(side.single)
    burst = np.sin(np.arange(8000)).astype(np.float32)
    pause = np.zeros(8000, np.float32)
    assert catalogue.is_single(burst) and not catalogue.is_single(np.concatenate([burst, pause, burst]))
    assert not catalogue.is_single(np.tile(burst, 6)), "too long to be heard whole"


def test_a_class_is_a_wrong_option_three_times_as_often_as_it_is_right():
    """Also one that stands beside few others: else its name alone would tell something."""
    names = ("guitar", "electric guitar", "piano", "harp", "banjo", "flute", "car")
    kinds = dict.fromkeys(names, "instrument") | {"car": "vehicle"}
    side = questions.Side({n: [f"p:{n}"] for n in names}, {n: [f"p:{n}.png"] for n in names}, kinds, ())
    writer, wrong, right = questions.Writer(side, 0), Counter(), Counter()
    for turn in range(700):
        asked = writer.draw("heard", turn)
        answer = asked.options["ABCD".index(asked.answer)]
        right[answer] += 1
        wrong.update(option for option in asked.options if option != answer)
    assert all(abs(wrong[name] - 3 * right[name]) < 0.25 * 3 * right[name] for name in names), (wrong, right)


def test_recordings_of_several_strokes_are_not_counted():
    burst = np.sin(np.arange(8000)).astype(np.float32)
    entries = {n: catalogue.Entry(n, "tool", {f"p:{n}": burst}, {}) for n in ("saw", "hammer")}
    media = {f"p:{n}": catalogue.Medium(f"p:{n}", "p", "", b"") for n in entries}
    side = by_recording(catalogue.Catalogue(entries, media, {}, {}, []), 0)["train"]
    assert set(side.single) == {"p:hammer"}


def test_words_alone_do_not_answer_what_wants_a_sense():
    found = draw(SIDE, 3000, [1]), draw(SIDE, 1500, [2])
    by_words, right = probes._by_words(found[0]), Counter()
    asked = Counter()
    for question in found[1]:
        if question.options and "," not in question.answer:
            asked[question.form] += 1
            right[question.form] += by_words(question) == question.answer
    for form in ("heard", "seen", "first", "rule", "pair"):
        assert right[form] / asked[form] < 0.40, form
    assert right["together"] / asked["together"] < 0.6
