"""torch's profiler over some steps of a run: a trace for chrome://tracing or Perfetto, and a table of the dearest operators."""

from __future__ import annotations

from pathlib import Path

import torch

from herd.base.log import get_logger

log = get_logger(__name__)


class StepProfiler:
    """Traces steps `first` to `last` (from 1) into `folder`. Does nothing in other steps, nor when no steps are given."""

    def __init__(self, steps: tuple[int, ...], folder: Path) -> None:
        self.first, self.last = steps if steps else (0, 0)
        self.folder = folder
        self._profiler: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """Begin if `step` is the first one."""
        if self.first and step == self.first:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=True)
            self._profiler.start()

    def after(self, step: int) -> None:
        """Write the trace if `step` is the last one."""
        if self._profiler is None or step < self.last:
            return
        self._profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / f"steps-{self.first}-{self.last}.json"
        self._profiler.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = self._profiler.key_averages().table(sort_by=order, row_limit=30)
        trace.with_suffix(".txt").write_text(table + "\n", encoding="utf-8")
        self._profiler = None
        log.info("profile of steps %d to %d: %s", self.first, self.last, trace)
