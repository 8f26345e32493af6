"""The command line of bubblewrap for a jail: namespaces of its own for everything, the system read-only, sized writable folders."""

from __future__ import annotations

import os
from collections.abc import Sequence

from herd.tools.jail.interpreter import Interpreter, system_paths
from herd.tools.jail.limits import MIB, JailLimits

HOME = "/home/code"
"""The working folder in the jail."""
_SHARED_MEMORY = 16 * MIB
_MASKED = (
    "cmdline",
    "config.gz",
    "iomem",
    "kallsyms",
    "key-users",
    "keys",
    "modules",
    "partitions",
    "sched_debug",
    "timer_list",
    "diskstats",
)
"""Of /proc: what tells of the machine rather than of the jail, and what no analysis reads."""


def command(
    bwrap: str, interpreter: Interpreter, limits: JailLimits, argv: Sequence[str], env: dict[str, str], *, filter_fd: int
) -> list[str]:
    """The whole command line. `filter_fd` is a descriptor to read the system-call filter from."""
    words = [bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000", "--hostname", "jail"]
    words += ["--new-session", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"]
    for name, value in env.items():
        words += ["--setenv", name, value]
    for path in system_paths():
        words += ["--symlink", os.readlink(path), path] if _is_merged(path) else ["--ro-bind", path, path]
    for folder in (HOME, "/tmp"):
        words += ["--size", str(limits.disk_bytes), "--tmpfs", folder]
    for folder in interpreter.folders:  # after those, since it may lie below one of them
        words += ["--ro-bind", folder, folder]
    # bubblewrap's /dev is a file system of its own without a size: it becomes read-only, but for a small folder of shared memory.
    words += ["--dev", "/dev", "--size", str(_SHARED_MEMORY), "--tmpfs", "/dev/shm", "--remount-ro", "/dev", "--proc", "/proc"]
    for name in _MASKED:
        if os.path.exists(f"/proc/{name}"):
            words += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    words += ["--remount-ro", "/", "--chdir", HOME, "--seccomp", str(filter_fd), "--", *argv]
    return words


def _is_merged(path: str) -> bool:
    """Whether a top folder is a link into /usr, as most distributions have them."""
    return os.path.islink(path) and os.path.dirname(path) == "/"
