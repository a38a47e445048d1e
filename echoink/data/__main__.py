"""Get, show, make, check and split datasets.

python -m echoink.data get avqa_r1_6k output=data            download, unpack and verify the paper's dataset
python -m echoink.data get open_media output=mine/media      real recordings and pictures from Debian packages
python -m echoink.data show n=3                              the first samples of the default set, to outputs/shown
python -m echoink.data show dataset=rows dataset.path=mine split=train n=5 output=shown …      or of another
python -m echoink.data new mine                              a few rows of every kind with media, to replace
python -m echoink.data check mine                            every bad row, balance, media that splits share
python -m echoink.data check dataset=omnibench dataset.path=…        of another; exit status 1 if a row is bad
python -m echoink.data split mine/all.jsonl valid=0.2 dev=0.1        train, dev and valid without a shared file

    show and check take every key of `python -m echoink.train`: dataset.… sets what is read, model.… the caps on media,
    prompt=… how a question is asked; and --config-dir for files of your own. show also takes
        split=valid     train, dev or valid
        n=3             the number of samples
        output=outputs/shown    a folder for the media; or a name that ends in .html: one page with everything

    `split --help` and `get open_media --help` explain their settings.
"""

import re
import shlex
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from errno import EDQUOT, ENOSPC, EROFS
from pathlib import Path
from typing import Any

from echoink.common import cli
from echoink.common.console import console, counted, progress, say
from echoink.common.errors import UserError, first_line
from echoink.common.keys import refuse_home
from echoink.config.compose import compose
from echoink.config.overrides import quoted
from echoink.data import check as checking
from echoink.data import divide, starter
from echoink.data.readers import open_split
from echoink.data.samples import parse_rows

HUBS = {"avqa_r1_6k": ("harryhsing/AVQA-R1-6K", "harryhsing/OmniInstruct_V1_AVQA_R1")}
"""Published copies, tried in this order."""
ARCHIVE = "AVQA_R1.tar.gz"
COUNTS = {"train": 4_490, "valid": 1_911}


def get(name: str, output: Path) -> Path:
    """Download, unpack and verify a published dataset.

    Raises:
        UserError: the dataset is not known, cannot be reached, or is not the published one.
    """
    if name not in HUBS:
        raise UserError(f"{name} is not known", f"known: {', '.join([*HUBS, 'open_media'])}")
    _refuse_full(output)
    from huggingface_hub import hf_hub_download

    refused = []
    for id in HUBS[name]:
        try:
            archive = hf_hub_download(id, ARCHIVE, repo_type="dataset")
            break
        except Exception as error:  # the hub's client raises many types
            refused.append(f"{id}: {first_line(error)}")
    else:
        raise UserError(
            f"cannot download {name}: {'; '.join(refused)}",
            f"download {ARCHIVE} where a hub can be reached and unpack it, or make the set with echoink.curate",
        )
    return unpack(Path(archive), output)


def get_open_media(words: Sequence[str]) -> int:
    """Make the sets of questions about real recordings and pictures (experiments/open_media.md says what is in them).

    python -m echoink.data get open_media output=outputs/data/open_media
    """
    from echoink.data.open_media.build import OpenMediaConfig, build

    config = cli.settings(OpenMediaConfig, words)
    for label, text in build(config):
        say(label, text)
    say("written", f"{config.output}: recordings/, packages/, CREDITS.md")
    place = shlex.quote(f"dataset.path={quoted(Path(config.output) / 'recordings')}")
    say("look", f"python -m echoink.data show dataset=open_media {place} n=30 output=outputs/open_media.html")
    say("train", f"python -m echoink.train dataset=open_media {place}")
    return 0


def unpack(archive: Path, output: Path) -> Path:
    """Unpack the official archive into an empty folder, which nothing in it may leave, and check the counts.

    Raises:
        UserError: the folder is not empty, or the archive is broken, hostile or not the published 4,490 and
            1,911 samples.
    """
    _refuse_full(output)
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as file:
            file.extractall(output, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        for part in output.iterdir():  # the folder was empty: the next try needs it so
            shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
        cannot_write = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EROFS)
        hint = "free some space, or give another output=…" if cannot_write else "download it again"
        raise UserError(f"cannot unpack {archive}: {error}", hint) from error
    for split, count in COUNTS.items():
        rows = open_split(str(output), split)
        samples, dropped = parse_rows(rows.rows, rows.folder, rows.where) if rows else ([], [])
        found = len(samples) + len(dropped)
        say("data", f"{split} {found:,} samples")
        if dropped:
            say("warning", f"{len(dropped):,} of them cannot be used (dataset.max_skipped): {dropped[0].reason}")
        if found != count:
            raise UserError(f"{archive} has {found} {split} samples, not {count}", "it is not the published set")
    return output


def _refuse_full(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} is not an empty folder", "give a new folder: output=…")


def show(overrides: Sequence[str], split: str, n: int, output: Path, config_dir: str | None = None) -> int:
    """Print the prompts of the first samples and write their media as the model gets them, after every cap.

    Returns:
        Exit status: 1 if rows are bad. They are named and the others are shown.

    Raises:
        UserError: a key is wrong, or there is no such split.
    """
    config = compose(overrides, config_dir=config_dir)[0].config
    if output.suffix != ".html" and output.is_file():
        raise UserError(f"{output} is a file", "give a folder, or a page: output=page.html")
    # PyTorch and transformers are imported after the keys are checked.
    from echoink.data import show as showing

    shown, bad = showing.first_shown(config, split, n)
    made = list(progress("show", n)(shown))
    if output.suffix == ".html":
        showing.page(made, bad, f"{split} of {config.dataset.path}", output)
        say("page", f"{counted(len(made), 'sample')}  {output}")
    else:
        output.mkdir(parents=True, exist_ok=True)
        names: set[str] = set()
        for each in made:
            name = re.sub(r"[^\w.-]", "_", each["id"])[:80]
            while name in names:  # "a/b" and "a_b"
                name += "_"
            names.add(name)
            _print(each, output / f"{split}_{name}")
    for text in bad:
        say("bad row", text)
    if bad:
        say("shown", f"{len(made)} of {len(made) + len(bad)} rows of {split}; the others cannot be used")
    return int(bool(bad))


def _print(shown: dict[str, Any], place: Path) -> None:
    """Print a sample, and write its media to files whose names begin with `place`."""
    say("sample", shown["title"])
    for note in shown["notes"]:
        say("", note)
    console.print(shown["prompt"], markup=False)
    for one in shown["media"]:
        file = f"{place}{'_frames' if one['kind'] == 'video' else ''}{one['suffix']}"
        Path(file).write_bytes(one["data"])
        say(one["kind"], f"{one['change']}  {file}")
    say("tokens", shown["tokens"])


def split(words: Sequence[str]) -> int:
    """Divide a file of rows, and say what is where."""
    files, others = cli.places_and_settings(words)
    if len(files) != 1:
        raise UserError(
            f"cannot read {' '.join(words)}", "python -m echoink.data split mine/all.jsonl valid=0.2 dev=0.1"
        )
    given = cli.settings(divide.DivideConfig, others)
    made = divide.divide(Path(files[0]), given, compose([])[0].config.model)
    for name, path in made.files.items():
        counts = made.kinds[name]
        listed = " · ".join(f"{number:,} {kind}" for kind, number in sorted(counts.items()))
        say(name, f"{counts.total():,} rows ({listed})  {path}")
    for path in made.removed:
        say("removed", f"{path}, whose questions are in the new splits")
    rows = sum(counts.total() for counts in made.kinds.values())
    for name in ("valid", "dev"):
        asked, got = getattr(given, name), made.kinds.get(name, Counter()).total()
        if abs(got - asked * rows) > max(1, 0.02 * rows):
            shares = f"{100 * got / rows:.0f} % of the rows, not {100 * asked:g} %"
            say("warning", f"{name} has {shares}: rows that share files stay together")
    everywhere = {kind for counts in made.kinds.values() for kind in counts}
    for name, counts in made.kinds.items():
        if lacking := sorted(everywhere - set(counts)):
            say("warning", f"{name} has no question of {given.by} {', '.join(lacking)}")
    folder = shlex.quote(f"dataset.path={quoted(Path(files[0]).parent)}")
    say("train", f"python -m echoink.train dataset=rows {folder}")
    return 0


def begin(folder: Path) -> int:
    """Write a starter set and say how to train on it."""
    if folder.is_file():
        raise UserError(f"{folder} is a file", "give a new folder")
    for split, count in starter.new(folder).items():
        say("data", f"{folder / split}.jsonl: {count} rows, media in {folder / 'media'}")
    steps = "trainer.steps=2 trainer.prompts_per_step=4 trainer.micro_batch_prompts=2"
    say("next", f"put your rows in, then: python -m echoink.data check {shlex.quote(str(folder))}")
    say("train", f"python -m echoink.train dataset=rows {shlex.quote(f'dataset.path={quoted(folder)}')} {steps}")
    return 0


def check(words: Sequence[str], config_dir: str | None = None) -> int:
    """Report on a whole dataset; the exit status is 1 if a row cannot be used or there is no row."""
    folder, others = cli.places_and_settings(words)
    if len(folder) > 1:
        raise UserError(f"cannot read {' '.join(words)}", "give one folder, file or hub id, or dataset=…")
    named = [f"dataset.path={quoted(one)}" for one in folder]
    chosen = ["dataset=rows"] if folder and not any(word.startswith("dataset=") for word in others) else []
    given = [*chosen, *named, *others]
    config = compose(given, config_dir=config_dir)[0].config
    found = checking.look_through(config)
    for label, text in checking.lines(found):
        say(label, text)
    return int(not found.is_sound)


def main(words: Sequence[str]) -> int:
    """The commands get, show, new, check and split; see the module's docstring.

    Raises:
        UserError: an unknown command or key, or an error of the command.
    """
    what, *rest = words
    for word in rest:
        refuse_home(*word.partition("=")[::2])
    if what == "get" and "open_media" in rest:
        return get_open_media([word for word in rest if word != "open_media"])
    rest, config_dir = cli.without_config_dir(rest)
    if what == "check":
        return check(rest, config_dir)
    if what == "split":
        return split(rest)
    if what == "new" and len(rest) == 1:
        return begin(Path(rest[0]))
    given = dict(word.split("=", 1) for word in rest if "=" in word)
    own = {name: given[name] for name in (("output",) if what == "get" else ("n", "output", "split")) if name in given}
    others = [word for word in rest if word.partition("=")[0] not in own]
    if what == "get" and len(others) == 1:
        say("data", str(get(others[0], Path(own.get("output", "data")))))
        return 0
    if what == "show" and own.get("n", "3").isdecimal():
        output = Path(own.get("output", "outputs/shown"))
        return show(others, own.get("split", "valid"), int(own.get("n", 3)), output=output, config_dir=config_dir)
    raise UserError(f"cannot read {' '.join(words)}", "see python -m echoink.data --help")


def _help(words: Sequence[str]) -> str:
    if words[:1] == ["split"]:
        return cli.help_of("    python -m echoink.data split mine/all.jsonl valid=0.2 dev=0.1", divide.DivideConfig)
    if words[:2] != ["get", "open_media"]:
        return __doc__
    from echoink.data.open_media.build import OpenMediaConfig

    return cli.help_of(get_open_media.__doc__, OpenMediaConfig)


if __name__ == "__main__":
    cli.run(main, _help)
