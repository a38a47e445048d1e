"""Runs the checks that need a GPU in one call of at most ten minutes, and writes one JSON file and one page.

    python experiments/gpu/kit.py                         all checks, to outputs/gpu
    python experiments/gpu/kit.py checks=graph,flex       some of them
    DEVICE=cpu python experiments/gpu/kit.py              the same code at small size, without a GPU
    bash experiments/gpu/run.sh wheels                    with a network: collect the small packages in .wheels/
    bash experiments/gpu/run.sh run                       without a network: run the checks with these packages

Each check (`checks.py`) runs in its own process for at most 280 s, so a crash does not affect the others. A row is a
measurement, or it passes or fails. The exit status is 1 if one fails.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

MOST = 280
"""Most seconds of one check."""
ALL = 600
"""Most seconds of all checks."""
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
IMPORTS = "import torchvision, trl.trainer.grpo_trainer, av, soundfile, soxr, matplotlib, hydra"
"""What a training imports, with what these need themselves."""
TRAIN = {"fsdp_graph", "train", "resume", "update", "default"}
"""Checks that need all of it."""


def machine() -> dict:
    """The machine on which the numbers were measured."""
    import torch

    from echoink.run_folder.environment import git

    found = {"python": platform.python_version(), "commit": git()["commit"], "device": platform.processor()}
    found |= {name: metadata.version(name) for name in PACKAGES}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"visible": torch.cuda.device_count(), "cuda": torch.version.cuda}
    return found


def refuse_without_packages(names: list[str]) -> None:
    """Stop before any check runs if a package is missing; checks would fail one by one and waste the machine's time."""
    if TRAIN.isdisjoint(names):
        return
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1]
        raise SystemExit(f"{said}\n→ bash experiments/gpu/run.sh wheels, where there is a network")


def run(name: str, seconds: float) -> dict:
    """Run one check in its own process; returns its rows and how it ended."""
    began = time.monotonic()
    command = [sys.executable, __file__, f"only={name}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            text, said = process.communicate(timeout=seconds)
            ended = "" if process.returncode == 0 else (said.strip().splitlines() or ["?"])[-1][:300]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and the trainings that it has started
            text, ended = process.communicate()[0], f"stopped after {seconds:.0f} s"
        except BaseException:  # Ctrl-C reaches this process alone
            os.killpg(process.pid, signal.SIGKILL)
            raise
    rows = [json.loads(line[4:]) for line in text.splitlines() if line.startswith("row ")]
    return {"check": name, "rows": rows, "error": ended, "seconds": round(time.monotonic() - began, 1)}


def page(found: dict) -> str:
    """The results as Markdown."""
    about = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    lines = ["# GPU checks", "", f"Measured on: {about}.", "", "| check | what | value | |", "|---|---|---|---|"]
    for check in found["checks"]:
        for row in check["rows"]:
            value = f"{row['value']:.4g}" if isinstance(row["value"], float) else row["value"]
            verdict = {None: "", True: "passes", False: "**fails**"}[row["ok"]]
            lines.append(f"| {check['check']} | {row['name']} | {value} {row['unit']} | {verdict} |")
        if check["error"]:
            lines.append(f"| {check['check']} | {check['error'].replace('|', '/')} | | **fails** |")
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Run the checks, write gpu.json and gpu.md."""
    import checks

    given = dict(word.split("=", 1) for word in words)
    if unknown := set(given) - {"only", "checks", "output"}:
        raise SystemExit(f"{unknown.pop()}= is not known: checks= and output=")
    if name := given.get("only"):
        for row in checks.CHECKS[name]():
            print("row", json.dumps(asdict(row)), flush=True)
        return 0
    names = given["checks"].split(",") if "checks" in given else list(checks.CHECKS)
    if wrong := [name for name in names if name not in checks.CHECKS]:
        raise SystemExit(f"{wrong[0]} is no check: {', '.join(checks.CHECKS)}")
    refuse_without_packages(names)
    output, until = Path(given.get("output", "outputs/gpu")), time.monotonic() + ALL
    output.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "checks": []}
    for number, name in enumerate(names, 1):
        print(f"{number}/{len(names)} {name} …", flush=True)
        left = until - time.monotonic()
        check = run(name, min(MOST, left)) if left > 5 else {"name": name, "rows": [], "error": "no time left"}
        for row in check["rows"]:
            failed = " FAILS" if row["ok"] is False else ""
            print(f"    {row['name']}: {row['value']} {row['unit']}{failed}", flush=True)
        if check["error"]:
            print(f"    {check['error']}", flush=True)
        found["checks"].append(check)
        (output / "gpu.json").write_text(json.dumps(found, indent=1))  # kept even if a later check crashes
        (output / "gpu.md").write_text(page(found))
    print(output / "gpu.md")
    return int(any(check["error"] or any(row["ok"] is False for row in check["rows"]) for check in found["checks"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
