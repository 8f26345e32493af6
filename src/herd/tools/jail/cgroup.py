"""A cgroup for one jail, version 1 or 2, where this process may make one: memory and processes held by the kernel, and killed in one go.

Where none can be made, which is the rule without root, rlimits and `watch` hold the same limits.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from herd.tools.jail.limits import JailLimits

ROOT = Path("/sys/fs/cgroup")
_PREFIX = "herd-jail-"
_OWN_PROCESSES = 8
"""The stage, bubblewrap and its two helpers, beside what the jail's code may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cgroup:
    """The folders of one jail's cgroup: one, or one for each controller of version 1."""

    folders: tuple[Path, ...]

    def kill(self) -> None:
        """End every process in it."""
        for folder in self.folders:
            switch = folder / "cgroup.kill"
            if switch.exists():
                switch.write_text("1", encoding="ascii")
                continue
            for pid in _members(folder):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def remove(self) -> None:
        """Take it away; its processes must have been killed, and the kernel is given a moment to bury them."""
        for folder in self.folders:
            for _ in range(100):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    self.kill()
                    time.sleep(0.01)

    def was_out_of_memory(self) -> bool:
        """Whether the kernel killed a process of it for memory."""
        for folder in self.folders:
            for name in ("memory.oom_control", "memory.events"):
                try:
                    lines = (folder / name).read_text(encoding="ascii").split("\n")
                except OSError:
                    continue
                if any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in lines):
                    return True
        return False


def _members(folder: Path) -> list[int]:
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _version_two(root: Path) -> Path | None:
    """The version 2 folder that hands the two controllers to folders below it, and that we may write to."""
    try:
        controllers = (root / "cgroup.subtree_control").read_text(encoding="ascii").split()
    except OSError:
        return None
    return root if {"memory", "pids"} <= set(controllers) and os.access(root, os.W_OK) else None


@lru_cache(maxsize=4)
def places(root: Path = ROOT) -> tuple[Path, ...]:
    """The folders below which a jail's cgroup can be made; none where it cannot."""
    found = _version_two(root) or _version_two(root / "unified")
    if found is not None:
        return (found,)
    old = [root / name for name in ("memory", "pids")]
    return tuple(old) if all((folder / "cgroup.procs").exists() and os.access(folder, os.W_OK) for folder in old) else ()


def create(limits: JailLimits, root: Path = ROOT) -> Cgroup | None:
    """A new cgroup with the limits set, or None where that is not allowed."""
    _sweep(root)
    name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    made: list[Path] = []
    try:
        for place in places(root):
            folder = place / name
            folder.mkdir()
            made.append(folder)
            for file, value in _values(limits):
                if (folder / file).exists():
                    (folder / file).write_text(str(value), encoding="ascii")
    except OSError:
        Cgroup(folders=tuple(made)).remove()
        return None
    return Cgroup(folders=tuple(made)) if made else None


@lru_cache(maxsize=4)
def _sweep(root: Path) -> None:
    """Take away, once, the empty cgroups of herds that were killed. One that holds a process cannot be removed."""
    for folder in (folder for place in places(root) for folder in place.glob(f"{_PREFIX}*")):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            try:
                folder.rmdir()
            except OSError:
                continue


def _values(limits: JailLimits) -> tuple[tuple[str, int], ...]:
    # Pages of the working folder count too, since it lives in memory.
    memory = limits.memory_bytes + 2 * limits.disk_bytes
    return (
        ("memory.max", memory),
        ("memory.swap.max", 0),
        ("memory.limit_in_bytes", memory),
        ("memory.memsw.limit_in_bytes", memory),
        ("pids.max", limits.processes + _OWN_PROCESSES),
    )
