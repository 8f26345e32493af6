"""One thread that looks at every jail four times a second and ends those over what the kernel does not hold for us.

Memory of all processes together where there is no cgroup; files in number, since a file system's size does not limit empty ones; and the
size of a working folder that lies on the machine's own disk.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from herd.tools.jail.process import Jail

PERIOD_S = 0.25
MAX_FILES = 20_000
_PAGE = os.sysconf("SC_PAGE_SIZE")
_IN_JAIL = ("home/code", "tmp", "dev/shm")


class Watch:
    """The thread and the jails it looks at; it runs while there is one."""

    def __init__(self) -> None:
        self._jails: set[Jail] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, jail: Jail) -> None:
        """Look at a jail from now on."""
        with self._lock:
            self._jails.add(jail)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="herd-jail-watch", daemon=True)
                self._thread.start()

    def remove(self, jail: Jail) -> None:
        """Look at it no longer."""
        with self._lock:
            self._jails.discard(jail)

    def _run(self) -> None:
        while True:
            time.sleep(PERIOD_S)
            with self._lock:
                jails = list(self._jails)
                if not jails:
                    self._thread = None
                    return
            children = children_of_all()
            for jail in jails:
                reason = excess(jail, descendants(jail.pid, children))
                if reason is not None:
                    jail.kill(reason)


WATCH = Watch()


def excess(jail: Jail, pids: list[int]) -> str | None:
    """What a jail has too much of: "memory", "disk" or nothing."""
    limits = jail.spec.limits
    if not jail.has_cgroup and sum(map(private_bytes, pids)) > limits.memory_bytes:
        return "memory"
    folder = jail.work_folder
    if folder is not None:
        size, count = folder_size(folder, stop_at=limits.disk_bytes)
        return "disk" if size > limits.disk_bytes or count > MAX_FILES else None
    return "disk" if files_in_jail(pids[-1]) > MAX_FILES else None


def children_of_all() -> dict[int, list[int]]:
    """Children by parent, of every process there is."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        parent = int(stat[stat.rindex(")") + 1 :].split()[1])
        children.setdefault(parent, []).append(int(entry.name))
    return children


def descendants(pid: int, children: dict[int, list[int]]) -> list[int]:
    """A process and all below it, the outermost first."""
    found = [pid]
    for member in found:
        found.extend(children.get(member, ()))
    return found


def private_bytes(pid: int) -> int:
    """Memory that a process has for itself: resident without what is read from files."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE if len(fields) > 2 else 0


def files_in_jail(pid: int) -> int:
    """Files and folders in the jail's own file systems, as one of its processes sees them; none for one that is still outside."""
    try:
        if os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/")):
            return 0
    except OSError:
        return 0
    count = 0
    for folder in _IN_JAIL:
        try:
            # The root link of a process leads into its own mounts; statvfs reads numbers only and follows nothing that the jail made.
            figures = os.statvfs(f"/proc/{pid}/root/{folder}")
        except OSError:
            continue
        count += figures.f_files - figures.f_ffree if figures.f_files < 1 << 40 else 0
    return count


def folder_size(folder: str, *, stop_at: int) -> tuple[int, int]:
    """Bytes on disk and number of entries below a folder; counting stops once over either limit."""
    size = count = 0
    for current, folders, names in os.walk(folder):
        count += len(folders) + len(names)
        for name in names:
            try:
                size += os.lstat(os.path.join(current, name)).st_blocks * 512
            except OSError:
                continue
        if size > stop_at or count > MAX_FILES:
            break
    return size, count


def threads_of_this_user() -> int:
    """Threads that run as this user, which is what RLIMIT_NPROC counts."""
    user = os.getuid()
    count = 0
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and entry.stat().st_uid == user:
                count += len(os.listdir(f"{entry.path}/task"))
        except OSError:
            continue
    return count
