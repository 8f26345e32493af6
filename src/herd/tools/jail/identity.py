"""The user that a jail runs as: one of its own for each jail where herd runs as root, else the user that runs herd.

A uid of its own makes the kernel count the jail's processes apart from everybody else's, and owns no file of the machine.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_RANGES = ((0x70000000, 0x7FFDFFFF), (60578, 61183))
"""Uids that nobody is given: above all ranges of containers; where only 16 bits are mapped, the gap that systemd leaves."""


def own_uid() -> int | None:
    """A uid that nobody on this machine has, for a jail started by root; None where herd is not root."""
    if os.geteuid() != 0:
        return None
    taken = _uids_in_use()
    for low, high in _RANGES:
        if not (_is_mapped("/proc/self/uid_map", low, high) and _is_mapped("/proc/self/gid_map", low, high)):
            continue
        for _ in range(100):
            uid = low + secrets.randbelow(high - low + 1)
            if uid not in taken:
                return uid
    return None


def _is_mapped(table: str, low: int, high: int) -> bool:
    try:
        lines = Path(table).read_text(encoding="ascii").splitlines()
    except OSError:
        return True
    spans = [(int(first), int(first) + int(count)) for first, _, count in (line.split() for line in lines)]
    return any(start <= low and high < end for start, end in spans)


def _uids_in_use() -> set[int]:
    found: set[int] = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                found.add(entry.stat(follow_symlinks=False).st_uid)
            except OSError:
                continue
    return found
