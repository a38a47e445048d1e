"""Writes the media and questions in two splits, each in the official layout, with sources, licences and probes.

output/recordings/   train and valid share no recording and no picture; both have files of every package
output/packages/     train has the packages of `TRAINS`, valid the others: the stricter test
output/CREDITS.md, output/licences/, output/sources.jsonl
"""

import gzip
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from scipy.cluster.hierarchy import DisjointSet

from echoink.common.console import bytes_bar, progress
from echoink.common.errors import UserError
from echoink.common.files import as_json
from echoink.common.keys import key
from echoink.data.open_media import catalogue, packages, probes
from echoink.data.open_media.catalogue import Catalogue
from echoink.data.open_media.questions import FORMS, GAP, Question, Side, Writer
from echoink.media.loaders import SAMPLING_RATE

TRAINS = ("tuxpaint", "gcompris")
"""Packages on the training side of the split by packages."""
HELD_OUT = 0.25
"""Share of a class's pictures used for validation; of several recordings, one is."""
CONTROLS = 0.04
"""Share of the questions that need no medium; the other forms have about equal shares of the rest."""


@dataclass
class OpenMediaConfig:
    output: str = key("folder of the set", "outputs/data/open_media")
    train: int = key("training questions of each split", 4000, ge=1)
    valid: int = key("validation questions of each split", 1000, ge=1)
    seed: int = key("seed of splits and questions", 0, ge=0)
    debs: str | None = key("a folder with the packages' .deb files, searched before anything is downloaded", None)
    work: str = key("folder for downloads (270 MB) and unpacked packages (500 MB)", "outputs/data/open_media_packages")
    mirror: str = key("a Debian mirror", packages.MIRROR)


def build(config: OpenMediaConfig) -> list[tuple[str, str]]:
    """Download and unpack the packages, draw questions and write the set.

    Returns:
        What was made, as lines for the screen: labels and texts.

    Raises:
        UserError: the folder is not empty, or a package cannot be downloaded or unpacked.
    """
    output, work = Path(config.output), Path(config.work)
    if output.resolve() in (work.resolve(), *work.resolve().parents):
        raise UserError(f"work={work} is in output={output}", "give another folder for work")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty", "give a new folder: output=…")
    if find_spec("resvg_py") is None:
        raise UserError("open_media needs resvg_py, to draw SVG pictures", 'pip install -e ".[open-media]"')
    given, files = Path(config.debs) if config.debs else None, {}
    if given and not given.is_dir():
        raise UserError(f"debs={given}: no such folder", "a folder with .deb files, or leave it out to download them")
    part = output.resolve().with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)  # before minutes are spent: the place may not be writable
    with bytes_bar("packages", sum(package.size for package in packages.PACKAGES)) as advance:
        for package in packages.PACKAGES:
            files[package.key] = packages.obtain(package, work, given, advance=advance, mirror=config.mirror)
    unpacked = {package.key: work / f"{package.name}_{package.version}" for package in packages.PACKAGES}
    for name, file in progress("unpack", len(files))(files.items()):
        packages.unpack(file, unpacked[name])
    found = catalogue.read(unpacked, progress("media", None))
    both = sum(bool(entry.sounds and entry.pictures) for entry in found.entries.values())
    sounds, pictures = (sum(len(getattr(e, what)) for e in found.entries.values()) for what in ("sounds", "pictures"))
    lines = [
        ("media", f"{len(found.entries)} classes, {both} with both senses · {sounds} recordings · {pictures} pictures")
    ]
    lines += [("dropped", f"{name}: {why}") for name, why in found.dropped.items()]
    places = list(found.backgrounds.values())
    for number, (name, sides, behind) in enumerate(
        (
            ("recordings", by_recording(found, config.seed), {"train": places[::2], "valid": places[1::2]}),
            ("packages", by_package(found), {"train": [], "valid": places}),  # all from Scratch: held out
        )
    ):
        lines += _write_split(part / name, found, sides, behind=behind, seed=[config.seed, number], config=config)
    _credit(part, found, unpacked)
    if output.exists():
        output.rmdir()
    part.rename(output)
    return lines


