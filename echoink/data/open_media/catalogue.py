"""Classes with their recordings and pictures: what `assets/open_media.tsv` names, found in the unpacked packages.

Labels come from file names, which a person has read. A file that is silent, too short or unreadable is dropped and
named. So is one that is nearly the same as a file of another class: its label is ambiguous.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from echoink.common.errors import UserError
from echoink.config.paths import ASSETS
from echoink.data import fingerprints
from echoink.data.open_media import packages
from echoink.media import loaders
from echoink.media.loaders import SAMPLING_RATE, Embedded

SIDE = 224
"""Of a picture, pixels."""
SECONDS = 10
"""Of a recording, at most."""
FAINT = 12
"""Standard deviation of a picture on white, of 255, below which nobody sees anything."""
ONE_SOURCE = (
    ("opensfx:04.wav", "opensfx:05.wav"),
    ("sonic-pi:loop_amen.flac", "sonic-pi:loop_amen_full.flac"),
    ("scratch:lion1-a.png", "scratch:lion1-b.png"),
)
"""Pairs cut from one recording, or poses of one drawing, which fingerprints miss: they stay on one side of every
split.
"""
SEVERAL_STROKES = ("drum kit", "keyboard", "laughter", "saw")
"""Classes whose recordings are several strokes without a pause: nobody could say how often one is repeated."""
QUIET, SHORTEST = 1e-3, 0.08
"""Peak amplitude and seconds below which nobody hears anything."""


@dataclass(frozen=True)
class Medium:
    """A recording or a picture of a class."""

    name: str
    """`package:file` of the table with the file's extension: a recording and a picture may share a name."""
    package: str
    path: str
    """Inside the package."""
    data: bytes = field(repr=False)


@dataclass
class Entry:
    """A class: its name, its kind and its media."""

    name: str
    kind: str
    sounds: dict[str, np.ndarray]
    """Mono samples at 16 kHz by `package:file`; silence at both ends is cut off."""
    pictures: dict[str, Image.Image]
    """RGBA, the longer side `SIDE`, by `package:file`."""


@dataclass
class Catalogue:
    """All classes, and where their media come from."""

    entries: dict[str, Entry]
    media: dict[str, Medium]
    backgrounds: dict[str, Image.Image]
    """Photographs of `scratch` to put behind cut-out pictures, by their path in the package."""
    dropped: dict[str, str]
    """`class: package:file` and why it is not used."""
    near: list[tuple[str, str]]
    """Pairs of one class that are nearly the same: they stay on one side of every split."""


def read(unpacked: dict[str, Path], progress: Callable[[Iterable], Iterable]) -> Catalogue:
    """Everything in the table that the packages have.

    Args:
        unpacked: folders of the packages by key.
        progress: wraps the slow iteration.
    """
    finder, dropped = _Finder(unpacked), {}
    entries: dict[str, Entry] = {}
    media: dict[str, Medium] = {}
    for name, kind, sounds, pictures in progress(list(_table())):
        entry = entries[name] = Entry(name, kind, {}, {})
        for wanted, find, decode, kept in (
            (sounds, finder.sound, _decode_sound, entry.sounds),
            (pictures, finder.pictures, _decode_picture, entry.pictures),
        ):
            for key in wanted:
                for medium in find(key):
                    try:
                        kept[medium.name] = decode(medium)
                        media[medium.name] = medium
                    except _Unusable as error:
                        dropped[f"{name}: {medium.name}"] = str(error)
    near = [*_drop_ambiguous(entries, dropped), *(pair for pair in ONE_SOURCE if media.keys() >= set(pair))]
    return Catalogue(entries, media, finder.backgrounds(), dropped=dropped, near=near)


def _table() -> Iterator[tuple[str, str, list[str], list[str]]]:
    for line in (ASSETS / "open_media.tsv").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, kind, sounds, pictures = line.split("\t")
            yield name, kind, sounds.split(), pictures.split()


class _Unusable(Exception):
    pass


