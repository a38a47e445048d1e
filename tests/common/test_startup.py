import gc
import os
import subprocess
import sys

import pytest

from echoink.common.startup import SPIN, imports


def test_while_importing_nothing_is_collected_and_what_was_made_is_left_out_later():
    before, made = gc.get_freeze_count(), [{"of": "a library"}]
    with imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    assert not any(made is one for one in gc.get_objects())


def test_an_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ImportError), imports():
        raise ImportError("no such library")
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, SPIN), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_sleep_soon_unless_the_user_said_how_they_wait(given, found, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with imports():
        assert os.environ.get("GOMP_SPINCOUNT") == found


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP")
def test_the_setting_is_there_before_pytorch_is():
    code = "import sys\nfrom echoink.common.startup import imports\nassert 'torch' not in sys.modules\n"
    shown = "with imports():\n    import torch\nprint(torch.__config__.parallel_info())"
    environment = {**os.environ, "OMP_DISPLAY_ENV": "verbose"}
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code + shown], env=environment, capture_output=True, text=True, check=True
    )
    assert f"GOMP_SPINCOUNT = '{SPIN}'" in done.stderr
