"""One .safetensors file: a header that is checked before anything is mapped or allocated, tensors read one at a time, and a writer.

The format: eight bytes, the header's length little-endian; the header, a JSON object {name: {dtype, shape, data_offsets: [begin, end]}}
with an optional __metadata__ of strings; the data, in which the tensors lie without hole or overlap. Knows nothing of models.
Source: the format's README in huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.base.errors import CheckpointError, DoesNotFitError, NotFoundError
from herd.checkpoint.json_file import MAX_JSON_BYTES, parse_json_object
from herd.checkpoint.pages import forget_pages

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of dtypes."""

DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
_HINT = "the file is damaged or was made by a faulty writer: download or convert it again"
_ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor of a file: its dtype's code, its shape, and where its bytes begin and end in the file."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype."""
        return DTYPES[self.code]


class SafetensorsFile:
    """A file that is open for reading; `entries` is checked against the file's size. Raises CheckpointError, NotFoundError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - held until close()
        except OSError as error:
            raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error
        try:
            self.size_bytes = path.stat().st_size
            self.entries, self.metadata = _read_header(self._file.read, self.size_bytes, path.name)
        except BaseException:
            self._file.close()
            raise
        self._map: mmap.mmap | None = None

    def read(self, name: str) -> Tensor:
        """A copy of one tensor in memory of its own."""
        entry = self.entries[name]
        raw = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
        if raw.numel():
            self._file.seek(entry.begin)
            if self._file.readinto(raw.numpy().data) != raw.numel():
                raise CheckpointError(f"{self.path.name} ended inside {name}", hint="something cut the file while it was read")
        return raw.view(entry.dtype).reshape(entry.shape)

    def map(self, name: str) -> Tensor:
        """A tensor over the mapped file: no memory until it is touched, and private (copy on write): changing it leaves the file as it is.

        It stays valid after `close`. The file must not be shortened in place while it lives; replacing it by a rename is safe.
        """
        entry = self.entries[name]
        if entry.begin == entry.end or entry.begin % entry.dtype.itemsize:
            return self.read(name)
        if self._map is None:
            self._map = mmap.mmap(self._file.fileno(), self.size_bytes, access=mmap.ACCESS_COPY)
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin)
        return raw.view(entry.dtype).reshape(entry.shape)

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill a tensor of the right shape and any dtype; nothing else is allocated."""
        if self.entries[name].begin % self.entries[name].dtype.itemsize:
            out.copy_(self.read(name))
            return
        mapped = self.map(name)
        out.copy_(mapped)
        forget_pages(mapped)

    def close(self) -> None:
        """Close the file. The mapping lives as long as the tensors over it."""
        self._file.close()
        self._map = None


def _refuse(where: str, what: str) -> CheckpointError:
    return CheckpointError(f"{where} is not a sound safetensors file: {what}", hint=_HINT)


def _read_header(read: Any, size_bytes: int, where: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries, with offsets counted from the file's beginning, and the metadata."""
    prefix = read(8)
    if len(prefix) < 8:
        raise _refuse(where, f"it has {size_bytes:,} bytes, too few for a header")
    length = int.from_bytes(prefix, "little")
    if length > MAX_JSON_BYTES or 8 + length > size_bytes:
        limit = min(MAX_JSON_BYTES, size_bytes - 8)
        raise _refuse(where, f"its header claims {length:,} bytes, at most {limit:,} are possible")
    header = parse_json_object(read(length), f"the header of {where}")
    metadata = _metadata(header.pop("__metadata__", None), where)
    data_size = size_bytes - 8 - length
    entries = {name: _entry(name, value, 8 + length, data_size, where) for name, value in header.items()}
    _check_layout(entries, 8 + length, size_bytes, where)
    return entries, metadata


def _metadata(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _refuse(where, "its __metadata__ is not an object of strings")
    return value


def _sizes(value: Any) -> list[int] | None:
    """A list of non-negative integers that fit into 63 bits, else None."""
    if not isinstance(value, list) or len(value) > 16:
        return None
    good = all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**63 for item in value)
    return value if good else None


def _entry(name: str, value: Any, start: int, data_size: int, where: str) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refuse(where, f"the entry of {name!r} needs dtype, shape and data_offsets, nothing else")
    code, shape, offsets = value["dtype"], _sizes(value["shape"]), _sizes(value["data_offsets"])
    if not isinstance(code, str) or code not in DTYPES:
        raise _refuse(where, f"{name!r} has the unknown dtype {code!r}")
    if shape is None:
        raise _refuse(where, f"{name!r} has the shape {value['shape']!r}")
    if offsets is None or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_size:
        raise _refuse(where, f"{name!r} has the data_offsets {value['data_offsets']!r}, the file has {data_size:,} bytes of data")
    expected = math.prod(shape) * DTYPES[code].itemsize
    if expected != offsets[1] - offsets[0]:
        raise _refuse(
            where, f"{name!r} of shape {shape} in {code} needs {expected:,} bytes, its data_offsets span {offsets[1] - offsets[0]:,}"
        )
    return Entry(code=code, shape=tuple(shape), begin=start + offsets[0], end=start + offsets[1])


def _check_layout(entries: Mapping[str, Entry], start: int, size_bytes: int, where: str) -> None:
    """The tensors must fill the data exactly: bytes that belong to two tensors or to none are refused."""
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin < position:
            raise _refuse(where, f"{name!r} overlaps the tensor before it")
        if entry.begin > position:
            raise _refuse(where, f"{entry.begin - position:,} bytes before {name!r} belong to no tensor")
        position = entry.end
    if position != size_bytes:
        raise _refuse(where, f"{size_bytes - position:,} bytes at its end belong to no tensor")


Declared = tuple[str, tuple[int, ...], torch.dtype]
"""A tensor to be written: name, shape, dtype."""


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor in row-major order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _header(declared: Sequence[Declared], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, shape, dtype in declared:
        end = position + math.prod(shape) * dtype.itemsize
        table[name] = {"dtype": DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(
    path: Path, declared: Sequence[Declared], tensors: Iterable[Tensor], *, metadata: Mapping[str, str] | None = None
) -> int:
    """Write a file tensor by tensor: `tensors` gives them in the order of `declared`. Returns the file's size in bytes.

    The widest dtypes should come first where dtypes are mixed, so that every tensor is aligned.

    Raises:
        DoesNotFitError: the disk is full.
    """
    try:
        with open(path, "wb") as file:
            file.write(_header(declared, {"format": "pt"} if metadata is None else metadata))
            for tensor in _checked(declared, tensors):
                file.write(tensor_bytes(tensor))
            return file.tell()
    except OSError as error:
        raise DoesNotFitError(f"cannot write {path}: {error.strerror}", hint="free some space, or choose another disk") from error


def _checked(declared: Sequence[Declared], tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    for (name, shape, dtype), tensor in zip(declared, tensors, strict=True):
        assert tuple(tensor.shape) == shape and tensor.dtype == dtype, f"{name} was declared as {shape} {dtype}"
        yield tensor
