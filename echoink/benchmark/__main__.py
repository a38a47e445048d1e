"""`python -m echoink.benchmark`: what sharing the prompt saves, compared with the same work without sharing.

Three systems (`baselines.py`) compute the same step on the same weights and completions. They take turns, so that
noise of the machine affects all alike. First their log-probabilities and gradients are compared; if they differ,
nothing is timed.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.table import Table

from echoink.benchmark.config import PARTS, SYSTEMS, BenchmarkConfig
from echoink.common import console
from echoink.common.errors import UserError
from echoink.common.startup import imports, take_any_text
from echoink.config.compose import VERSION_BASE
from echoink.config.mistakes import closest
from echoink.config.paths import conf_dir
from echoink.config.validate import typed

ConfigStore.instance().store(name="benchmark_schema", node=BenchmarkConfig)


def main() -> None:
    """Compose and run."""
    take_any_text()
    shapes = sorted(path.stem for path in (conf_dir() / "shape").glob("*.yaml"))
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key == "shape" and value not in shapes:
            hint = f"{closest(value, shapes)}known: {', '.join(shapes)}"
            print(f"\nerror: {UserError(f'there is no {word}', hint)}", file=sys.stderr)
            sys.exit(2)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else PyTorch's profiler reports that there is no GPU
    hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name="benchmark")(_task)()


def _task(raw: DictConfig) -> None:
    try:
        run(typed(raw, BenchmarkConfig))
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C; the same command begins again", file=sys.stderr)
        sys.exit(130)


def run(config: BenchmarkConfig) -> None:
    """Benchmark, show, and write the run folder."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    console.say("EchoInk", f"benchmark · {folder}")
    busy = f"{os.getloadavg()[0]:.1f} processes on {os.cpu_count()} processors at the start"
    console.say("load", f"{busy}; other work slows the benchmark and widens the intervals")
    with console.quiet_libraries():
        with imports():  # torch, only after the settings are checked
            from echoink.benchmark.measure import benchmark, growth

        found = benchmark(config)
        file = folder / "benchmark.json"
        file.write_text(json.dumps(found, indent=1), "utf-8")
        show(found)
        if config.growth:
            found["growth"] = growth(config)
            file.write_text(json.dumps(found, indent=1), "utf-8")
            show_growth(found["growth"])
            figure(found["growth"], folder / "growth.png")
    console.say("written", f"{folder}/benchmark.json" + (" and growth.png" if config.growth else ""))


def show(found: dict[str, Any]) -> None:
    """Print the results as a table."""
    table = Table("", *SYSTEMS, "plain rows / ours", "one group / ours", box=None, pad_edge=False, header_style="bold")
    for phase in PARTS:
        cells = [
            "{median:.2f} s [{lower:.2f}, {upper:.2f}]".format(**found["seconds"][name][phase]) for name in SYSTEMS
        ]
        ratios = (found[key].get(phase) for key in ("ratio", "ratio_reference_equivalent"))
        table.add_row(phase, *cells, *("–" if value is None else f"{value:.1f} x" for value in ratios))
    memory = [f"{found['peak_memory'][name] / 2**20:,.0f} MiB" for name in SYSTEMS]
    ratios = (found[key]["peak_memory"] for key in ("ratio", "ratio_reference_equivalent"))
    table.add_row("peak memory of the update", *memory, *(f"{value:.1f} x" for value in ratios))
    for phase in PARTS[1:-1]:
        cells = [f"{found['flops'][name][phase] / 1e9:,.0f}" if found["flops"] else "–" for name in SYSTEMS]
        table.add_row(f"GFLOP of {phase} (needed {found['needed_flops'][phase] / 1e9:,.0f})", *cells, "", "")
    speeds = [f"{found['completion_tokens_per_second'][name]:,.0f}" for name in SYSTEMS]
    table.add_row("completion tokens per second", *speeds, "", "")
    if "mfu" in found:
        shares = [console.percent(found["mfu"][name]) for name in SYSTEMS]
        table.add_row("MFU of reference and update, on needed FLOPs", *shares, "", "")
    console.console.print(table)


def show_growth(rows: Sequence[dict[str, Any]]) -> None:
    """Print the seconds of reference and update over G and P as a table."""
    table = Table("reference + update", *SYSTEMS[:2], "ratio", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        label = {"group_size": "G", "prompt_tokens": "P"}[row["key"]]
        cells = [f"{row[name]:.2f} s" for name in SYSTEMS[:2]]
        table.add_row(f"{label} = {row['value']}", *cells, f"{row['ratio']:.1f} x")
    console.console.print(table)


def figure(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the seconds of reference and update over G and over P, for ours and plain rows."""
    canvas = Figure(figsize=(8, 3.2), layout="constrained")
    names = {"group_size": "G, completions per prompt", "prompt_tokens": "P, prompt tokens"}
    for axis, (key, label) in zip(canvas.subplots(1, 2), names.items(), strict=True):
        points = [row for row in rows if row["key"] == key]
        for name in SYSTEMS[:2]:
            axis.plot([row["value"] for row in points], [row[name] for row in points], marker="o", label=name)
        axis.set(xlabel=label, ylabel="seconds of reference and update", ylim=(0, None))
        axis.legend(frameon=False)
    canvas.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
