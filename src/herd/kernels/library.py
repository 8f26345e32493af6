"""The C library as Python sees it: prototypes of `csrc/herd.h`, dtypes as its codes, statuses as errors.

Calls release the interpreter's lock. Nothing is checked here: the ops validate shapes, strides, dtypes and bounds before they call.
"""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING

from herd.base.errors import DoesNotFitError
from herd.kernels.buffer import dtype_name
from herd.kernels.build import LEVELS

if TYPE_CHECKING:
    from herd.kernels.buffer import Dtype

ABI = 8
PANEL = 32
SPLIT = 128
MAX_HEAD_DIM = 128
MAX_GROUP = 64
GRADIENT_ROWS = 64
STORE, ADD, SWIGLU = 0, 1, 2
INTEGERS, E4M3, E4M3_INPUTS = 0, 1, 2
CODES = {"float32": 0, "bfloat16": 1, "float16": 2}
CACHE_CODES = {**CODES, "int8": 3}
_NO_MEMORY, BAD_BATCH = 1, 3

_POINTER_THEN_STRIDE = (c_void_p, c_int64)


class Matrix(ctypes.Structure):
    """`herd_matrix` of csrc/herd.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("data", "columns")),
        *((name, c_int64) for name in ("bits", "group", "input_group", "scale_dtype", "zeros", "bytes", "codes")),
        ("bound", c_double),
    ]


_PROTOTYPES: dict[str, tuple[type, ...]] = {
    "herd_pack": (*_POINTER_THEN_STRIDE, c_int64, c_int64, c_int, c_void_p, c_int64, c_int64, c_int64),
    "herd_unpack": (c_void_p, c_int64, c_int, c_int64, c_int64, c_void_p, c_int64, *_POINTER_THEN_STRIDE),
    "herd_linear": (
        *(*_POINTER_THEN_STRIDE, c_int64, c_void_p, c_int64, c_int64, c_int, c_int),
        *(*_POINTER_THEN_STRIDE, *_POINTER_THEN_STRIDE, c_int),
    ),
    "herd_pack_quantised": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_int64, c_int64),
    "herd_unpack_quantised": (c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, *_POINTER_THEN_STRIDE, c_int),
    "herd_quantised_bytes": (c_void_p, c_int64, c_int64, c_int),
    "herd_linear_quantised": (
        *(*_POINTER_THEN_STRIDE, c_int64, c_void_p, c_int64, c_int64, c_int, c_int),
        *(*_POINTER_THEN_STRIDE, *_POINTER_THEN_STRIDE, c_int),
    ),
    "herd_rms_norm": (*_POINTER_THEN_STRIDE, *_POINTER_THEN_STRIDE, c_void_p, c_double, c_int64, c_int64, c_int, *_POINTER_THEN_STRIDE),
    "herd_swiglu": (*_POINTER_THEN_STRIDE, *_POINTER_THEN_STRIDE, c_int64, c_int64, c_int, *_POINTER_THEN_STRIDE),
    "herd_rms_norm_gradient": (c_void_p, c_void_p, c_void_p, c_double, c_int64, c_int64, c_int, c_void_p, c_void_p, c_void_p),
    "herd_swiglu_gradient": (c_void_p, c_void_p, c_void_p, c_int64, c_int, c_void_p, c_void_p),
    "herd_rotate": (c_void_p, c_int64, c_int64, c_int64, c_int, c_void_p, c_void_p, c_int64, c_int64, c_void_p),
    "herd_cross_entropy": (*_POINTER_THEN_STRIDE, c_int64, c_int64, c_int, c_void_p, c_int64, c_double, c_int, c_void_p, c_void_p),
    "herd_softmax": (c_void_p, c_int64, c_int64, c_int64, c_int64, c_float, c_void_p, c_int),
    "herd_softmax_gradient": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_int),
    "herd_rope_write": (
        *(*_POINTER_THEN_STRIDE, *_POINTER_THEN_STRIDE, *_POINTER_THEN_STRIDE, c_int, c_int64, c_int64, c_int64, c_int64),
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int),
    ),
    "herd_attention": (
        *(*_POINTER_THEN_STRIDE, c_int, c_int64, c_int64, c_int64, c_float, c_void_p, c_void_p, c_int, c_int64),
        *(*_POINTER_THEN_STRIDE, c_void_p, c_void_p, c_int64, *_POINTER_THEN_STRIDE),
    ),
    "herd_forward": (c_void_p, c_void_p),
    "herd_draw": (*_POINTER_THEN_STRIDE, c_int64, c_int64, c_void_p, c_void_p),
    "herd_read": (c_void_p, c_int64),
    "herd_pool_stress": (c_int64, c_int64),
    "herd_isa_built": (c_int,),
    "herd_isa_supported": (c_int,),
    "herd_set_isa": (c_int,),
    "herd_isa": (),
    "herd_num_threads": (),
}


class Library:
    """A loaded library. Its functions are attributes; `level` is the instruction set in use. Raises OSError if it is not one of ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        loaded = ctypes.CDLL(str(path))
        if not hasattr(loaded, "herd_abi") or loaded.herd_abi() != ABI:
            raise OSError(f"{path} is not a kernel library of ABI {ABI}")
        for name, types in _PROTOTYPES.items():
            if not hasattr(loaded, name):
                raise OSError(f"{path} lacks {name}")
            getattr(loaded, name).argtypes = types
        loaded.herd_set_num_threads.argtypes = (c_int,)
        loaded.herd_set_num_threads.restype = None
        loaded.herd_set_spin.argtypes = (c_int64,)
        loaded.herd_set_spin.restype = None
        self.pack = loaded.herd_pack
        self.unpack = loaded.herd_unpack
        self.linear = loaded.herd_linear
        loaded.herd_quantised_bytes.restype = c_int64
        self.pack_quantised = loaded.herd_pack_quantised
        self.unpack_quantised = loaded.herd_unpack_quantised
        self.quantised_bytes = loaded.herd_quantised_bytes
        self.linear_quantised = loaded.herd_linear_quantised
        self.rms_norm = loaded.herd_rms_norm
        self.swiglu = loaded.herd_swiglu
        self.rms_norm_gradient = loaded.herd_rms_norm_gradient
        self.swiglu_gradient = loaded.herd_swiglu_gradient
        self.rotate = loaded.herd_rotate
        self.cross_entropy = loaded.herd_cross_entropy
        self.softmax = loaded.herd_softmax
        self.softmax_gradient = loaded.herd_softmax_gradient
        self.rope_write = loaded.herd_rope_write
        self.attention = loaded.herd_attention
        self.forward = loaded.herd_forward
        self.draw = loaded.herd_draw
        self.read = loaded.herd_read
        self.pool_stress = loaded.herd_pool_stress
        self.set_spin = loaded.herd_set_spin
        self._loaded = loaded

    @property
    def levels(self) -> list[str]:
        """The instruction sets that the library holds and this processor runs, the plainest first."""
        return [name for index, name in enumerate(LEVELS) if self._loaded.herd_isa_supported(index)]

    @property
    def level(self) -> str:
        """The instruction set in use."""
        return list(LEVELS)[self._loaded.herd_isa()]

    @level.setter
    def level(self, name: str) -> None:
        if self._loaded.herd_set_isa(list(LEVELS).index(name)):
            raise AssertionError(f"level {name} is not among {self.levels}")

    @property
    def num_threads(self) -> int:
        """Threads that work on a call, the caller's among them."""
        return self._loaded.herd_num_threads()

    @num_threads.setter
    def num_threads(self, count: int) -> None:
        self._loaded.herd_set_num_threads(count)


def code(dtype: Dtype) -> int:
    """The code of a dtype of weights and activations. Raises KeyError for one that C does not know."""
    return CODES[dtype_name(dtype)]


def cache_code(dtype: Dtype) -> int | None:
    """The code of a cache's dtype, None for one that C does not know."""
    return CACHE_CODES.get(dtype_name(dtype))


def raise_for(status: int) -> None:
    """Turn a status into an error."""
    if status == _NO_MEMORY:
        raise DoesNotFitError("no memory for a kernel's working space", hint="use fewer or shorter prompts at once, or a smaller chunk")
    assert status == 0, f"kernel status {status}: the arguments should have been refused before"
