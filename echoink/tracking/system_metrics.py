"""Logs processor, memory and GPU during a run, by MLflow's own monitors, to `system.jsonl` and MLflow."""

import logging
import threading

from echoink.run_folder.folder import RunFolder
from echoink.tracking.logger import Tracker


class SystemMonitor:
    """Measures the machine's load at intervals, from its own thread; a context manager.

    Args:
        files: the run's folder.
        tracker: the run in MLflow.
        every: seconds between measurements; 0 for none.
    """

    def __init__(self, files: RunFolder, tracker: Tracker, every: float):
        self._files, self._tracker, self._every = files, tracker, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="machine", daemon=True)

    def __enter__(self) -> "SystemMonitor":
        if self._every and self._files.writes:
            self._thread.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _look(self) -> None:
        monitors, step = _monitors(), len(self._files.read("system.jsonl"))
        while not self._stop.wait(self._every):
            row = {}
            for monitor in monitors:
                monitor.collect_metrics()
                row |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            self._tracker.row(self._files.numbers("system.jsonl", {"step": step, **row}))
            step += 1


def _monitors() -> list:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    found = [CPUMonitor()]
    try:
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        found.append(GPUMonitor())
    except Exception as error:  # no GPU, no driver, or no nvidia-ml-py: each raises another type
        logging.getLogger("echoink").info("GPUs are not monitored: %s", error)
    return found
