"""Which implementation of each op runs: C at the best instruction set of the processor, or the torch reference. Decided once, at first use.

    HERD_KERNELS=reference     the oracle everywhere
    HERD_KERNELS=triton        on a CPU the GPU's kernels, in Triton's interpreter: to test them, very slowly
    HERD_KERNELS_ISA=LEVEL     C at that level: scalar, avx2, avx512, avx512vnni, avx512bf16, amx or neon

C runs for float32 and bfloat16 on a CPU, the engine's GPU runner runs Triton's kernels, and everything else runs the reference. Without a
compiler and without a shipped library the reference runs too, and one line in the log says so. `table()` is what `herd doctor` prints.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from herd.base.errors import ConfigError, HerdError, did_you_mean
from herd.base.log import get_logger
from herd.kernels import build
from herd.kernels.buffer import dtype_name
from herd.kernels.library import Library
from herd.kernels.triton import runtime

if TYPE_CHECKING:
    import torch

    from herd.kernels.buffer import Dtype

_LOG = get_logger(__name__)
OPS = ("linear", "linear_quantised", "rms_norm", "swiglu", "cross_entropy", "causal_softmax", "rope_write", "paged_attention")
NATIVE_DTYPES = ("float32", "bfloat16")
_KINDS = ("auto", "reference", "triton")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What was chosen at load: the library, or None for the reference, and why."""

    library: Library | None
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table: an op, a device, a dtype and what runs it."""

    op: str
    device: str
    dtype: str
    runs: str
    why: str


def usable_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def choice() -> Choice:
    """The choice for this process. Raises ConfigError for a variable that names nothing, or a level that this processor lacks."""
    kind = os.environ.get("HERD_KERNELS") or "auto"
    if kind not in _KINDS:
        raise ConfigError(f"HERD_KERNELS={kind!r} means nothing", hint=did_you_mean(kind, _KINDS, otherwise="values: " + ", ".join(_KINDS)))
    level = os.environ.get("HERD_KERNELS_ISA")
    if level and level not in build.LEVELS:
        hint = did_you_mean(level, build.LEVELS, otherwise="levels: " + ", ".join(build.LEVELS))
        raise ConfigError(f"HERD_KERNELS_ISA={level!r} is no instruction set that herd has kernels for", hint=hint)
    if kind != "auto":
        return Choice(library=None, why=f"HERD_KERNELS={kind}")
    try:
        library = _load()
    except (HerdError, OSError) as error:
        why = error.message if isinstance(error, HerdError) else str(error)
        hint = error.hint if isinstance(error, HerdError) else None
        _LOG.info(
            "running the torch reference instead of the C kernels, which is several times slower: %s; %s", why, hint or "see herd doctor"
        )
        return Choice(library=None, why=why)
    if level and level not in library.levels:
        raise ConfigError(
            f"HERD_KERNELS_ISA={level} asks for what this processor does not run", hint="it runs: " + ", ".join(library.levels)
        )
    library.level = level or library.levels[-1]
    library.num_threads = usable_cores()
    return Choice(library=library, why="HERD_KERNELS_ISA" if level else "the best that this processor runs")


def _load() -> Library:
    """The shipped library, else the cached one; a cached file that does not load is built anew, once."""
    shipped = build.shipped_library()
    if shipped is not None:
        try:
            return Library(shipped)
        except OSError as error:
            _LOG.debug("the shipped library does not load: %s", error)
    path = build.build()
    try:
        return Library(path)
    except OSError as error:
        _LOG.debug("building anew: %s", error)
        path.unlink(missing_ok=True)
        return Library(build.build())


def _asks_for_fixed_order() -> bool:
    return os.environ.get("HERD_KERNELS") == "reference"


_fixed_order = _asks_for_fixed_order()  # a plain value: torch.compile warns of a cached function, and looks through its cache


def fixed_order() -> bool:
    """Whether every op is to sum in the references' order, those of training too: HERD_KERNELS=reference."""
    return _fixed_order


_traced_for: str | None = None


@contextmanager
def traced_for(device_type: str) -> Iterator[None]:
    """Kernels are chosen as on such a device ("cpu", "cuda"), while tensors that hold nothing lie on the CPU."""
    global _traced_for
    before, _traced_for = _traced_for, device_type
    try:
        yield
    finally:
        _traced_for = before


def device_type(device: torch.device) -> str:
    """What kernels are chosen for: the device's type, or what a trace stands for."""
    return _traced_for or device.type


def native(device: torch.device, dtype: torch.dtype) -> Library | None:
    """The library, where C runs for this device and dtype; else None, and the reference runs."""
    return native_on_cpu(dtype) if device_type(device) == "cpu" else None


def native_on_cpu(dtype: Dtype) -> Library | None:
    """The library, where C runs for this dtype on a CPU."""
    return choice().library if dtype_name(dtype) in NATIVE_DTYPES else None


def runs_triton(device: torch.device) -> bool:
    """Whether the engine runs a model on this device by Triton's kernels. Raises ConfigError where that is asked for and cannot be."""
    kind = os.environ.get("HERD_KERNELS") or "auto"
    if kind == "triton":
        runtime.require(device)
        return True
    return kind == "auto" and device.type == "cuda" and runtime.why_not(device) is None


def table() -> list[Row]:
    """What runs, for every op: one row for the dtypes that C knows on a CPU, one for all else."""
    import torch

    chosen = choice()
    named = " and ".join(NATIVE_DTYPES)
    library = chosen.library
    runs = f"C, {library.level}, {library.num_threads} threads" if library else "torch reference"
    rows = [Row(op=op, device="cpu", dtype=named, runs=runs, why=chosen.why) for op in OPS]
    there = runtime.why_not(torch.device("cuda")) is None
    on_gpu = Row(
        op="all of the engine", device="cuda", dtype="any", runs="Triton" if there else "torch reference",
        why="the GPU runner's kernels" if there else "triton is not installed, or interpreted",
    )  # fmt: skip
    return [*rows, on_gpu, Row(op="all", device="any other", dtype="any", runs="torch reference", why="no kernel yet")]


def set_num_threads(count: int) -> None:
    """Let `count` threads work on a call of a C kernel. Results do not depend on it. Raises ConfigError below 1."""
    if count < 1:
        raise ConfigError(f"{count} threads cannot work", hint=f"give 1 to {usable_cores()}, the cores of this process")
    library = choice().library
    if library is not None:
        library.num_threads = count


def num_threads() -> int:
    """Threads that work on a call: of the C kernels, or of torch where the reference runs."""
    library = choice().library
    if library is not None:
        return library.num_threads
    import torch

    return torch.get_num_threads()


def reload() -> None:
    """Forget the choice, so that the variables are read again. Weights packed before keep their layout and still work."""
    global _fixed_order
    choice.cache_clear()
    _fixed_order = _asks_for_fixed_order()


@functools.cache
def loaded() -> Library:
    """The library, whatever the choice: for tests and for weights that were packed before the reference was forced."""
    return _load()
