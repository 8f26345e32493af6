"""GGUF version 3: its constants, its typed values and how they are packed; the parser of hostile files is `gguf_header`.

    magic "GGUF" | version u32 | tensor count u64 | key count u64
    keys:     name string | type u32 | value
    tensors:  name string | number of dims u32 | dims u64, fastest first | kind u32 | offset u64, from the start of the data
    padding to the alignment | data, each tensor padded to the alignment
A string is a u64 length and UTF-8 bytes; an array is an element type u32, a u64 count and the elements. All little-endian.
Knows nothing of Llama. Source: the GGUF specification in the ggml repository, docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Any

from herd.base.errors import UsageError

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
MAX_DIMS = 4
MAX_NAME_BYTES = 63
"""ggml keeps names in 64 bytes, the last of them zero."""


class ValueType(IntEnum):
    """The 13 types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_CODES: Mapping[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
"""The `struct` code of each type of fixed size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """How a tensor is stored: blocks of `block_values` values that take `block_bytes` bytes each. `code` is ggml's type id."""

    name: str
    code: int
    block_values: int
    block_bytes: int

    def size_bytes(self, num_values: int) -> int:
        """Bytes of that many values, which are whole blocks."""
        return num_values // self.block_values * self.block_bytes


def _kinds(*rows: tuple[str, int, int, int]) -> dict[str, Kind]:
    return {name: Kind(name=name, code=code, block_values=values, block_bytes=size) for name, code, values, size in rows}


KINDS: Mapping[str, Kind] = _kinds(
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 2 + 16),
    ("Q4_1", 3, 32, 4 + 16),
    ("Q5_0", 6, 32, 2 + 4 + 16),
    ("Q5_1", 7, 32, 4 + 4 + 16),
    ("Q8_0", 8, 32, 2 + 32),
    ("Q4_K", 12, 256, 4 + 12 + 128),
    ("Q5_K", 13, 256, 4 + 12 + 32 + 128),
    ("Q6_K", 14, 256, 128 + 64 + 16 + 2),
    ("BF16", 30, 1, 2),
)
"""The kinds that herd reads."""

KIND_BY_CODE: Mapping[int, Kind] = {kind.code: kind for kind in KINDS.values()}

UNREAD_KINDS: Mapping[int, str] = (
    {9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"}
    | {20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
    | {29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"}
)
"""Kinds that exist and that herd does not read: named in the refusal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Array:
    """An array of values of one type; where `item` is ARRAY its values are Arrays."""

    item: ValueType
    values: Sequence[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Typed:
    """A metadata value and its type: a number, a bool, a string or an Array."""

    type: ValueType
    value: Any


Metadata = dict[str, Typed]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor of the file: its shape (slowest dimension first, as torch has it), its kind, its byte offset from the start of the data."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes of its blocks, without padding."""
        return self.kind.size_bytes(prod(self.shape))


def u32(value: int) -> Typed:
    """An unsigned 32-bit value: what llama.cpp uses for counts and ids. Raises UsageError where it does not fit."""
    if not 0 <= value < 2**32:
        raise UsageError(f"{value} does not fit an unsigned 32-bit GGUF value", hint="this model cannot be written as GGUF")
    return Typed(type=ValueType.UINT32, value=value)


def f32(value: float) -> Typed:
    """A 32-bit float: what llama.cpp uses for epsilon and theta."""
    return Typed(type=ValueType.FLOAT32, value=value)


def f64(value: float) -> Typed:
    """A 64-bit float: exact for Python's."""
    return Typed(type=ValueType.FLOAT64, value=value)


def text(value: str) -> Typed:
    """A string."""
    return Typed(type=ValueType.STRING, value=value)


def flag(value: bool) -> Typed:
    """A bool."""
    return Typed(type=ValueType.BOOL, value=value)


def array(item: ValueType, values: Sequence[Any]) -> Typed:
    """An array of one type."""
    return Typed(type=ValueType.ARRAY, value=Array(item=item, values=values))


def padded(size_bytes: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-size_bytes // alignment) * alignment


def pack_string(value: str) -> bytes:
    """A string with its length."""
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def pack_value(kind: ValueType, value: Any) -> bytes:
    """A value without its type."""
    if kind is ValueType.STRING:
        return pack_string(value)
    if kind is not ValueType.ARRAY:
        return struct.pack("<" + SCALAR_CODES[kind], value)
    head = struct.pack("<IQ", value.item, len(value.values))
    if value.item in SCALAR_CODES:
        return head + struct.pack(f"<{len(value.values)}{SCALAR_CODES[value.item]}", *value.values)
    return head + b"".join(pack_value(value.item, item) for item in value.values)


def pack_header(metadata: Metadata, tensors: Sequence[StoredTensor], alignment: int = DEFAULT_ALIGNMENT) -> bytes:
    """Everything that precedes the data, padding included."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, typed in metadata.items():
        parts += [pack_string(key), struct.pack("<I", typed.type), pack_value(typed.type, typed.value)]
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts += [pack_string(tensor.name), struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.kind.code, tensor.offset)]
    header = b"".join(parts)
    return header.ljust(padded(len(header), alignment), b"\0")