class _Finder:
    """Finds what the table names in the folders of the packages."""

    def __init__(self, unpacked: dict[str, Path]):
        self._folders = unpacked
        self._stamps: dict[str, list[Path]] = {}
        for path in sorted(unpacked["tuxpaint"].rglob("stamps/**/*")):
            if "cartoon" not in path.parts:  # drawings of another kind
                self._stamps.setdefault(path.stem, []).append(path)
        self._gcompris: dict[str, bytes] = {}
        for name in ("explore_farm_animals", "memory-sound", "instruments", "guessnumber"):
            for file in unpacked["gcompris"].rglob(f"{name}.rcc"):
                self._gcompris |= packages.resources(file.read_bytes())
        (cat,) = unpacked["opensfx"].rglob("opensfx.cat")
        self._opensfx = packages.sounds_of_cat(cat.read_bytes())

    def sound(self, key: str) -> list[Medium]:
        """The recording of a key; empty where the package has no such file."""
        return self._media(key, (".ogg", ".wav", ".flac", ".mp3", ".aif", ".aiff"))[:1]

    def pictures(self, key: str) -> list[Medium]:
        """The pictures of a key: several stamps may have one name."""
        return self._media(key, (".png", ".jpg", ".gif", ".webp", ".svg"))

    def _media(self, key: str, kinds: tuple[str, ...]) -> list[Medium]:
        package, _, name = key.partition(":")
        name, _, first = name.partition("#")
        found = []
        for path, data in self._files(package, name, kinds):
            if first and found:
                break
            more, kind = f"#{len(found) + 1}" if found else "", ".wav" if package == "opensfx" else Path(path).suffix
            found.append(Medium(f"{package}:{name}{more}{kind}", package, path, data))
        return found

    def _files(self, package: str, name: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        if package == "gcompris":
            room, _, stem = name.partition("/")
            within = {"farm": "explore_farm_animals"}.get(room, room)
            for path, data in sorted(self._gcompris.items()):
                if f"/{within}/" in path and Path(path).stem == stem and path.lower().endswith(kinds):
                    yield path, data
        elif package == "opensfx":
            if int(name) < len(self._opensfx) and ".wav" in kinds:
                yield f"opensfx.cat, sound {name}", self._opensfx[int(name)]
        else:
            found = self._folders[package].rglob(f"{name}.*")
            for path in self._stamps.get(name, ()) if package == "tuxpaint" else sorted(found):
                if path.suffix.lower() in kinds:
                    yield self._inside(package, path), path.read_bytes()

    def _inside(self, package: str, path: Path) -> str:
        return str(path.relative_to(self._folders[package]))

    def backgrounds(self) -> dict[str, Image.Image]:
        """Scratch's photographs of places, by path."""
        found = {}
        for room in ("Indoors", "Nature", "Outdoors"):
            for path in sorted(self._folders["scratch"].rglob(f"Backgrounds/{room}/*.jpg")):
                found[self._inside("scratch", path)] = Image.open(path).convert("RGB").resize((SIDE, SIDE))
        return found


def _decode_sound(medium: Medium) -> np.ndarray:
    try:
        samples = loaders.load_sound(Embedded(medium.name, lambda: medium.data), SECONDS).samples
    except UserError as error:
        raise _Unusable(error.problem) from error
    samples = samples - samples.mean()  # a constant offset would pass for sound in every pause
    peak = np.abs(samples).max(initial=0)
    if peak < QUIET:
        raise _Unusable("nothing is heard")
    loud = np.flatnonzero(np.abs(samples) > 0.01 * peak)
    samples = samples[loud[0] : loud[-1] + 1]
    if len(samples) < SHORTEST * SAMPLING_RATE:
        raise _Unusable("it is too short to be heard")
    return (0.9 / peak * samples).astype(np.float32)


def _decode_picture(medium: Medium) -> Image.Image:
    try:
        data = _drawn(medium.data) if medium.path.endswith(".svg") else medium.data
        picture = Image.open(io.BytesIO(data)).convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise _Unusable(f"it cannot be read: {error}") from error
    if (visible := picture.getchannel("A").getbbox()) is None:
        raise _Unusable("nothing is seen")
    picture = picture.crop(visible)
    scale = SIDE / max(picture.size)
    picture = picture.resize([max(1, round(scale * side)) for side in picture.size])
    if np.asarray(on_white(picture), dtype=np.float32).std() < FAINT:
        raise _Unusable("hardly anything is seen on white")
    return picture


def _drawn(data: bytes) -> bytes:
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=data.decode("utf-8"), width=300))


def _drop_ambiguous(entries: dict[str, Entry], dropped: dict[str, str]) -> list[tuple[str, str]]:
    """Drop files that are nearly the same as one of another class; return the near pairs within one class."""
    pairs = []
    for kind, of, fingerprint in (
        ("sound", lambda entry: entry.sounds, fingerprints.of_sound),
        ("picture", lambda entry: entry.pictures, lambda picture: fingerprints.of_picture(on_white(picture))),
    ):
        prints = [
            (entry.name, key, found)
            for entry in entries.values()
            for key, medium in of(entry).items()
            if (found := fingerprint(medium)) is not None
        ]
        for one, other in fingerprints.near([found for *_, found in prints], fingerprints.NEAR[kind]):
            (name, key, _), (other_name, other_key, _) = prints[one], prints[other]
            if name == other_name:
                pairs.append((key, other_key))
                continue
            for mine, its, whose in ((name, key, other_name), (other_name, other_key, name)):
                if of(entries[mine]).pop(its, None) is not None:
                    dropped[f"{mine}: {its}"] = f"it is nearly the same as a {kind} of {whose}"
    return pairs


def is_single(samples: np.ndarray) -> bool:
    """Whether a recording is one short burst of sound, so that its repetitions can be counted."""
    frame, most = SAMPLING_RATE // 20, 2 * SAMPLING_RATE
    if len(samples) > most:
        return False
    padded = np.pad(samples, (0, -len(samples) % frame)).reshape(-1, frame)
    level = np.sqrt((padded**2).mean(1))
    loud = np.flatnonzero(level > 0.1 * level.max())
    return bool((np.diff(loud) <= 3).all())  # no pause of more than 0.1 s


def on_white(picture: Image.Image) -> Image.Image:
    """A cut-out picture on white, square."""
    return before(picture, Image.new("RGB", (SIDE, SIDE), "white"))


def before(picture: Image.Image, background: Image.Image) -> Image.Image:
    """A cut-out picture in the middle of a background."""
    made = background.convert("RGBA")
    made.alpha_composite(picture, ((made.width - picture.width) // 2, (made.height - picture.height) // 2))
    return made.convert("RGB")
