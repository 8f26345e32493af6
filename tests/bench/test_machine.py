"""Measuring this machine: what is measured is, what is not is the catalogue's or said to be a guess."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from herd.bench import machine
from herd.bench.machine import measure_machine
from herd.bench.rates import device_read_rate


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates without measuring them."""
    monkeypatch.setattr(machine, "read_rate", lambda size: 12.3456e9)
    monkeypatch.setattr(machine, "device_read_rate", lambda place, size: 3.2e12)
    monkeypatch.setattr(machine, "matmul_rate", lambda dtype, place: 7e14 if dtype == torch.bfloat16 else 5e13)


@pytest.mark.usefixtures("quick")
def test_a_machine_without_a_gpu_says_what_it_guesses() -> None:
    device = measure_machine(gpu=False)
    assert (device.name, device.kind, device.measured) == ("here", "cpu", True)
    assert device.memory_gb_per_s == 12.35 and device.memory_gb > 0.5 and device.bf16_tflops == 700.0
    assert any("a guess" in source for source in device.sources)
    assert measure_machine(gpu=False, watts=99.0).watts == 99.0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "row", "watts"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb", 700.0),
        ("NVIDIA H200", "h200", 700.0),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb", 400.0),
        ("NVIDIA GeForce RTX 4090", "rtx-4090", 450.0),
        ("AMD Instinct MI300X", "mi300x", 750.0),
        ("Tesla T4", None, 300.0),
    ],
)
def test_what_a_gpu_cannot_be_asked_is_the_catalogues(monkeypatch: pytest.MonkeyPatch, name: str, row: str | None, watts: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(name=name, total_memory=85_017_493_504))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    device = measure_machine(gpu=True)
    assert (device.kind, device.memory_gb, device.memory_gb_per_s, device.watts) == ("gpu", 85.02, 3200.0, watts)
    assert device.title == f"{name} (2 in this machine)" and device.devices_per_node == 2
    assert (f"the catalogue's {row}" if row else "guesses") in device.sources[1]


def test_reading_is_measured() -> None:
    assert device_read_rate(torch.device("cpu"), 2**22) > 1e7
