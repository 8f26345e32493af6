"""forward: every block of a model in one call of C, for steps so short that calling sixty ops from Python would take most of their time.

Its numbers are the ops' own, called in the same order, so they are the same bits; `Forward.fits` says where it can stand in for them.
Only rows whose result is wanted pass through the second half of the last block. Checks a batch as `plan_batch` does, in C.
Shapes: T tokens, S sequences, R rows, W blocks of the longest sequence, D model dim, N query heads, K KV heads, H head dim, F ffn dim.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from herd.kernels import dispatch, library
from herd.kernels.caches import head_dim_of
from herd.kernels.checks import refuse
from herd.kernels.stored import PANELS, QUANTISED, StoredMatrix

if TYPE_CHECKING:
    from herd.kernels.buffer import Dtype, Memory


@runtime_checkable
class Angles(Protocol):
    """Cosines and sines of positions 0, 1, ..., float32 [P, H/2]; `rope.RopeTable` computes them."""

    def upto(self, num_positions: int) -> tuple[Any, Any]:
        """Tables of at least so many positions."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One block's weights and its caches."""

    norm: Memory
    qkv: StoredMatrix
    out: StoredMatrix
    ffn_norm: Memory
    gate_up: StoredMatrix
    down: StoredMatrix
    keys: Memory
    values: Memory


class _Layer(ctypes.Structure):
    """`herd_layer` of csrc/herd.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("norm", "ffn_norm", "keys", "values")),
        *((name, library.Matrix) for name in ("qkv", "out", "gate_up", "down")),
    ]


_POINTERS = ("layers", "norm", "embedding", "cos", "sin")
_ARENAS = ("residual", "normed", "qkv", "mixed", "ffn", "delta", "positions", "slots", "written")
_SIZES = ("num_layers", "vocab", "hidden", "ffn_dim", "heads", "kv_heads", "head_dim", "num_blocks", "block_size", "num_positions")


class _Model(ctypes.Structure):
    """`herd_model` of csrc/herd.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*_POINTERS, *_ARENAS)),
        *((name, ctypes.c_int64) for name in (*_SIZES, "dtype", "cache_dtype")),
        *((name, ctypes.c_double) for name in ("eps", "scale")),
        ("head", library.Matrix),
    ]


