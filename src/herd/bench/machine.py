"""Measures this machine as a row of the planner's hardware catalogue: memory, how fast it is read, how fast matrices are multiplied.

What cannot be measured in a second is taken from the catalogue where the GPU's name is in it; else watts are a guess by the number of
processors, and links those of one machine, both said so in the row's `sources`.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from herd.base.memory import total_memory
from herd.base.processor import processor_name
from herd.bench.rates import device_read_rate, matmul_rate, read_rate
from herd.plan.hardware import HERE, Device, device_of_driver

_WATTS_A_PROCESSOR = 7.5
_READ_BYTES = 2**30
_MEASURED = ("memory_gb", "memory_gb_per_s", "bf16_tflops", "fp32_tflops", "link_gb_per_s")


def measure_machine(*, gpu: bool | None = None, watts: float | None = None) -> Device:
    """This machine's row; takes seconds. `gpu` None takes a GPU where there is one."""
    use_gpu = torch.cuda.is_available() if gpu is None else gpu
    measured = _gpu() if use_gpu else _cpu()
    rounded = {name: float(f"{getattr(measured, name):.4g}") for name in _MEASURED}
    return replace(measured, **rounded, watts=measured.watts if watts is None else watts)


def _cpu() -> Device:
    place, count = torch.device("cpu"), os.cpu_count() or 1
    read = read_rate(_READ_BYTES) / 1e9
    threads = torch.get_num_threads()
    return Device(
        name=HERE,
        title=f"{processor_name()} ({count} processors, {threads} threads)",
        kind="cpu",
        memory_gb=(total_memory() or 0) / 1e9,
        memory_gb_per_s=read,
        bf16_tflops=matmul_rate(torch.bfloat16, place) / 1e12,
        fp32_tflops=matmul_rate(torch.float32, place) / 1e12,
        link_gb_per_s=read / 2,
        devices_per_node=1,
        network_gb_per_s=0.125,
        watts=count * _WATTS_A_PROCESSOR,
        measured=True,
        sources=(
            "rates and memory: measured by herd doctor --measure",
            f"power: a guess, {_WATTS_A_PROCESSOR:g} W a processor",
            "network: 1 Gb/s supposed",
        ),
    )


def _gpu() -> Device:
    place = torch.device("cuda", 0)
    properties = torch.cuda.get_device_properties(place)
    known, count = device_of_driver(properties.name), torch.cuda.device_count()
    rest = "links, network and power: " + (f"the catalogue's {known.name}" if known else "guesses, as PCIe 4.0, 10 Gb/s and 300 W")
    return Device(
        name=HERE,
        title=f"{properties.name} ({count} in this machine)",
        kind="gpu",
        memory_gb=properties.total_memory / 1e9,
        memory_gb_per_s=device_read_rate(place, _READ_BYTES) / 1e9,
        bf16_tflops=matmul_rate(torch.bfloat16, place) / 1e12,
        fp8_tflops=None,
        fp32_tflops=matmul_rate(torch.float32, place) / 1e12,
        link_gb_per_s=known.link_gb_per_s if known else 32.0,
        devices_per_node=count,
        network_gb_per_s=known.network_gb_per_s if known else 1.25,
        watts=known.watts if known else 300.0,
        price_per_hour=known.price_per_hour if known else None,
        price_date=known.price_date if known else None,
        measured=True,
        sources=("rates and memory: measured by herd doctor --measure", rest),
    )
