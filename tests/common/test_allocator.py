"""Freed memory stays with the process: counted in pages that the system had to hand out."""

import sys

import pytest

from tests.helpers import processes

PROGRAM = """
import resource, torch
from echoink.common import allocator
{keep}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has mallopt")
def test_large_tensors_come_again_without_new_pages(tmp_path):
    """Ten tensors of 61 MiB, after ten that were freed: 156,250 pages of 4 KiB, or fewer huge ones, or none."""
    found = {}
    for keep in ("pass", "allocator.keep_freed()"):
        done = processes.run(tmp_path, code=PROGRAM.format(keep=keep))
        assert done.returncode == 0, done.stderr
        found[keep] = int(done.stdout)
    assert found["allocator.keep_freed()"] < 0.05 * found["pass"]
