"""An array in the process's memory as the kernels take one, without torch: an address, a shape and the name of a dtype.

numpy has no bfloat16 and no fp8, so a buffer is bytes; `tensor` is the same memory for torch, `numpy` for what numpy knows. Buffers lie in
one piece. `Memory` is what `forward` takes: a tensor or a buffer, which answer to the same words.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from herd.kernels import memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Dtype = torch.dtype | str

_NUMPY = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32, "int8": np.int8, "uint8": np.uint8}
_ITEM_BYTES = {**{name: np.dtype(kind).itemsize for name, kind in _NUMPY.items()}, "bfloat16": 2, "float8_e4m3fn": 1}


@cache
def dtype_name(dtype: Dtype) -> str:
    """A dtype's name: "bfloat16" for torch.bfloat16 and for itself."""
    return str(dtype).removeprefix("torch.")


class Buffer:
    """Bytes, the name of the dtype that they are of, and a shape."""

    __slots__ = ("_bytes", "dtype", "shape")

    def __init__(self, data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> None:
        assert data.nbytes == math.prod(shape) * _ITEM_BYTES[dtype], "bytes of another shape"
        self._bytes, self.dtype, self.shape = data, dtype, shape

    @staticmethod
    def zeros(shape: tuple[int, ...], dtype: str) -> Buffer:
        """New memory, as `memory.zero_bytes` gives it."""
        return Buffer(memory.zero_bytes(math.prod(shape) * _ITEM_BYTES[dtype]), dtype, shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Buffer:
        """The part at a place of the first dimension, over the same memory."""
        size = self.nbytes // len(self)
        return Buffer(self._bytes[index * size : (index + 1) * size], self.dtype, self.shape[1:])

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return _ITEM_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of it all."""
        return self._bytes.nbytes

    def data_ptr(self) -> int:
        """The address of the first element."""
        return self._bytes.__array_interface__["data"][0]

    def stride(self, dim: int) -> int:
        """Elements from one index of a dimension to the next."""
        return math.prod(self.shape[dim + 1 :])

    def is_contiguous(self) -> bool:
        """Always."""
        return True

    def numpy(self) -> NDArray[Any]:
        """The same memory for numpy. Raises KeyError for a dtype that numpy does not have."""
        return self._bytes.view(_NUMPY[self.dtype]).reshape(self.shape)

    def bytes(self) -> NDArray[np.uint8]:
        """The bytes of each element of the first dimension, [N, bytes]."""
        return self._bytes.reshape(len(self), -1)

    def tensor(self) -> Tensor:
        """The same memory for torch."""
        import torch

        return torch.from_numpy(self._bytes).view(getattr(torch, self.dtype)).view(self.shape)


if TYPE_CHECKING:
    Memory = Tensor | Buffer
