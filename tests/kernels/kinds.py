"""The implementations that every law is tested on: the reference, and C at each instruction set that this processor runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from hypothesis import strategies as st

from herd.kernels import dispatch
from herd.kernels.build import LEVELS, QUANTISED_ONLY
from herd.kernels.library import Library

C_KINDS = [level for level in LEVELS if level not in QUANTISED_ONLY]
KINDS = ["reference", *C_KINDS]
DTYPES = [torch.float32, torch.bfloat16]
CACHE_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]

QUANTISED_KINDS = list(LEVELS)
"""Levels with products of quantised matrices of their own."""

kinds = pytest.mark.parametrize("kind", KINDS)
c_kinds = pytest.mark.parametrize("kind", C_KINDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])


def c_library() -> Library:
    """The library, or skip: a machine without a compiler has none."""
    library = dispatch.choice().library
    if library is None:
        pytest.skip(f"no C kernels here: {dispatch.choice().why}")
    return library


def any_of(names: Sequence[str]) -> st.SearchStrategy[str]:
    """Those that run here, for hypothesis: one example that skips would skip the test of all others."""

    def found() -> st.SearchStrategy[str]:
        library = dispatch.choice().library
        levels = ("reference", *(library.levels if library else ()))
        return st.sampled_from([name for name in names if name in levels] or [c_library().level])

    return st.deferred(found)


@contextmanager
def running(kind: str, *, threads: int | None = None) -> Iterator[Library | None]:
    """Run one implementation for a while; skips where the processor lacks it."""
    if kind == "reference":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HERD_KERNELS", "reference")
            dispatch.reload()
            before = torch.get_num_threads()
            torch.set_num_threads(threads or before)
            try:
                yield None
            finally:
                torch.set_num_threads(before)
        dispatch.reload()
        return
    library = c_library()
    if kind not in library.levels:
        pytest.skip(f"this processor does not run {kind}")
    level, count = library.level, library.num_threads
    library.level, library.num_threads = kind, threads or count
    try:
        yield library
    finally:
        library.level, library.num_threads = level, count


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, a NaN equal to itself."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))
