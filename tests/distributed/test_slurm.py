"""The batch script for SLURM, with stand-ins for what only a cluster has: tasks, host names, a queue."""

import os
import signal
import subprocess
import sys
import time

import pytest

from echoink.run_folder import checkpoint
from tests.helpers.entry import lines
from tests.helpers.paths import ROOT
from tests.helpers.several import RUN

SCRIPT = ROOT / "experiments/slurm/train.sbatch"
SRUN = """#!/usr/bin/env bash
[ "$1" = --cpus-per-task=4 ] || exit 9
shift 2  # and --kill-on-bad-exit=1
pids=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    pids+=($!)
done
trap 'kill -USR1 "${pids[@]}"' USR2  # as --signal=USR1@600 tells the tasks of a step
status=0
for pid in "${pids[@]}"; do
    wait "$pid"; code=$?
    while kill -0 "$pid" 2> /dev/null; do wait "$pid"; code=$?; done
    ((code > status)) && status=$code
done
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> "$PWD/queue"
"""


def commands(folder, **scripts: str) -> dict[str, str]:
    """An environment of a job of two tasks on one machine, in which these commands are scripts."""
    (folder / "bin").mkdir()
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "one",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "4",
    }


@pytest.mark.parametrize("cancels", [False, True])
def test_a_job_that_its_user_cancels_is_not_queued_again(tmp_path, cancels):
    """`scancel` sends SIGTERM to the script too; the time limit sends a signal to the run alone."""
    srun = f"#!/bin/sh\n{'kill -TERM $PPID; sleep 0.2' if cancels else ':'}\nexit 143\n"
    environment = commands(tmp_path, srun=srun, scontrol=SCONTROL)
    assert subprocess.run(["bash", str(SCRIPT)], cwd=tmp_path, env=environment).returncode == 143
    assert (tmp_path / "queue").exists() != cancels


@pytest.mark.slow
def test_a_job_that_is_asked_to_go_is_queued_again_and_ends_the_second_time(tmp_path):
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    environment = commands(tmp_path, srun=SRUN, scontrol=SCONTROL, python=python)
    command = ["bash", str(SCRIPT), *RUN, "tracking=off"]
    folder = tmp_path / "outputs/slurm-17"

    running = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    deadline = time.time() + 120
    while not (folder / "metrics.jsonl").is_file() or len(lines(folder / "metrics.jsonl")) < 3:
        assert time.time() < deadline and running.poll() is None
        time.sleep(0.05)
    subprocess.run(["pkill", "-USR2", "-f", "bin/srun", "--session", str(os.getsid(running.pid))], check=True)
    assert running.wait(120) == 128 + signal.SIGTERM
    assert (tmp_path / "queue").read_text() == "requeue 17\n"
    kept = checkpoint.step_of(checkpoint.newest(folder)[0])
    assert kept == len(lines(folder / "metrics.jsonl")) < 6

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"from step {kept}" in done.stdout
    assert [row["step"] for row in lines(folder / "metrics.jsonl")] == list(range(1, 7))
    assert (tmp_path / "queue").read_text() == "requeue 17\n"
