"""Energy of a run: measured where the machine counts it (NVML for GPUs, RAPL for processors), else nameplate watts times seconds.

A meter is read at the beginning and at the end of a stretch and gives joules. The carbon is kWh x PUE x the grid's kg a kWh. Every figure
names its method, since a nameplate is an assumption. Knows counters and files; nothing of training.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Method = Literal["nvml", "rapl", "nvml+rapl", "nameplate"]

JOULES_PER_KWH = 3.6e6
POWERCAP = Path("/sys/class/powercap")


@runtime_checkable
class Counter(Protocol):
    """A counter of joules that only grows."""

    def joules(self) -> float:
        """Joules since some fixed moment."""
        ...


class NameplateCounter:
    """Watts times the seconds of the clock."""

    def __init__(self, watts: float) -> None:
        self.watts = watts

    def joules(self) -> float:
        """Joules as if the machine drew its nameplate power all the time."""
        return self.watts * time.monotonic()


class RaplCounter:
    """Linux's counters of processor packages; they wrap around, which is counted. None readable: ValueError."""

    def __init__(self, root: Path = POWERCAP) -> None:
        # Packages only: their domains (core, uncore) are parts of them. The same name twice is one package seen twice.
        self._domains: list[tuple[Path, int]] = []
        for folder in sorted(root.glob("intel-rapl:*")):
            if folder.name.count(":") == 1:
                try:
                    int((folder / "energy_uj").read_text())
                    self._domains.append((folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())))
                except (OSError, ValueError):
                    continue
        if not self._domains:
            raise ValueError(f"no readable RAPL counter below {root}")
        self._last = [self._read(number) for number in range(len(self._domains))]
        self._total = 0

    def _read(self, number: int) -> int:
        return int(self._domains[number][0].read_text())

    def joules(self) -> float:
        """Joules of all packages since this counter was made. Read it at least once in each wrap, some minutes to an hour."""
        for number, (_, wraps_at) in enumerate(self._domains):
            now = self._read(number)
            self._total += (now - self._last[number]) % (wraps_at + 1)
            self._last[number] = now
        return self._total / 1e6


def _nvml_handle(nvml: Any, index: int) -> Any:
    """A GPU by the number that CUDA gives it: where CUDA_VISIBLE_DEVICES hides some, NVML still counts all of them."""
    shown = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not shown:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    if index >= len(shown):
        raise ValueError(f"CUDA_VISIBLE_DEVICES shows {len(shown)} GPUs, and number {index} is asked for")
    return nvml.nvmlDeviceGetHandleByIndex(int(shown[index])) if shown[index].isdecimal() else nvml.nvmlDeviceGetHandleByUUID(shown[index])


class NvmlCounter:
    """The energy counters of NVIDIA GPUs by the number that CUDA gives them. ValueError where NVML or the counter is missing."""

    def __init__(self, indices: tuple[int, ...]) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise ValueError("nvidia-ml-py is not installed") from error
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self._handles = [_nvml_handle(pynvml, index) for index in indices]
            self.joules()
        except pynvml.NVMLError as error:
            raise ValueError(f"NVML counts no energy here: {error}") from error

    def joules(self) -> float:
        """Joules of these GPUs since their drivers were loaded."""
        return sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles) / 1e3


class EnergyMeter:
    """Joules since the last reading, by the best method that the machine has."""

    def __init__(self, counters: list[Counter], method: Method) -> None:
        self.counters, self.method = counters, method
        self._last = self._read()

    def _read(self) -> float:
        return sum(counter.joules() for counter in self.counters)

    def lap(self) -> float:
        """Joules since the meter was made or last read."""
        now = self._read()
        joules, self._last = now - self._last, now
        return joules


def find_meter(*, device: str = "cpu", gpu_indices: tuple[int, ...] = (0,), nameplate_watts: float = 15.0) -> EnergyMeter:
    """The meter of this machine: NVML on a GPU, RAPL where it can be read, else the nameplate."""
    counters: list[Counter] = []
    methods: list[str] = []
    if device == "cuda":
        try:
            counters.append(NvmlCounter(gpu_indices))
            methods.append("nvml")
        except ValueError:
            return EnergyMeter([NameplateCounter(nameplate_watts)], "nameplate")
    try:
        counters.append(RaplCounter())
        methods.append("rapl")
    except ValueError:
        pass
    if not counters:
        return EnergyMeter([NameplateCounter(nameplate_watts)], "nameplate")
    return EnergyMeter(counters, "+".join(methods))  # pyright: ignore[reportArgumentType]


def carbon_kg(joules: float, *, pue: float, grid_kg_per_kwh: float) -> float:
    """Kg of CO2 equivalent, location-based: the machine's energy, its building's overhead, its grid's intensity."""
    return joules / JOULES_PER_KWH * pue * grid_kg_per_kwh
