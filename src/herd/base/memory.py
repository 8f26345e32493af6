"""How much memory and disk this machine has free, in bytes. What does not fit is refused before anything is allocated."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from herd.base.errors import UsageError

GIB = 2**30


def available_memory() -> int | None:
    """Bytes of RAM that a new allocation may take without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return total_memory()


def total_memory() -> int | None:
    """Bytes of RAM that the machine has; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def free_disk(path: Path) -> int:
    """Free bytes on the disk that holds `path`, or that its nearest existing parent is on."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Bytes of `16GiB`, `500 MB` or `1000`. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match[2].upper())
    if match is None or unit is None:
        raise UsageError(f"{text!r:.40} is no size", hint="write 16GiB, 500MB or a number of bytes")
    return int(float(match[1]) * unit)


def gib(size_bytes: int | float) -> str:
    """Bytes for people: `1.5 GiB`, `16.1 MiB`."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes / 2**20:.1f} MiB"
