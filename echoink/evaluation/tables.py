"""The tables of accuracies and ablations on the screen."""

from collections.abc import Callable

from rich.table import Table

from echoink.common.console import console, counted, interval, percent, say
from echoink.common.statistics import FEW_CLUSTERS, Paired

VALUES = 20
"""The table of accuracies shows this many values of a field, those with the most samples. For a field with more, the
table of ablations and report.md give only their number; report.html has all."""


def cluster_note(clusters: int) -> str:
    """The number of clusters of samples that share media; intervals count them."""
    return f"{clusters:,}" + (", few: intervals are rough" if clusters < FEW_CLUSTERS else "")


def accuracy_table(phases: dict[str, dict]) -> None:
    """Print base and trained model side by side: accuracies with intervals, also by field, format, parse failures."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for phase in phases:
        table.add_column(phase, justify="right")

    def row(label: str, read: Callable[[dict], str]) -> None:
        table.add_row(label, *map(read, phases.values()))

    def accuracy(found: dict) -> str:
        return f"{percent(found['accuracy'])} {interval(found['interval'])}"

    def main(found: dict) -> str:
        return accuracy(found) + ("" if drawn == {"sampled"} else f" {found['draw']}")

    def greedy(found: dict) -> str:
        at, ends = found["greedy_accuracy"], found["greedy_interval"]
        return "–" if at is None else f"{percent(at)} {interval(ends)}"

    def of_group(found: dict, field: str, value: str) -> str:
        group = found["by"].get(field, {}).get(value)
        return accuracy(group) if group else "–"

    drawn = {phase["draw"] for phase in phases.values()}
    if len({phase["n"] for phase in phases.values()}) > 1:
        row("samples", lambda found: f"{found['n']:,}")
    row("accuracy, sampled" if drawn == {"sampled"} else "accuracy", main)
    if any(phase["greedy_accuracy"] is not None for phase in phases.values()):
        row("accuracy, greedy", greedy)
    for k in sorted({phase["samples"]["k"] for phase in phases.values() if phase["samples"]}):
        for name, label in (("mean", "mean of {} draws"), ("majority", "majority of {}"), ("pass", "pass@{}")):
            row(f"  {label.format(k)}", lambda s, k=k, n=name: _of_draws(s, k, n))
    if any("clusters" in phase for phase in phases.values()):
        row("clusters of shared media", lambda s: cluster_note(s.get("clusters", s["n"])))
    for field, groups in next(iter(phases.values()))["by"].items():
        named = {value: group["n"] for value, group in groups.items() if value != ""}  # "": rows without it
        largest = sorted(named, key=named.get, reverse=True)[:VALUES]
        for value in [value for value in named if value in largest]:
            row(f"  {field} {value}", lambda s, f=field, v=value: of_group(s, f, v))
        if len(named) > VALUES:
            row(f"  {field}: {len(named) - VALUES} more", lambda _: "summary.json, report.html")
    if any(phase["chance"] for phase in phases.values()):
        row("a guess", lambda s: percent(s["chance"]))
        row("always one letter", lambda s: percent(s["positions"] and s["positions"]["one_letter"]))
        row("letters, distance", lambda s: percent(s["positions"] and s["positions"]["distance"]))
    row("format", lambda s: percent(s["format"]))
    row("accuracy where formatted", lambda s: percent(s["accuracy_where_formatted"]))
    row("parse failures", lambda s: percent(s["parse_failures"]))
    if any(phase["truncated"] for phase in phases.values()):
        row("cut at the cap", lambda s: percent(s["truncated"]))
    if any(phase["custom"] is not None for phase in phases.values()):
        row("custom", lambda s: f"{s['custom']:.3f}")
    for name in next(iter(phases.values())).get("rewards", {}):
        row(f"reward {name}", lambda s, n=name: f"{s['rewards'][n]:.3f}" if n in s.get("rewards", {}) else "–")
    row("tokens per completion", lambda s: f"{s['mean_tokens']:.1f}")
    console.print(table)


def _of_draws(found: dict, k: int, name: str) -> str:
    several = found["samples"]
    if not several or several["k"] != k:
        return "–"  # the phase has one draw, or another number of draws
    return percent(several[name]) + (f" {interval(several['interval'])}" if name == "mean" else "")


def gain(found: Paired, draws: int) -> str:
    """Describe the gain in accuracy in words.

    Args:
        found: see `metrics.compare`.
        draws: number of the trained model's draws, whose mean was compared.
    """
    low, high = (100 * end for end in found.interval)
    unit = f" (mean of {draws} draws)" if draws > 1 else ""
    return (
        f"{100 * found.difference:+.1f} points{unit} [{low:+.1f}, {high:+.1f}], {found.test} p = {found.p_value:.2g} · "
        f"{counted(found.gained, 'sample')} gained, {found.lost} lost"
    )


def ablation_table(phases: dict[str, dict]) -> None:
    """Print the accuracy without each sense, base and trained model side by side; for the last phase also the fall from
    the full prompt on the same samples, and the parse failures.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", *phases, "fall", "p", "parse failures"):
        table.add_column(title, justify="right" if title else "left")
    last = list(phases.values())[-1]
    for variant in last:
        if variant == "needs":
            continue
        drop = last[variant]["drop"]
        low, high = (100 * end for end in drop["interval"])
        summaries = [found[variant] for found in phases.values()]
        table.add_row(
            variant,
            *(f"{percent(one['accuracy'])} {interval(one['interval'])}" for one in summaries),
            f"{100 * drop['difference']:+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{drop['p_value']:.2g}",
            percent(last[variant]["parse_failures"]),
        )
        for field, groups in last[variant]["by"].items():
            if len(groups) > VALUES:  # a row per value and variant would be hundreds of rows
                table.add_row(f"  {field}: {len(groups)} values", "summary.json, report.html")
                continue
            for value, group in groups.items():
                if value == "":  # rows without it
                    continue
                fall = 100 * (group["full"] - group["accuracy"])
                shares = (percent(one["by"][field][value]["accuracy"]) for one in summaries)
                table.add_row(f"  {field} {value}", *shares, f"{fall:+.1f}", f"{group['p_value']:.2g}", "")
    console.print(table)
    if last["needs"]:
        say("needs", " · ".join(f"{name} {count:,}" for name, count in last["needs"].items() if count))
