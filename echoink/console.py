"""What a person sees: labelled lines, progress bars, one table. Plain lines where the output is no terminal."""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
_log = logging.getLogger("echoink")

SERVER = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens."""


def say(label: str, text: str) -> None:
    """A line with its label; also in train.log."""
    console.print(f"[bold]{label:<9}[/] {escape(text)}")
    _log.info("%s %s", label, text)


def say_mlflow(uri: str, page: str) -> None:
    """How to open MLflow on a page of this store."""
    say("MLflow", f"mlflow ui --backend-store-uri {shlex.quote(uri)}")
    say("", f"then open {SERVER}{page}")


def percent(value: float | None) -> str:
    """0.8577 → "85.8 %"."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(bounds: Iterable[float]) -> str:
    """[0.842, 0.873] → "[84.2, 87.3]"."""
    return "[" + ", ".join(f"{100 * bound:.1f}" for bound in bounds) + "]"


def bar(label: str) -> Progress:
    """A progress bar with a text field `text`; silent where the output is no terminal."""
    return Progress(
        TextColumn(f"[bold]{label:<9}[/]"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def progress(label: str, total: int) -> Callable[[Iterable], Iterable]:
    """A wrapper for an iterable of `total` items that shows how far it is."""

    def wrap(items: Iterable) -> Iterable:
        with bar(label) as shown:
            task = shown.add_task(label, total=total, text="")
            for item in items:
                yield item
                shown.advance(task)

    return wrap


def accuracy_table(phases: dict[str, dict]) -> None:
    """Base and trained side by side: accuracy with its interval, greedy, format, parse failures, and every kind."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for phase in phases:
        table.add_column(phase, justify="right")

    def cells(read: Callable[[dict], str]) -> list[str]:
        return [read(summary) for summary in phases.values()]

    def accuracy(found: dict) -> str:
        return f"{percent(found['accuracy'])} {interval(found['interval'])}"

    def main(found: dict) -> str:
        return accuracy(found) + ("" if drawn == {"sampled"} else f" {found['draw']}")

    def of_group(found: dict, field: str, value: str) -> str:
        group = found["by"].get(field, {}).get(value)
        return accuracy(group) if group else "–"

    drawn = {phase["draw"] for phase in phases.values()}
    table.add_row("accuracy, sampled" if drawn == {"sampled"} else "accuracy", *cells(main))
    greedy = cells(
        lambda s: (
            "–" if s["greedy_accuracy"] is None else f"{percent(s['greedy_accuracy'])} {interval(s['greedy_interval'])}"
        )
    )
    if any(phase["greedy_accuracy"] is not None for phase in phases.values()):
        table.add_row("accuracy, greedy", *greedy)
    if all(phase["samples"] for phase in phases.values()):
        for name, label in (("mean", "mean of {} draws"), ("majority", "majority of {}"), ("pass", "pass@{}")):
            k = next(iter(phases.values()))["samples"]["k"]
            told = cells(lambda s, n=name: percent(s["samples"][n]))
            if name == "mean":
                told = cells(lambda s: f"{percent(s['samples']['mean'])} {interval(s['samples']['interval'])}")
            table.add_row(f"  {label.format(k)}", *told)
    for field in next(iter(phases.values()))["by"]:
        for value in next(iter(phases.values()))["by"][field]:
            table.add_row(f"  {field} {value}", *cells(lambda s, f=field, v=value: of_group(s, f, v)))
    if any(phase["chance"] for phase in phases.values()):
        table.add_row("a guess", *cells(lambda s: percent(s["chance"])))
        table.add_row("always one letter", *cells(lambda s: percent(s["positions"] and s["positions"]["one_letter"])))
        table.add_row("letters off by", *cells(lambda s: percent(s["positions"] and s["positions"]["distance"])))
    table.add_row("format", *cells(lambda s: percent(s["format"])))
    table.add_row("accuracy where formatted", *cells(lambda s: percent(s["accuracy_where_formatted"])))
    table.add_row("parse failures", *cells(lambda s: percent(s["parse_failures"])))
    if any(phase["truncated"] for phase in phases.values()):
        table.add_row("cut at the cap", *cells(lambda s: percent(s["truncated"])))
    if any(phase["custom"] is not None for phase in phases.values()):
        table.add_row("reward.file", *cells(lambda s: f"{s['custom']:.3f}"))
    table.add_row("tokens per completion", *cells(lambda s: f"{s['mean_tokens']:.1f}"))
    console.print(table)


def ablation_table(phases: dict[str, dict]) -> None:
    """What is left without each sense, base and trained side by side; of the last also the fall from full on the same
    samples, and how many answers could not be read.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", *phases, "fall", "p", "unread"):
        table.add_column(title, justify="right" if title else "left")
    last = list(phases.values())[-1]
    for variant in last:
        if variant == "needs":
            continue
        drop = last[variant]["drop"]
        low, high = (100 * end for end in drop["interval"])
        told = [found[variant] for found in phases.values()]
        table.add_row(
            variant,
            *(f"{percent(one['accuracy'])} {interval(one['interval'])}" for one in told),
            f"{100 * drop['difference']:+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{drop['p_value']:.2g}",
            percent(last[variant]["parse_failures"]),
        )
        for field, groups in last[variant]["by"].items():
            for value, group in groups.items():
                fall = 100 * (group["full"] - group["accuracy"])
                shares = (percent(one["by"][field][value]["accuracy"]) for one in told)
                table.add_row(
                    f"  {field} {value}",
                    *shares,
                    f"{fall:+.1f}",
                    "" if group["p_value"] is None else f"{group['p_value']:.2g}",
                    "",
                )
    console.print(table)
    if last["needs"]:
        say("needs", " · ".join(f"{name} {count:,}" for name, count in last["needs"].items() if count))


@contextmanager
def quiet_libraries():
    """Silence the chatter of the libraries below us, their progress bars too."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    import torch
    from transformers.utils import logging as transformers_logging

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says that it looked for another
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("trl", "accelerate", "bitsandbytes", "datasets", "httpx", "urllib3", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
