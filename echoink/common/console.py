"""Output on the screen: labelled lines and progress bars, or plain lines if the output is not a terminal."""

import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from echoink.common.startup import imports


class _Screen(Console):
    """A console whose reader may go away, as the `head` of a pipe or a connection does: the run goes on unseen."""

    def on_broken_pipe(self) -> None:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


console = _Screen(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)

_log = logging.getLogger("echoink")

# bitsandbytes warns on import that it finds no kernels, before anything else could silence it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

LINES_EVERY = 20
"""Seconds between lines of progress where the output is no terminal."""

SERVER = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens."""


def say(label: str, text: str) -> None:
    """Print a line with its label; it also goes to train.log."""
    console.print(f"[bold]{label:<9}[/] {escape(text)}")
    _log.info("%s %s", label, text)


def server_of(uri: str) -> str:
    """The address at which a store's pages are: its own, or that of an `mlflow ui` on it."""
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else SERVER


def say_mlflow(uri: str, page: str) -> None:
    """Print how to open MLflow at a page of this store."""
    if server_of(uri) != SERVER:
        say("MLflow", f"{server_of(uri)}{page}")
        return
    say("MLflow", f"mlflow ui --backend-store-uri {shlex.quote(uri)}")
    say("", f"then open {SERVER}{page}")


def counted(number: float, noun: str) -> str:
    """1 and "sample" → "1 sample", 1,200 → "1,200 samples"; nouns that take an s."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}" + ("" if number == 1 else "s")


def percent(value: float | None) -> str:
    """0.8577 → "85.8 %"."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(bounds: Iterable[float]) -> str:
    """[0.842, 0.873] → "[84.2, 87.3]"."""
    return "[" + ", ".join(f"{100 * bound:.1f}" for bound in bounds) + "]"


def bar(label: str, count: ProgressColumn | None = None) -> Progress:
    """A progress bar with a text field `text`; silent where the output is no terminal."""
    return Progress(
        TextColumn(f"[bold]{label:<9}[/]"),
        BarColumn(bar_width=28),
        count or MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def progress(label: str, total: int | None) -> Callable[[Iterable], Iterable]:
    """Wrap an iterable of `total` items (None: unknown) to show its progress; in a file a line every 20 s."""

    def wrap(items: Iterable) -> Iterable:
        with bar(label) as shown:
            task, last_line = shown.add_task(label, total=total, text=""), time.monotonic()
            for number, item in enumerate(items, 1):
                yield item
                shown.advance(task)
                # In a file there is no bar: a line now and then shows the progress.
                if not console.is_terminal and time.monotonic() - last_line > LINES_EVERY:
                    last_line = time.monotonic()
                    say(label, f"{number:,}/{total:,}" if total else f"{number:,}")

    return wrap


@contextmanager
def bytes_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of bytes, in a file a line every 20 s; yields the function that advances it."""
    with bar(label, DownloadColumn()) as shown:
        task, last_line = shown.add_task(label, total=total, text=""), time.monotonic()

        def advance(count: int) -> None:
            nonlocal last_line
            shown.advance(task, count)
            if not console.is_terminal and time.monotonic() - last_line > LINES_EVERY:
                last_line = time.monotonic()
                say(label, f"{shown.tasks[task].completed / 1e6:,.0f}/{total / 1e6:,.0f} MB")

        yield advance


@contextmanager
def quiet_libraries():
    """Silence the messages and progress bars of the libraries that we use."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with imports():
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
