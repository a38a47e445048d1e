"""How many processors are counted."""

import os

from echoink.common import processors


def test_processors_that_a_scheduler_keeps_back_do_not_count(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5, 6})
    assert processors.available() == 4
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processors.available() == 128