class _Batch(ctypes.Structure):
    """`herd_batch` of csrc/herd.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("tokens", "starts", "first", "table", "rows", "scores")),
        *((name, ctypes.c_int64) for name in ("num_sequences", "num_rows", "table_stride", "num_scores", "scores_stride")),
    ]


class Forward:
    """A model's blocks. Everything is laid out once; a call passes two pointers.

    `embedding` is None where the rows of `head` are the embedding. `arenas` are working space, [most tokens, width] each: residual, normed
    and delta of D, qkv of (N + 2K) H, mixed of N H, ffn of F. `scores` [rows, V] is where `score` writes, float32.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        norm: Memory,
        head: StoredMatrix,
        embedding: Memory | None,
        rope: Angles,
        num_heads: int,
        eps: float,
        arenas: Mapping[str, Memory],
        scores: Memory,
    ) -> None:
        first = blocks[0]
        num_blocks, block_size, kv_heads, _ = first.keys.shape
        head_dim = head_dim_of(first.keys)
        self._arenas, self._max_tokens = dict(arenas), len(arenas["normed"])
        self._places = np.empty((2, self._max_tokens), dtype=np.int64)
        self._written = np.zeros(num_blocks * block_size, dtype=np.uint8)
        self._layers = (_Layer * len(blocks))(*(_layer(block) for block in blocks))
        self._kept = (list(blocks), norm, head, embedding)
        self._rope, self._scores, self._scores_at, self._scored = rope, scores.numpy(), scores.data_ptr(), False
        self._angles = rope.upto(0)
        self._width = scores.shape[1]
        normed = arenas["normed"]
        self._normed, self._row_bytes = normed.data_ptr(), normed.stride(0) * normed.itemsize
        self._matrix, self._head = head.matrix(), head
        weights = head.data.data_ptr() if head.quant is None else ctypes.byref(self._matrix)
        shape = (head.num_outputs, head.num_inputs, library.code(head.dtype), library.STORE)
        self._head_call = (weights, *shape, None, 0, scores.data_ptr(), scores.stride(0), library.code(scores.dtype))
        self._model = _Model(
            layers=ctypes.addressof(self._layers),
            norm=norm.data_ptr(),
            head=self._matrix,
            embedding=None if embedding is None else embedding.data_ptr(),
            positions=self._places[0].ctypes.data,
            slots=self._places[1].ctypes.data,
            written=self._written.ctypes.data,
            num_layers=len(blocks),
            vocab=head.num_outputs if embedding is None else len(embedding),
            hidden=first.qkv.num_inputs,
            ffn_dim=first.gate_up.num_outputs,
            heads=num_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            num_blocks=num_blocks,
            block_size=block_size,
            num_positions=0,
            dtype=library.code(head.dtype),
            cache_dtype=library.cache_code(first.keys.dtype),
            eps=eps,
            scale=head_dim**-0.5,
            **{name: arena.data_ptr() for name, arena in self._arenas.items()},
        )

    @staticmethod
    def fits(head: StoredMatrix, embedding: Memory | None, *, num_heads: int, kv_heads: int, head_dim: int, cache_dtype: Dtype) -> bool:
        """Whether C knows a model of these shapes and a cache of this dtype, and the embedding lies in one piece."""
        shaped = head_dim <= library.MAX_HEAD_DIM and head_dim % 2 == 0 and num_heads // kv_heads <= library.MAX_GROUP
        return (
            shaped
            and library.cache_code(cache_dtype) is not None
            and head.layout in (PANELS, QUANTISED)
            and (embedding is None or embedding.is_contiguous())
        )

    @property
    def available(self) -> bool:
        """Whether C runs at all, now."""
        return dispatch.choice().library is not None

    def __call__(
        self,
        tokens_T: NDArray[np.int32],
        *,
        first_S: NDArray[np.int32],
        starts: NDArray[np.int32],
        block_table_SW: NDArray[np.int32],
        rows_R: NDArray[np.int64],
    ) -> None:
        """Leave the wanted rows of the last block, normalised, in their arena, and their scores.

        Raises ConfigError as `plan_batch`, with nothing written.
        """
        assert len(tokens_T) == starts[-1] <= self._max_tokens, "more tokens than the arenas hold"
        rows = len(rows_R)
        most = int((first_S + starts[1:] - starts[:-1]).max(initial=0))
        if most > self._model.num_positions:
            # Kept, since others who use the table may make a longer one of it, and C goes on reading this.
            self._angles = cos, sin = self._rope.upto(most)
            self._model.cos, self._model.sin, self._model.num_positions = cos.data_ptr(), sin.data_ptr(), len(cos)
        if most > block_table_SW.shape[1] * self._model.block_size:
            self._refuse(tokens_T, first_S, np.diff(starts), block_table_SW)
        table_SW = block_table_SW if _has_rows(block_table_SW) else np.ascontiguousarray(block_table_SW, dtype=np.int32)
        narrow = [np.ascontiguousarray(array, dtype=np.int32) for array in (tokens_T, starts, first_S)]
        arrays = [*narrow, table_SW, np.ascontiguousarray(rows_R, dtype=np.int64)]
        pointers = [array.__array_interface__["data"][0] for array in arrays]
        self._scored = rows <= len(self._scores)
        sizes = (len(first_S), rows, table_SW.strides[0] // table_SW.itemsize, self._width, self._width)
        batch = _Batch(*pointers, self._scores_at if self._scored else None, *sizes)
        status = _library().forward(ctypes.byref(self._model), ctypes.byref(batch))
        if status == library.BAD_BATCH:
            self._refuse(tokens_T, first_S, np.diff(starts), block_table_SW)
        library.raise_for(status)

    def score(self, first: int, count: int) -> NDArray[np.float32]:
        """Scores [count, V] of wanted rows first and after, in their arena. Where it holds all of them, they are there already."""
        assert count <= len(self._scores), "more rows than the arena holds"
        if self._scored:
            return self._scores[first : first + count]
        stride = self._model.hidden
        run = _library().linear if self._head.quant is None else _library().linear_quantised
        library.raise_for(run(self._normed + first * self._row_bytes, stride, count, *self._head_call))
        return self._scores[:count]

    def _refuse(
        self, tokens_T: NDArray[np.int32], first_S: NDArray[np.int32], lengths_S: NDArray[np.int32], table: NDArray[np.int32]
    ) -> None:
        """Say what C found wrong."""
        from herd.kernels.batch import plan_batch

        plan_batch(table, first=first_S, lengths=lengths_S, num_blocks=self._model.num_blocks, block_size=self._model.block_size)
        wrong = tokens_T[(tokens_T < 0) | (tokens_T >= self._model.vocab)]
        if len(wrong):
            raise refuse(f"the id {wrong[0]} is none of 0 to {self._model.vocab - 1}", "check the token ids against the vocabulary")


def _has_rows(table: NDArray[np.int32]) -> bool:
    """Whether C can walk a table as it lies: rows of one piece each, whatever is between them."""
    return table.dtype == np.int32 and table.strides[1] == table.itemsize and table.strides[0] % table.itemsize == 0


def _library() -> library.Library:
    found = dispatch.choice().library
    assert found is not None, "nothing but C runs this"
    return found


def _layer(block: Block) -> _Layer:
    matrices = {name: getattr(block, name).matrix() for name in ("qkv", "out", "gate_up", "down")}
    others = {name: getattr(block, name).data_ptr() for name in ("norm", "ffn_norm", "keys", "values")}
    return _Layer(**matrices, **others)