def by_recording(found: Catalogue, seed: int) -> dict[str, Side]:
    """A split where no recording and no picture is on both sides, nor two that are nearly the same."""
    rng, groups = np.random.default_rng([seed, 1]), DisjointSet(found.media)
    for one, other in found.near:
        groups.merge(one, other)
    held: set[str] = set()
    for entry in found.entries.values():
        for of, count in (
            (sorted(entry.sounds), 1 if len(entry.sounds) > 1 else 0),
            (sorted(entry.pictures), max(1, int(HELD_OUT * len(entry.pictures))) if len(entry.pictures) > 1 else 0),
        ):
            packages_of = Counter(found.media[name].package for name in of)
            # Hold out files of the package with the fewest of this class first: train keeps the other packages.
            order = sorted(of, key=lambda name: (packages_of[found.media[name].package], rng.random()))
            for name in order[:count]:
                near = groups.subset(name)
                if len(near & set(of)) < len(of):  # something must be left to train on
                    held |= near
    return {
        "train": _side(found, lambda name: name not in held),
        "valid": _side(found, lambda name: name in held),
    }


def by_package(found: Catalogue) -> dict[str, Side]:
    """A split with the packages of `TRAINS` on one side, the others on the other. A near pair across is on neither."""
    across = {
        name for pair in found.near if len({found.media[name].package in TRAINS for name in pair}) == 2 for name in pair
    }
    return {
        "train": _side(found, lambda name: found.media[name].package in TRAINS and name not in across),
        "valid": _side(found, lambda name: found.media[name].package not in TRAINS and name not in across),
    }


def _side(found: Catalogue, has: Callable[[str], bool]) -> Side:
    sounds = {name: [key for key in entry.sounds if has(key)] for name, entry in found.entries.items()}
    pictures = {name: [key for key in entry.pictures if has(key)] for name, entry in found.entries.items()}
    counted = [entry for entry in found.entries.values() if entry.name not in catalogue.SEVERAL_STROKES]
    single = {key for entry in counted for key, of in entry.sounds.items() if catalogue.is_single(of)}
    return Side(sounds, pictures, {name: entry.kind for name, entry in found.entries.items()}, single)


def _write_split(
    folder: Path,
    found: Catalogue,
    sides: dict[str, Side],
    behind: dict[str, list[Image.Image]],
    seed: list[int],
    config: OpenMediaConfig,
) -> list[tuple[str, str]]:
    lines, asked = [], {}
    for place, (split, side) in enumerate(sides.items()):
        number = getattr(config, split)
        questions = draw(side, number, [*seed, place])
        asked[split] = questions
        media = _Media(folder / split, found, behind[split], [*seed, place, 2])
        shown = progress(f"{folder.name} {split}", number)(questions)
        rows = [media.row(n, question) for n, question in enumerate(shown)]
        (folder / split / f"omni_rl_format_{split}.json").write_text(as_json(rows), encoding="utf-8")
        needs = Counter(question.need for question in questions)
        heard, seen = ({name for name, of in each.items() if of} for each in (side.sounds, side.pictures))
        files = [sum(map(len, each.values())) for each in (side.sounds, side.pictures)]
        said = " · ".join(f"{count:,} {need}" for need, count in sorted(needs.items()))
        lines.append(
            (
                folder.name,
                f"{split}: {len(rows):,} questions ({said}) · {files[0]} recordings of {len(heard)} classes, "
                f"{files[1]} pictures of {len(seen)}",
            )
        )
    measured = probes.measure(asked["train"], asked["valid"], found)
    (folder / "probes.json").write_text(as_json(measured), encoding="utf-8")
    return lines + [(folder.name, text) for text in probes.lines(measured)]


def draw(side: Side, number: int, seed: Sequence[int]) -> list[Question]:
    """Draw `number` questions: controls, and the other forms about equally often; none twice if there are enough."""
    writer = Writer(side, int(np.random.SeedSequence(seed).generate_state(1)[0]))
    forms = [form for form in FORMS if form != "words"]
    order = ["words" if n % round(1 / CONTROLS) == 0 else forms[n % len(forms)] for n in range(number)]
    found: list[Question] = []
    turns, asked = Counter(), set()
    for form in order:
        for _ in range(50):
            question = writer.draw(form, turns[form])
            if question not in asked:
                break
        turns[form] += 1
        asked.add(question)
        found.append(question)
    return found


