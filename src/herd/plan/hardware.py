"""The hardware catalogue: what devices hold and do, from `hardware.toml`, and this machine once `herd doctor --measure` has measured it.

Figures are nameplate ones, or measured ones where `measured` says so; what share of them a program reaches is for `assumptions`.
A cluster is a device with something else around it: a storage, a number of devices. No torch.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import tomli_w

from herd.base.atomic import atomic_file
from herd.base.config_io import from_dict
from herd.base.errors import ConfigError, NotFoundError, did_you_mean
from herd.base.paths import home

HERE = "here"
"""The name of the machine that herd runs on."""

_POSITIVE = ("memory_gb", "memory_gb_per_s", "bf16_tflops", "fp32_tflops", "link_gb_per_s", "devices_per_node", "network_gb_per_s", "watts")


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One accelerator, or the processors of one machine.

    Attributes:
        name: what `--hardware` takes.
        title: what people call it.
        kind: gpu or cpu.
        memory_gb: its own memory, in 10^9 bytes.
        memory_gb_per_s: how fast it reads that.
        bf16_tflops: dense matrix products in bfloat16, 10^12 operations a second.
        fp8_tflops: in float8; None where there is none.
        fp32_tflops: in float32.
        link_gb_per_s: to the others of its node, one direction.
        devices_per_node: that are linked so.
        network_gb_per_s: to other nodes, one direction, for each device.
        watts: nameplate power of a device.
        price_per_hour: of a device, in US dollars; an assumption of `price_date`.
        price_date: year and month of the price.
        num_devices: that there are at most; None sets no limit.
        storage_gb_per_s: what all of them together write and read checkpoints with.
        measured: rates are measured products and reads, not nameplate ones.
        sources: where the figures are from.
    """

    name: str
    title: str
    kind: Literal["gpu", "cpu"]
    memory_gb: float
    memory_gb_per_s: float
    bf16_tflops: float
    fp8_tflops: float | None = None
    fp32_tflops: float
    link_gb_per_s: float
    devices_per_node: int
    network_gb_per_s: float
    watts: float
    price_per_hour: float | None = None
    price_date: str | None = None
    num_devices: int | None = None
    storage_gb_per_s: float | None = None
    measured: bool = False
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{self.name}: {name} is {getattr(self, name)}, it must be over 0", hint="correct the hardware's figures")

    @property
    def memory_bytes(self) -> int:
        """Its memory."""
        return int(self.memory_gb * 1e9)

    def tflops(self, dtype: str) -> float:
        """The rate of products in `bf16`, `fp8` or `fp32`. Raises ConfigError where the device has none."""
        rate = {"bf16": self.bf16_tflops, "fp8": self.fp8_tflops, "fp32": self.fp32_tflops}[dtype]
        if rate is None:
            raise ConfigError(f"{self.name} has no matrix products in {dtype}", hint="choose bf16, or another device")
        return rate

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON sends them."""
        return {**asdict(self), "sources": list(self.sources)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cluster:
    """A device, and what is different around it."""

    name: str
    title: str
    device: str
    num_devices: int
    storage_gb_per_s: float
    sources: tuple[str, ...]


@cache
def catalogue() -> Mapping[str, Device]:
    """Every device and cluster that ships with herd, by name."""
    data = tomllib.loads((files("herd.plan") / "hardware.toml").read_text(encoding="utf-8"))
    found: dict[str, Device] = {}
    for row in data["device"]:
        device: Device = from_dict(Device, row, where=f"device {row.get('name')}")
        found[device.name] = device
    for row in data["cluster"]:
        cluster: _Cluster = from_dict(_Cluster, row, where=f"cluster {row.get('name')}")
        device = found[cluster.device]
        found[cluster.name] = replace(
            device,
            name=cluster.name,
            title=cluster.title,
            num_devices=cluster.num_devices,
            storage_gb_per_s=cluster.storage_gb_per_s,
            sources=(*cluster.sources, *device.sources),
        )
    return found


def device_of_driver(name: str) -> Device | None:
    """The catalogue's row of a GPU by the name that its driver gives it; None for one that is not in it."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    rows = (row for row in catalogue().values() if row.kind == "gpu" and row.num_devices is None)
    return next((row for row in rows if row.name.removeprefix("rtx-").split("-")[0] in words), None)


def here_path() -> Path:
    """Where this machine's measured figures are kept."""
    return home() / "hardware.toml"


def save_here(device: Device) -> Path:
    """Keep this machine's figures; returns the file."""
    path = here_path()
    with atomic_file(path) as temporary:
        plain = {name: value for name, value in device.to_dict().items() if value is not None}
        temporary.write_text(tomli_w.dumps(plain), encoding="utf-8")
    return path


def load_here() -> Device | None:
    """This machine as it was measured; None if it was not. Raises ConfigError for a damaged file."""
    path = here_path()
    if not path.is_file():
        return None
    try:
        return from_dict(Device, tomllib.loads(path.read_text(encoding="utf-8")), where=str(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="write it anew: herd doctor --measure") from error


def known_devices() -> dict[str, Device]:
    """The catalogue, and this machine if it was measured."""
    here = load_here()
    return {**catalogue(), **({} if here is None else {HERE: here})}


def find_device(name: str) -> Device:
    """The device or cluster of that name. Raises NotFoundError, with the nearest name, or for a machine that was never measured."""
    if name == HERE:
        here = load_here()
        if here is None:
            raise NotFoundError("this machine was not measured yet", hint="run: herd doctor --measure")
        return here
    found = catalogue()
    if name not in found:
        near = did_you_mean(name, found, otherwise="known: " + ", ".join((*found, HERE)))
        raise NotFoundError(f"no hardware is named {name!r}", hint=near)
    return found[name]
