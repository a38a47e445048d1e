"""experiments/gpu: the kit runs, at small size, and says where something fails."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from tests.helpers import processes
from tests.helpers.paths import ROOT

KIT = ROOT / "experiments/gpu/kit.py"


def gone(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE  # nobody may collect it in a container
    except psutil.NoSuchProcess:
        return True


def kit(folder, *words: str) -> subprocess.CompletedProcess:
    command = [processes.interpreter(), str(KIT), f"output={folder}", *words]
    own = os.environ | {"DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=own, capture_output=True, text=True, cwd=ROOT)


def test_a_check_measures_and_passes_and_is_on_the_page(tmp_path):
    done = kit(tmp_path, "checks=flex")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["ok"] for row in found["checks"][0]["rows"]] == [True, True]
    assert found["machine"]["torch"] and len(found["machine"]["commit"] or "0" * 40) == 40
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("| passes |") == 2 and "FlexAttention, torch.bfloat16" in page


def test_the_checks_that_train_nothing_run_on_the_code_of_today(tmp_path):
    quick = ("graph", "fsdp_graph", "head", "decode", "update")  # "flex" runs above
    code = (
        f"import sys; sys.path.insert(0, {str(KIT.parent)!r}); import checks\n"
        f"for name in {quick}:\n"
        "    rows = list(checks.CHECKS[name]())\n"
        "    assert rows and all(row.ok is not False for row in rows), (name, rows)\n"
    )
    done = processes.run(tmp_path, code=code, DEVICE="cpu")
    assert done.returncode == 0, done.stderr


def test_what_fails_or_crashes_is_said_and_leaves_the_others(monkeypatch, tmp_path, capsys):
    sys.path.insert(0, str(KIT.parent))
    try:
        import kit as module
    finally:
        sys.path.remove(str(KIT.parent))
    rows = [{"name": "gap", "value": 0.5, "unit": "nats", "ok": False}]
    ended = {
        "graph": {"check": "graph", "rows": [], "error": "CUDA error: misaligned address", "seconds": 1.0},
        "flex": {"check": "flex", "rows": rows, "error": "", "seconds": 1.0},
        "push": {"check": "push", "rows": [{**rows[0], "ok": None}], "error": "", "seconds": 1.0},
    }
    monkeypatch.setattr(module, "run", lambda name, seconds: ended[name])
    assert module.main([f"output={tmp_path}", "checks=graph,flex,push"]) == 1
    page = (tmp_path / "gpu.md").read_text()
    assert "| graph | CUDA error: misaligned address | | **fails** |" in page
    assert "| flex | gap | 0.5 nats | **fails** |" in page and "| push | gap | 0.5 nats |  |" in page
    assert "gap: 0.5 nats FAILS" in capsys.readouterr().out
    assert module.main([f"output={tmp_path}", "checks=push"]) == 0
    for words, message in ((["checks=grpah"], "grpah is no check"), (["chekcs=flex"], "chekcs= is not known")):
        with pytest.raises(SystemExit, match=message):
            module.main(words)


def test_a_missing_package_is_said_before_any_check(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(KIT.parent))
    import kit as module

    monkeypatch.setattr(module, "IMPORTS", "import json, no_such_package")
    with pytest.raises(SystemExit, match=r"No module named 'no_such_package'\n→ bash experiments/gpu/run.sh wheels"):
        module.main([f"output={tmp_path}/out", "checks=flex,train"])
    assert not (tmp_path / "out").exists()
    module.refuse_without_packages(["graph", "flex"])  # these need none of it


def test_a_check_that_takes_too_long_ends_with_all_that_it_has_started(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(KIT.parent))
    import kit as module

    starts = tmp_path / "starts.py"
    starts.write_text(
        "import json, subprocess, time\nchild = subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3)\n"
        "print('row', json.dumps(child.pid), flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(module, "__file__", str(starts))
    found = module.run("train", 2.0)
    assert found["error"] == "stopped after 2 s"
    # A killed process closes its pipes a moment before it is gone; alone it would sleep for a minute.
    deadline = time.monotonic() + 20
    while not gone(found["rows"][0]):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_the_whole_kit_runs_on_a_cpu(tmp_path):
    done = kit(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["checks"]) == 11 and all(check["rows"] and not check["error"] for check in found["checks"])
