"""Parse the head of a GGUF file that may be damaged or hostile: every count, length and offset is held against the file first.

Nothing is allocated from a number that the file declares before the bytes that would fill it are known to be there, so a small
file costs little whatever it says. Knows no architecture: names and values are given as they are. The grammar is `gguf_format`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from mmap import mmap
from typing import Any

from herd.base.errors import CheckpointError
from herd.checkpoint.gguf_format import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    KIND_BY_CODE,
    KINDS,
    MAGIC,
    MAX_DIMS,
    MAX_NAME_BYTES,
    SCALAR_CODES,
    UNREAD_KINDS,
    VERSION,
    Array,
    Metadata,
    StoredTensor,
    Typed,
    ValueType,
    padded,
)

MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 64 * 2**20
MAX_ARRAY_VALUES = 2**24
MAX_ARRAY_DEPTH = 4
MAX_ALIGNMENT = 2**20
MAX_TENSOR_VALUES = 2**62

_FETCH_AGAIN = "the file is cut short or damaged: fetch it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a file says of itself, checked: every tensor lies in the file, aligned, and overlaps no other."""

    metadata: Metadata
    tensors: dict[str, StoredTensor]
    data_start: int


class _Cursor:
    """A place in the file that cannot leave it."""

    def __init__(self, data: mmap | bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def error(self, message: str, hint: str = _FETCH_AGAIN) -> CheckpointError:
        return CheckpointError(f"{self.where}, byte {self.at:,}: {message}", hint=hint)

    def need(self, num_bytes: int, what: str) -> None:
        if num_bytes > self.left:
            raise self.error(f"{what} needs {num_bytes:,} bytes, {self.left:,} are left in the file")

    def unpack(self, code: str, what: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + code)
        self.need(size, what)
        values = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return values

    def number(self, code: str, what: str) -> int:
        return self.unpack(code, what)[0]

    def string(self, what: str, limit: int = MAX_STRING_BYTES) -> str:
        size = self.number("Q", f"the length of {what}")
        if size > limit:
            raise self.error(f"{what} declares {size:,} bytes (limit {limit:,})")
        self.need(size, what)
        try:
            value = self.data[self.at : self.at + size].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 ({error.reason})") from error
        self.at += size
        return value

    def strings(self, count: int, what: str) -> tuple[str, ...]:
        """Many strings at once: a vocabulary has hundreds of thousands, and `string` would take seconds."""
        data, end, at, values = self.data, len(self.data), self.at, list[str]()
        while len(values) < count:
            size = int.from_bytes(data[at : at + 8], "little")
            stop = at + 8 + size
            try:
                if size > MAX_STRING_BYTES or stop > end:
                    break
                values.append(data[at + 8 : stop].decode())
            except UnicodeDecodeError:
                break
            at = stop
        self.at = at
        if len(values) < count:
            self.string(what)
            raise AssertionError("the string that stopped the loop is one that `string` refuses")
        return tuple(values)


def parse_header(data: mmap | bytes, where: str) -> Header:
    """Parse and check everything before the data. `where` names the file in errors. Raises CheckpointError."""
    cursor = _Cursor(data, where)
    _check_magic(cursor)
    num_tensors, num_keys = cursor.unpack("QQ", "the counts")
    cursor.need(num_keys * (8 + 4 + 1), f"{num_keys:,} keys")
    metadata: Metadata = {}
    for _ in range(num_keys):
        _read_key(cursor, metadata)
    alignment = _alignment(cursor, metadata)
    cursor.need(num_tensors * (8 + 4 + 8 + 4 + 8), f"{num_tensors:,} tensors")
    tensors: dict[str, StoredTensor] = {}
    for _ in range(num_tensors):
        tensor = _read_tensor(cursor)
        if tensor.name in tensors:
            raise cursor.error(f"tensor {tensor.name!r} is there twice")
        tensors[tensor.name] = tensor
    data_start = padded(cursor.at, alignment)
    _check_places(cursor, list(tensors.values()), data_start, alignment)
    return Header(metadata=metadata, tensors=tensors, data_start=data_start)


def _check_magic(cursor: _Cursor) -> None:
    if cursor.data[:4] != MAGIC:
        raise cursor.error(f"the file begins with {cursor.data[:4]!r}, not {MAGIC!r}", hint="this is not a GGUF file")
    cursor.at = 4
    version = cursor.number("I", "the version")
    if version == VERSION << 24:
        raise cursor.error("the file is big-endian", hint="convert it with gguf-convert-endian from the gguf package")
    if version != VERSION:
        raise cursor.error(
            f"GGUF version {version} (herd reads version {VERSION})", hint="convert the model again with a current llama.cpp"
        )


def _read_key(cursor: _Cursor, metadata: Metadata) -> None:
    key = cursor.string("a key", MAX_KEY_BYTES)
    if key in metadata:
        raise cursor.error(f"key {key!r} is there twice")
    kind = _value_type(cursor, key)
    metadata[key] = Typed(type=kind, value=_read_value(cursor, kind, key, 0))


def _value_type(cursor: _Cursor, key: str) -> ValueType:
    code = cursor.number("I", f"the type of {key!r}")
    try:
        return ValueType(code)
    except ValueError as error:
        raise cursor.error(f"key {key!r} has value type {code}, types are 0 to {max(ValueType)}") from error


def _read_value(cursor: _Cursor, kind: ValueType, key: str, depth: int) -> Any:
    if kind is ValueType.STRING:
        return cursor.string(f"the value of {key!r}")
    if kind is ValueType.ARRAY:
        return _read_array(cursor, key, depth + 1)
    return _scalars(cursor, kind, 1, key)[0]


def _scalars(cursor: _Cursor, kind: ValueType, count: int, key: str) -> Sequence[Any]:
    if kind is ValueType.BOOL:
        values = cursor.unpack(f"{count}B", f"{key!r}")
        if any(value > 1 for value in values):
            raise cursor.error(f"{key!r} holds a bool that is neither 0 nor 1")
        return tuple(map(bool, values))
    return cursor.unpack(f"{count}{SCALAR_CODES[kind]}", f"{key!r}")


def _read_array(cursor: _Cursor, key: str, depth: int) -> Array:
    if depth > MAX_ARRAY_DEPTH:
        raise cursor.error(f"{key!r} nests arrays deeper than {MAX_ARRAY_DEPTH}")
    item = _value_type(cursor, key)
    count = cursor.number("Q", f"the count of {key!r}")
    if count > MAX_ARRAY_VALUES:
        raise cursor.error(f"{key!r} declares {count:,} values (limit {MAX_ARRAY_VALUES:,})")
    if item in SCALAR_CODES:
        cursor.need(count * struct.calcsize("<" + SCALAR_CODES[item]), f"{key!r}")
        return Array(item=item, values=_scalars(cursor, item, count, key))
    cursor.need(count * (8 if item is ValueType.STRING else 12), f"{key!r}")
    if item is ValueType.STRING:
        return Array(item=item, values=cursor.strings(count, f"the value of {key!r}"))
    return Array(item=item, values=tuple(_read_value(cursor, item, key, depth) for _ in range(count)))


def _alignment(cursor: _Cursor, metadata: Metadata) -> int:
    typed = metadata.get(ALIGNMENT_KEY)
    if typed is None:
        return DEFAULT_ALIGNMENT
    value = typed.value
    if typed.type is not ValueType.UINT32 or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.error(f"{ALIGNMENT_KEY} is {value!r}, it must be a power of two from 8 to {MAX_ALIGNMENT:,}, as u32")
    return value


def _read_tensor(cursor: _Cursor) -> StoredTensor:
    name = cursor.string("a tensor name", MAX_NAME_BYTES)
    num_dims = cursor.number("I", f"the number of dimensions of {name!r}")
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.error(f"tensor {name!r} has {num_dims:,} dimensions, it may have 1 to {MAX_DIMS}")
    shape = cursor.unpack(f"{num_dims}Q", f"the dimensions of {name!r}")[::-1]
    code, offset = cursor.unpack("IQ", f"the kind and offset of {name!r}")
    kind = KIND_BY_CODE.get(code)
    if kind is None:
        known = UNREAD_KINDS.get(code, "unknown")
        raise cursor.error(
            f"tensor {name!r} is stored as type {code} ({known})", hint=f"herd reads {', '.join(KINDS)}; convert the model again"
        )
    _check_shape(cursor, name, shape, kind.block_values)
    return StoredTensor(name=name, shape=shape, kind=kind, offset=offset)


def _check_shape(cursor: _Cursor, name: str, shape: tuple[int, ...], block_values: int) -> None:
    num_values = 1
    for dim in shape:
        num_values *= dim
    if not 1 <= num_values <= MAX_TENSOR_VALUES:
        raise cursor.error(f"tensor {name!r} has shape {shape}, which is {num_values:,} values (from 1 to {MAX_TENSOR_VALUES:,})")
    if shape[-1] % block_values:
        raise cursor.error(f"tensor {name!r} has rows of {shape[-1]:,} values, which are no whole blocks of {block_values}")


def _check_places(cursor: _Cursor, tensors: list[StoredTensor], data_start: int, alignment: int) -> None:
    room = len(cursor.data) - data_start
    for tensor in tensors:
        if tensor.offset % alignment:
            raise cursor.error(f"tensor {tensor.name!r} is at offset {tensor.offset:,}, which is no multiple of {alignment}")
        if tensor.offset + tensor.size_bytes > room:
            raise cursor.error(
                f"tensor {tensor.name!r} takes {tensor.size_bytes:,} bytes at offset {tensor.offset:,}, "
                f"the file holds {max(room, 0):,} bytes of data"
            )
    for first, second in pairwise(sorted(tensors, key=lambda tensor: tensor.offset)):
        if first.offset + first.size_bytes > second.offset:
            raise cursor.error(f"tensors {first.name!r} and {second.name!r} overlap")
