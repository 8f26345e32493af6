"""A weight matrix as its kernel reads it, wherever its bytes lie: what C is told of it. No torch; `linear` has the ops over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from herd.kernels import library

if TYPE_CHECKING:
    from herd.kernels.buffer import Dtype, Memory

PANELS, ROWS, QUANTISED = "panels", "rows", "quantised"


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantFormat:
    """How a quantised matrix is stored, in the words of `herd_matrix` of csrc/herd.h; made by `packed_quant`.

    `codes` is one of `library.INTEGERS`, `E4M3` and `E4M3_INPUTS`; the last has a `bound`, 0 where nothing caps the inputs.
    """

    bits: int
    group: int
    input_group: int
    scale_dtype: str
    zeros: bool
    codes: int = library.INTEGERS
    bound: float = 0.0

    def matrix(self, data: int | None = None, columns: int | None = None, size_bytes: int = 0) -> library.Matrix:
        """The struct, over memory at `data`."""
        sizes = (self.bits, self.group, self.input_group, library.code(self.scale_dtype), int(self.zeros), size_bytes)
        return library.Matrix(data, columns, *sizes, self.codes, self.bound)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredMatrix:
    """A weight matrix in one of the layouts. `gated`: gate and up of `num_outputs` rows each.

    `dtype` is of inputs and outputs, and of the weights where `quant` is None. `columns`: the input that each stored column belongs to.
    """

    data: Memory
    num_outputs: int
    num_inputs: int
    dtype: Dtype
    layout: str
    gated: bool = False
    quant: QuantFormat | None = None
    columns: Memory | None = None

    def matrix(self) -> library.Matrix:
        """What C is told of it; the struct points into `data` and `columns`."""
        data, size = self.data.data_ptr(), self.data.nbytes
        if self.quant is None:
            return library.Matrix(data=data, bytes=size)
        return self.quant.matrix(data, None if self.columns is None else self.columns.data_ptr(), size)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights, padding included."""
        return self.data.nbytes

    @property
    def num_parts(self) -> int:
        """Matrices whose panels alternate."""
        return 2 if self.gated else 1

    @property
    def num_rows(self) -> int:
        """Rows of the matrix: the outputs, twice when gated."""
        return self.num_outputs * self.num_parts
