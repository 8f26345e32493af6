"""Packed weights, and what belongs to them, in one file, which a process maps and pays for page by page. Reads without torch.

    HERDPACK, version and length of the header (u32 each), SHA-256 of the header, the header (JSON), sections at multiples of 4096

The header lists every section: name, offset, bytes, dtype, shape, for matrices how they are packed, and the SHA-256 of its first and
its last 4096 bytes. A file that is cut off, of another version or changed at a section's edge is `Damaged`; bytes in the middle of a
section are not looked at, as that would be to read it all. The layout is one for all processors: their kernels differ, the bytes they read
do not. Knows nothing of where files lie.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from herd.base.atomic import atomic_file
from herd.engine.packed.stored import StoredBlock, StoredWeights
from herd.kernels import library
from herd.kernels.buffer import Buffer, dtype_name
from herd.kernels.stored import QuantFormat, StoredMatrix

if TYPE_CHECKING:
    from torch import Tensor

    from herd.engine.packed.weights import PackedWeights

MAGIC = b"HERDPACK"
VERSION = 1
LAYOUT = f"{VERSION}.{library.ABI}"
"""What the bytes of a file mean: changes with the format and with the kernels' ABI."""
_ALIGN = 4096
_MAX_HEADER = 2**26
_PREFIX = struct.Struct("<8sII32s")
_MATRICES = ("qkv", "out", "gate_up", "down")
_NORMS = ("norm", "ffn_norm")

Sections = Iterator[tuple[str, "Tensor", dict[str, Any]]]
"""Name, content, and what else the header says of it."""


class Damaged(Exception):
    """A file that is not what it says it is; the message says why."""


def write(path: Path, weights: PackedWeights, facts: dict[str, Any]) -> None:
    """Write a whole file of weights or none. `facts` go into the header as they are."""
    write_sections(path, lambda: _sections(weights), facts)


def write_sections(path: Path, make: Callable[[], Sections], facts: dict[str, Any]) -> None:
    """Write a whole file or none; `make` gives its sections, twice."""
    sections, offset = [], 0
    for name, tensor, about in make():
        data = _bytes(tensor)
        sections.append(
            {
                "name": name,
                "offset": offset,
                "bytes": data.nbytes,
                "dtype": dtype_name(tensor.dtype),
                "shape": list(tensor.shape),
                "edges": _edges(data),
                **about,
            }
        )
        offset += -(-data.nbytes // _ALIGN) * _ALIGN
    header = json.dumps({"facts": facts, "layout": LAYOUT, "size": offset, "sections": sections}).encode()
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(_PREFIX.pack(MAGIC, VERSION, len(header), hashlib.sha256(header).digest()) + header)
        start = -(-file.tell() // _ALIGN) * _ALIGN
        for section, (_, tensor, _) in zip(sections, make(), strict=True):
            file.seek(start + section["offset"])
            file.write(_bytes(tensor).data)
        file.truncate(start + offset)


def read_header(file: IO[bytes]) -> dict[str, Any]:
    """The header at the beginning of an open file. Raises Damaged."""
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise Damaged(f"{len(prefix)} bytes are no file of weights")
    magic, version, length, digest = _PREFIX.unpack(prefix)
    if magic != MAGIC or version != VERSION:
        raise Damaged(f"it begins with {magic!r} of version {version}, not {MAGIC!r} of {VERSION}")
    if length > _MAX_HEADER:
        raise Damaged(f"its header is to have {length:,} bytes")
    text = file.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise Damaged("its header does not have the checksum that it names")
    return json.loads(text)


def read(path: Path) -> tuple[StoredWeights, dict[str, Any]]:
    """Map a file of weights; them and its facts. Raises Damaged, or OSError where there is none."""
    buffers, about, facts = read_sections(path)
    return _assemble(buffers, about), facts


def read_sections(path: Path) -> tuple[dict[str, Buffer], dict[str, dict[str, Any]], dict[str, Any]]:
    """Map a file: its sections' contents and descriptions by name, and its facts. Raises as `read`."""
    with path.open("rb") as file:
        size = path.stat().st_size
        header = read_header(file)
        start = -(-file.tell() // _ALIGN) * _ALIGN
        # A private mapping that could be written: torch takes no other without a warning, and nobody writes.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if header["layout"] != LAYOUT or start + header["size"] != size:
        raise Damaged(f"layout {header['layout']} in {size:,} bytes, expected {LAYOUT} in {start + header['size']:,}")
    whole = np.frombuffer(mapped, dtype=np.uint8)
    buffers, about = {}, {}
    for section in header["sections"]:
        data = whole[start + section["offset"] : start + section["offset"] + section["bytes"]]
        if _edges(data) != section["edges"]:
            raise Damaged(f"the section {section['name']} does not have the checksum that the header names")
        buffers[section["name"]] = Buffer(data, section["dtype"], tuple(section["shape"]))
        about[section["name"]] = section
    return buffers, about, header["facts"]


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """A tensor's bytes, row by row."""
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _edges(data: NDArray[np.uint8]) -> str:
    """A digest of the first and the last bytes."""
    return hashlib.sha256(data[:_ALIGN].tobytes() + data[-_ALIGN:].tobytes()).hexdigest()


def _sections(weights: PackedWeights) -> Sections:
    for number, block in enumerate(weights.blocks):
        for name in _NORMS:
            yield f"layers.{number}.{name}", getattr(block, name), {}
        for name in _MATRICES:
            yield from _matrix_sections(f"layers.{number}.{name}", getattr(block, name))
    yield "norm", weights.norm, {}
    yield from _matrix_sections("head", weights.head)
    if weights.embedding is not None:
        yield "embedding", weights.embedding, {}


def _matrix_sections(name: str, matrix: Any) -> Sections:
    quant = None if matrix.quant is None else asdict(matrix.quant)
    about = {key: getattr(matrix, key) for key in ("num_outputs", "num_inputs", "layout", "gated")}
    yield name, matrix.data, {"matrix": {**about, "quant": quant, "of": dtype_name(matrix.dtype)}}
    if matrix.columns is not None:
        yield f"{name}.columns", matrix.columns, {}


def _assemble(buffers: dict[str, Buffer], about: dict[str, dict[str, Any]]) -> StoredWeights:
    def matrix(name: str) -> StoredMatrix:
        told = dict(about[name]["matrix"])
        quant, dtype = told.pop("quant"), told.pop("of")
        quant = None if quant is None else QuantFormat(**quant)
        return StoredMatrix(data=buffers[name], dtype=dtype, quant=quant, columns=buffers.get(f"{name}.columns"), **told)

    blocks = [
        StoredBlock(
            norm=buffers[f"layers.{number}.norm"],
            qkv=matrix(f"layers.{number}.qkv"),
            out=matrix(f"layers.{number}.out"),
            ffn_norm=buffers[f"layers.{number}.ffn_norm"],
            gate_up=matrix(f"layers.{number}.gate_up"),
            down=matrix(f"layers.{number}.down"),
        )
        for number in range(sum(name.endswith(".qkv") for name in buffers))
    ]
    size = sum(buffer.nbytes for buffer in buffers.values())
    return StoredWeights(blocks=blocks, norm=buffers["norm"], head=matrix("head"), embedding=buffers.get("embedding"), size_bytes=size)
