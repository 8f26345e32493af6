"""What the system tells of the processor: its name and what it can. Linux tells it in a file; other systems tell less."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_ENOUGH = 8192
"""Characters that hold the first processor; a large machine's file has megabytes."""


def processor_fields(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """The fields of the first processor (`model name`, `flags`, on Arm `Features`); empty where the system does not tell them."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as file:
            told = file.read(_ENOUGH)
    except OSError:
        return {}
    lines = (line.partition(":") for line in told.strip().partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, colon, value in lines if colon}


def processor_name() -> str:
    """The processor's name, as the system tells it; the kind of machine where it does not."""
    return processor_fields().get("model name") or platform.processor() or platform.machine()
