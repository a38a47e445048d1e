"""Kills and restarts a tracking server during a run: is a step slower, is a point lost or duplicated?

    python experiments/tracking_outage.py <an empty folder> [repeats]

Trains 60 steps of the default run in three ways, in turn, `repeats` times (default 1): without tracking; with a server;
with a server that is killed (SIGKILL) at step 15 and restarted at step 45. Prints

- the median seconds per step over steps 16 to 45 and their ratio to the first way (as noisy as the machine);
- the cost of tracking, which hardly depends on the machine: how long training waits for it (in calls that pass a row
  on), and the processor time of the sending thread, both as a share of the time of all steps;
- how many points and steps the server has of each run at its end, after `python -m echoink.sync`, and after a second.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from echoink.common.files import read_rows
from echoink.tracking.client import connect

PORT = 5599
URI = f"http://127.0.0.1:{PORT}"
STEPS = 60
SETTINGS = ["trainer.steps=60", "eval.base=false", "eval.limit=50", "eval.watched=0", "tracking.traces_every=0"]


TRAIN = """
import atexit, json, sys, threading, time
from pathlib import Path
from echoink import train
from echoink.tracking import logger as tracker
spent = {"waits": 0.0, "thread": 0.0}

def timed(method, name, clock, where):
    def call(self, *words):
        if threading.current_thread().name != where:
            return method(self, *words)
        began = clock()
        try:
            return method(self, *words)
        finally:
            spent[name] += clock() - began
    return call

tracker.Tracker.row = timed(tracker.Tracker.row, "waits", time.perf_counter, "MainThread")
tracker.Tracker._guarded = timed(tracker.Tracker._guarded, "thread", time.thread_time, "mlflow")
atexit.register(lambda: Path(sys.argv[1].partition("=")[2], "spent.json").write_text(json.dumps(spent)))
train.main()
"""


class Server:
    """A tracking server that can be killed and started again."""

    def __init__(self, place: Path):
        self._place, self._process = place, None

    def start(self) -> None:
        """Start it and return when it answers."""
        words = ["--host", "127.0.0.1", "--port", str(PORT), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self._place}/server.db"]
        artifacts = ["--artifacts-destination", str(self._place / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *words]
        with open(self._place / "server.log", "a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(120):
            time.sleep(0.5)
            try:
                connect(URI).search_experiments(max_results=1)
                return
            except Exception:  # not there yet
                continue
        raise SystemExit(f"no server: see {self._place}/server.log")

    def kill(self) -> None:
        """Send SIGKILL to it and its workers."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def train(place: Path, name: str, tracking: list[str], outage: list[tuple[int, Callable[[], None]]]) -> None:
    """Run a training and do something at some of its steps."""
    folder = place / name
    words = [f"hydra.run.dir={folder}", *SETTINGS, *tracking]
    run = subprocess.Popen([sys.executable, "-c", TRAIN, *words], cwd=place, stdout=subprocess.DEVNULL)
    for step, act in outage:
        while len(read_rows(folder / "metrics.jsonl")) < step and run.poll() is None:
            time.sleep(0.05)
        act()
    if run.wait():
        raise SystemExit(f"{name} failed: see {folder}/train.log")


def points(name: str, place: Path) -> tuple[int, int]:
    """Points and steps of reward/accuracy that the server has of a run."""
    id = json.loads((place / name / "summary.json").read_text())["mlflow"]["run_id"]
    history = connect(URI).get_metric_history(id, "reward/accuracy")
    return len(history), len({point.step for point in history})


def main(place: Path, repeats: int) -> None:
    """Run all ways in turn and print what the module docstring says."""
    place.mkdir(parents=True, exist_ok=True)
    server, ratios = Server(place), {"with a server": [], "killed and restarted": []}
    for turn in range(repeats):
        train(place, f"without_{turn}", ["tracking=off"], [])
        without = seconds(place / f"without_{turn}")
        print(f"without_{turn}: {without:.3f} s per step", flush=True)
        for way, found in ratios.items():
            name = f"{way.replace(' ', '_')}_{turn}"
            server.start()
            outage = [(15, server.kill), (45, server.start)] if way == "killed and restarted" else []
            train(place, name, [f"tracking.uri={URI}"], outage)
            counts = [points(name, place)]
            for _ in range(2):
                words = ["-m", "echoink.sync", str(place / name), f"uri={URI}"]
                subprocess.run([sys.executable, *words], check=True, capture_output=True)
                counts.append(points(name, place))
            server.kill()
            found.append(seconds(place / name) / without)
            print(
                f"{name}: {found[-1] * without:.3f} s per step; points and steps in MLflow at its end and after sync,"
            )
            print(f"  after a second sync: {counts}")
            spent = json.loads((place / name / "spent.json").read_text())
            whole = sum(row["time/step"] for row in read_rows(place / name / "metrics.jsonl"))
            print("  " + ", ".join(f"{key} {100 * value / whole:.3f} %" for key, value in spent.items()), flush=True)
    for way, found in ratios.items():
        print(f"{way}: a step takes {statistics.median(found):.3f} times as long as without {found}")


def seconds(folder: Path) -> float:
    """Median seconds of a step, over the steps in which the server is down."""
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "a step is missing"
    return statistics.median(row["time/step"] for row in rows[15:45])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