class _Media:
    """Makes the rows of one side and writes the files that they name, each once."""

    def __init__(self, folder: Path, found: Catalogue, backgrounds: list[Image.Image], seed: list[int]):
        self._folder, self._found, self._backgrounds = folder, found, backgrounds
        self._rng = np.random.default_rng(seed)
        self._sounds = {name: of for entry in found.entries.values() for name, of in entry.sounds.items()}
        self._pictures = {name: of for entry in found.entries.values() for name, of in entry.pictures.items()}
        for room in ("images", "audios"):
            (folder / room).mkdir(parents=True)

    def row(self, number: int, question: Question) -> dict:
        path = {}
        if question.seen:
            path["image"] = self._picture(question.seen)
        if question.heard:
            path["audio"] = self._sound(question)
        packages_of = [self._found.media[name].package for name in dict.fromkeys(question.heard)]
        row = {
            "problem_id": number,
            "problem": question.text,
            "data_type": "_".join(path) or "text",
            "problem_type": question.problem_type,
            "options": [f"{letter}. {text}" for letter, text in zip("ABCD", question.options, strict=False)],
            "solution": f"<answer>{question.answer}</answer>",
            "path": path,
            "data_source": "open_media",
            "kind": question.form,
            "need": question.need,
            "heard": question.heard_class,
            "seen": question.seen_class,
            "heard_package": ", ".join(packages_of),
            "image_source": _file_name(question.seen),
            "audio_source": _file_name(question.heard[0]) if question.heard else "",  # the first of two
        }
        return {name: value for name, value in row.items() if value or name == "problem_id"}

    def _picture(self, name: str) -> str:
        cut_out = self._pictures[name].getchannel("A").getextrema()[0] < 255
        place = int(self._rng.integers(len(self._backgrounds) + 1)) if cut_out and self._backgrounds else 0
        file = f"images/{_file_name(name)}_{place}.jpg"
        if not (self._folder / file).is_file():
            white = Image.new("RGB", (catalogue.SIDE, catalogue.SIDE), "white")
            background = self._backgrounds[place - 1] if place else white
            catalogue.before(self._pictures[name], background).save(self._folder / file, quality=90)
        return file

    def _sound(self, question: Question) -> str:
        names, limit = question.heard, catalogue.SECONDS * SAMPLING_RATE
        file = f"audios/{'+'.join(_file_name(name) for name in dict.fromkeys(names))}_{len(names)}.flac"
        if not (self._folder / file).is_file():
            each = limit // len(names) - int(GAP * SAMPLING_RATE)
            parts = [_faded(self._sounds[name][: each if len(names) > 1 else limit]) for name in names]
            gap = np.zeros(int(GAP * SAMPLING_RATE), np.float32)
            joined = np.concatenate([part for one in parts for part in (gap, one)][1:])
            soundfile.write(self._folder / file, joined, SAMPLING_RATE, subtype="PCM_16")
        return file


def _faded(samples: np.ndarray) -> np.ndarray:
    """Fade the end out, so that it does not click."""
    faded = samples.copy()
    tail = min(len(faded), SAMPLING_RATE // 50)
    faded[len(faded) - tail :] *= np.linspace(1, 0, tail, dtype=np.float32)
    return faded


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)


def _credit(output: Path, found: Catalogue, unpacked: dict[str, Path]) -> None:
    """Write where every file comes from and under which licence: a table, and the packages' own licence texts."""
    of_key = {package.key: package for package in packages.PACKAGES}
    rows, lines = [], []
    for entry in found.entries.values():
        for name in (*entry.sounds, *entry.pictures):
            medium = found.media[name]
            package = of_key[medium.package]
            rows.append(
                {
                    "file": _file_name(name),
                    "class": entry.name,
                    "package": package.name,
                    "version": package.version,
                    "path": medium.path,
                    "licence": package.licence,
                    "sha256": hashlib.sha256(medium.data).hexdigest(),
                }
            )
            lines.append(f"| {_file_name(name)} | {entry.name} | {package.name} | {medium.path} |")
    scratch = of_key["scratch"]
    lines += [f"| (a background) | | {scratch.name} | {path} |" for path in found.backgrounds]
    (output / "sources.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (output / "licences").mkdir()
    for package in packages.PACKAGES:
        shutil.copy(
            unpacked[package.key] / f"usr/share/doc/{package.name}/copyright", output / f"licences/{package.name}.txt"
        )
    for readme in unpacked["opensfx"].rglob("readme.txt.gz"):  # it names the authors of each sound
        (output / "licences/openttd-opensfx-readme.txt").write_bytes(gzip.decompress(readme.read_bytes()))
    listed = "\n".join(
        f"| {package.name} | {package.version} | {package.licence} | licences/{package.name}.txt |"
        for package in packages.PACKAGES
    )
    (output / "CREDITS.md").write_text(
        "# Where these media come from\n\nRecordings were cut, resampled and joined, pictures scaled and put before "
        "backgrounds (scratch).\nThe licences differ and some do not mix: keep this file and `licences/` with every "
        f"copy.\n\n| package | version | licence of its media | its own words |\n|---|---|---|---|\n{listed}\n\n"
        "| file begins with | class | package | path in it |\n|---|---|---|---|\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )
