"""Make AVQA-R1-6K from OmniInstruct-v1, in the official layout.

    python -m echoink.curate source=m-a-p/OmniInstruct_v1 output=data/AVQA_R1
    python -m echoink.curate source=<folder of Parquet files or a datasets folder> output=data/AVQA_R1
    python -m echoink.curate source=… output=data/omni keep=[AVQA,Music-AVQA2.0]

It also selects hard questions that need both senses from any dataset; see `mode=difficulty --help`.

    python -m echoink.curate mode=difficulty source=data/AVQA_R1 checkpoint=outputs/tiny/<run> output=data/hard

It also makes responses for a supervised stage (`task=sft`) from a model's right answers; see `mode=traces --help`.

    python -m echoink.curate mode=traces source=data/AVQA_R1 checkpoint=outputs/tiny/<run> output=data/taught

A row is kept if its `source` is AVQA, its answer is among its first four options, its picture can be written as JPEG
and its sound as WAV. Its number in the source split becomes its problem_id and names its files. Its options get the
letters A to D; options beyond the fourth are cut. curation.json says what was dropped and why, how the right answers
are spread, and how many media the splits share. A run that was stopped continues where it stopped.

Every row that the official rules keep is kept, even with an empty question, a single option, a null or empty option,
or a sound without samples. curation.json and the screen count these rows. Training names and refuses most of them;
with dataset.max_skipped it drops them.

It departs from the public script in three points: a picture with a palette or transparency is dropped because of its
mode, not because saving it fails; a picture is written upright; options that have letters already get no more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from echoink.common import cli
from echoink.common.console import say
from echoink.common.errors import UserError
from echoink.common.keys import key
from echoink.curate import difficulty, traces
from echoink.curate.omni_instruct import LEDGER, curate_split, open_named, refuse_another, report


@dataclass
class CurateConfig:
    """Settings of the command."""

    source: str = key("a dataset of the hub, a folder of Parquet files, or a folder that `datasets` wrote")
    output: str = key("the new folder")
    keep: list[str] = key("values of the rows' `source` that are kept", ["AVQA"])
    splits: list[str] = key("splits of the source to curate", ["train", "valid"])
    expect: list[int] | None = key("numbers of rows that each split must have in the end, else exit status 2", None)


def main(words: Sequence[str]) -> None:
    """Curate as the settings say, and print the report."""
    for command in (difficulty, traces):
        if f"mode={command.__name__.rpartition('.')[2]}" in words:
            command.main(words)
            return
    if mode := next((word for word in words if word.startswith("mode=")), None):
        raise UserError(f"{mode} is not known", "mode=difficulty, mode=traces, or none")
    given = cli.settings(CurateConfig, words)
    output, splits, dropped, noted = Path(given.output), {}, {}, {}
    recipe = {"source": given.source, "keep": list(given.keep), "splits": list(given.splits)}
    if (output / "curation.json").is_file():
        raise UserError(f"{output} is finished", "give a new output=")
    if not given.splits:
        raise UserError("splits=[]: nothing is curated", "such as splits=[train,valid]")
    if given.expect is not None and len(given.expect) != len(given.splits):
        raise UserError(
            f"expect has {len(given.expect)} numbers, and there are {len(given.splits)} splits",
            "one for each of splits",
        )
    opened = {split: open_named(given.source, split, len(given.splits) == 1) for split in given.splits}
    refuse_another(output, recipe)
    for split, rows in opened.items():
        splits[split], dropped[split], noted[split] = curate_split(rows, split, output, given.keep)
    made = report(output, splits, dropped, noted)
    (output / "curation.json").write_text(json.dumps({**recipe, **made}, indent=1) + "\n", "utf-8")
    for split in splits:
        (output / split / LEDGER).unlink()
    for split, found in made.items():
        shares = " ".join(f"{letter} {100 * share:.1f}%" for letter, share in found["answer_positions"].items())
        say(split, f"{found['rows']:,} rows · answers {shares}")
        for reason, count in found["dropped"].items():
            say("", f"{count:,} dropped: {reason}")
        for reason, count in found["kept_all_the_same"].items():
            say("", f"{count:,} kept as the official rules say: {reason}")
        shared = ", ".join(f"{count} with {other}" for other, count in found["media_also_in"].items() if count)
        say(
            "", f"{found['duplicates']} duplicates" + (f" · media shared: {shared}" if shared else " · no media shared")
        )
    if given.expect is not None and (counts := [found["rows"] for found in made.values()]) != list(given.expect):
        raise UserError(f"made {counts} rows, expected {list(given.expect)}", "curation.json says what was dropped")
    say("curated", str(output))


def _help(words: Sequence[str]) -> str:
    if "mode=difficulty" in words:
        return cli.help_of(difficulty.__doc__, difficulty.DifficultyConfig)
    if "mode=traces" in words:
        return cli.help_of(traces.__doc__, traces.TracesConfig)
    return cli.help_of(__doc__, CurateConfig)


if __name__ == "__main__":
    cli.run(main, _help, again="the same command continues where it stopped")
