"""Memory of a step given back to the next one, not to the system: on glibc, where large buffers would be mapped and unmapped every time.

A training step takes and frees the same buffers again and again. glibc maps each one over some megabytes from the system and unmaps it when
it is freed, so that the system clears its pages anew in every step: a quarter of a step's time for a model of 110 million parameters.
Inside `kept_memory` they stay in the heap. Does nothing under another C library, and nothing for memory of a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Numbers of glibc's mallopt(3)."""
_LARGEST = 2**31 - 1
_KEPT = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: _LARGEST, _TOP_PAD: 2**26}
_USUAL = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17, _MMAP_MAX: 2**16}
"""Where glibc's own adjustment ends in a program with large buffers."""


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None


@contextmanager
def kept_memory() -> Iterator[bool]:
    """Keep freed memory in the process until the end, when it goes back to the system; gives whether that is possible here."""
    library = _glibc()
    if library is None:
        yield False
        return
    # An older glibc refuses so high a threshold; there nothing at all is mapped.
    taken = [library.mallopt(option, value) for option, value in _KEPT.items()]
    if not taken[0]:
        library.mallopt(_MMAP_MAX, 0)
    try:
        yield True
    finally:
        for option, value in _USUAL.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
