"""Whether the kernel has Landlock, and which version. The jail itself is made in `stage`.

Landlock denies what no rule allows: files by path, TCP by port (version 4), signals and abstract sockets beyond the jail (version 6).
"""

from __future__ import annotations

import ctypes
import sys

_CREATE_RULESET = 444
_VERSION_FLAG = 1
MIN_ABI = 4
"""Below it only seccomp would stand between a jail and TCP; two fences are wanted."""
MIN_ABI_SAME_USER = 6
"""Where the jail cannot have a uid of its own, signals to the user's other processes must be denied too."""


def abi() -> int:
    """The version of Landlock that the kernel has, 0 for none."""
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)))
