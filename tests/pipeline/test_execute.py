"""The parts of a run that need no training to be shown."""

import subprocess
from types import SimpleNamespace

from echoink.pipeline import execute
from echoink.run_folder.folder import RunFolder


def test_a_push_is_made_by_a_process_that_is_none_of_the_runs(tmp_path, monkeypatch, capsys):
    """All processes of a run would read shards together, and the others have ended by then."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("HF_TOKEN_PATH", "kept")
    calls, ends = (
        [],
        [SimpleNamespace(returncode=0, stderr=""), SimpleNamespace(returncode=2, stderr="error: no hub\n")],
    )

    def run(command, env, **_):
        calls.append((command, env))
        return ends.pop(0)

    monkeypatch.setattr(subprocess, "run", run)
    files = RunFolder(tmp_path / "run", "train", "x", 0)
    (files.path / "export").mkdir()
    execute._push(files, "me/mine")
    command, environment = calls[0]
    assert command[2:] == [
        "echoink.export",
        f"checkpoint={files.path}",
        f"output={files.path}/export",
        "push_to=me/mine",
    ]
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & environment.keys()
    assert environment["HF_TOKEN_PATH"] == "kept" and not (files.path / "export").exists(), "of fewer steps of the run"
    execute._push(files, "me/mine")
    said = " ".join(capsys.readouterr().out.split())
    assert "pushed me/mine" in said and "failed: error: no hub · again: python -m echoink.export" in said
