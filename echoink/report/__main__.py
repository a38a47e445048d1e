"""A report of runs, made from their folders alone: report.html (one file, no network) and report.md.

python -m echoink.report outputs/tiny/<run>                     a run: what got better, what got worse
python -m echoink.report outputs/ablate_beta/sweep_<time>       an ablation: arms, intervals over seeds, differences
python -m echoink.report <folder> <folder> … output=<folder>    several together, runs paired by seed
python -m echoink.report outputs/data/<set> sheet.png           samples of a dataset as a picture

A report is written into output=, else into the folder (of several: outputs/report); the picture is the named file or
output=.
"""

from collections.abc import Sequence
from pathlib import Path

from echoink.common import cli
from echoink.common.errors import UserError
from echoink.common.keys import refuse_home
from echoink.report import figures
from echoink.report.build import write


def main(words: Sequence[str]) -> None:
    """Write the report of the given folders; see the module's docstring.

    Raises:
        UserError: a folder is neither a run, a sweep nor a dataset.
    """
    outputs = [word.partition("=")[2] for word in words if word.startswith("output=")]
    for output in outputs:
        refuse_home("output", output)
        if not output:
            raise UserError("output= is empty", "is a variable of the shell not set? Leave it out, or give a folder")
    folders = [Path(word) for word in words if not word.startswith("output=")]
    if not folders:
        raise UserError("no folder is given", "python -m echoink.report <run or sweep> … output=<folder>")
    if (folders[0] / "omni_rl_format_valid.json").is_file():
        place = Path(outputs[-1]) if outputs else folders[1] if len(folders) > 1 else Path("sheet.png")
        try:
            print(figures.sheet(folders[0], place))
        except (OSError, ValueError) as error:
            hint = "name a .png, .svg or .pdf in a folder that exists"
            raise UserError(f"the picture {place} cannot be written: {error}", hint) from error
        return
    target = Path(outputs[-1]) if outputs else folders[0] if len(folders) == 1 else Path("outputs/report")
    try:
        written = write(folders, target)
    except OSError as error:
        raise UserError(f"the report cannot be written: {error}", "output=<a folder you may write to>") from error
    for file in written:
        print(file)


if __name__ == "__main__":
    cli.run(main, __doc__)
