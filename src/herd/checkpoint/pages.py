"""Give the pages of a mapped file back, so that streaming through a large file needs the memory of one tensor.

A page of a mapping that was only read is a copy of the file; the kernel may drop it and read it again. Without this they pile up in the
process's resident memory until something else wants it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

from torch import Tensor

_DONTNEED: int | None = getattr(mmap, "MADV_DONTNEED", None)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if _DONTNEED is None:
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def forget_pages(tensor: Tensor) -> None:
    """Drop the whole pages below a contiguous tensor that lies over a privately mapped file and was never written to.

    Pages that reach over its ends stay. Never call it for a tensor in ordinary memory: its values would be lost.
    """
    madvise = _madvise()
    if madvise is None or not tensor.numel():
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin and _DONTNEED is not None:
        madvise(begin, end - begin, _DONTNEED)
