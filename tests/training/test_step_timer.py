"""Where the seconds of a step go, on a CPU and, with stand-ins for CUDA's events, on a GPU."""

import time

import pytest
import torch

from echoink.training.step_timer import StepTimer


def test_a_section_inside_another_one_counts_for_itself(monkeypatch):
    now = iter([0.0, 0.0, 1.0, 4.0, 6.0, 10.0, 10.0])  # begin, outer, inner, inner ends, outer ends, end of the step
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    timer = StepTimer(torch.device("cpu"))
    timer.begin()
    with timer.section("outer"), timer.section("inner"):
        pass
    assert timer.end() == {"outer": 3.0, "inner": 3.0, "time/step": 10.0}


def test_the_next_step_begins_where_the_last_one_ended_and_pauses_do_not_count(monkeypatch):
    now = iter([0.0, 2.0, 3.0, 6.0, 9.0])  # begin, end, pause from 3 to 6, end
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    timer = StepTimer(torch.device("cpu"))
    timer.begin()
    assert timer.end() == {"time/step": 2.0}
    timer.begin()
    with timer.paused():
        pass
    assert timer.end() == {"time/step": 4.0}


def test_on_a_gpu_sections_are_measured_by_events_read_after_one_synchronization(monkeypatch):
    calls, clock = [], iter([0.0, 10.0, 40.0, 100.0])  # milliseconds at which the GPU reaches the events

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(clock)

        def elapsed_time(self, other):
            assert calls == ["synchronize"], "an event is read before the GPU is done"
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronize"))
    timer = StepTimer(torch.device("cuda"))
    with timer.section("outer"), timer.section("inner"):
        pass
    found = timer.end()
    assert found["outer"] == pytest.approx(0.07) and found["inner"] == pytest.approx(0.03)
    assert calls == ["synchronize"]
