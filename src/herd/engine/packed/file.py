"""Packed weights in one file, which a process maps and pays for page by page.

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
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from herd.base.atomic import atomic_file
from herd.engine.layers import BlockWeights
from herd.engine.packed.weights import PackedWeights
from herd.kernels import library
from herd.kernels.linear import PackedLinear, QuantFormat

MAGIC = b"HERDPACK"
VERSION = 1
LAYOUT = f"{VERSION}.{library.ABI}"
"""What the bytes of a file mean: changes with the format and with the kernels' ABI."""
_ALIGN = 4096
_MAX_HEADER = 2**26
_PREFIX = struct.Struct("<8sII32s")
_MATRICES = ("qkv", "out", "gate_up", "down")
_NORMS = ("norm", "ffn_norm")


class Damaged(Exception):
    """A file that is not what it says it is; the message says why."""


def write(path: Path, weights: PackedWeights, facts: dict[str, Any]) -> None:
    """Write a whole file or none. `facts` go into the header as they are."""
    sections, offset = [], 0
    for name, tensor, about in _sections(weights):
        data = tensor.contiguous().view(-1).view(torch.uint8)
        sections.append(
            {
                "name": name,
                "offset": offset,
                "bytes": data.nbytes,
                "dtype": str(tensor.dtype).removeprefix("torch."),
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
        for section, (_, tensor, _) in zip(sections, _sections(weights), strict=True):
            file.seek(start + section["offset"])
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
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


def read(path: Path) -> tuple[PackedWeights, dict[str, Any]]:
    """Map a file; its weights and facts. Raises Damaged, or OSError where there is none."""
    with path.open("rb") as file:
        size = path.stat().st_size
        header = read_header(file)
        start = -(-file.tell() // _ALIGN) * _ALIGN
        # A private mapping that could be written: torch takes no other without a warning, and nobody writes.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if header["layout"] != LAYOUT or start + header["size"] != size:
        raise Damaged(f"layout {header['layout']} in {size:,} bytes, expected {LAYOUT} in {start + header['size']:,}")
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    tensors, about = {}, {}
    for section in header["sections"]:
        data = whole[start + section["offset"] : start + section["offset"] + section["bytes"]]
        if _edges(data) != section["edges"]:
            raise Damaged(f"the section {section['name']} does not have the checksum that the header names")
        tensors[section["name"]] = data.view(getattr(torch, section["dtype"])).view(section["shape"])
        about[section["name"]] = section
    return _assemble(tensors, about), header["facts"]


def _edges(data: Tensor) -> str:
    """A digest of the first and the last bytes."""
    ends = [part.numpy().tobytes() for part in (data[:_ALIGN], data[-_ALIGN:])]
    return hashlib.sha256(b"".join(ends)).hexdigest()


def _sections(weights: PackedWeights) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    for number, block in enumerate(weights.blocks):
        for name in _NORMS:
            yield f"layers.{number}.{name}", getattr(block, name), {}
        for name in _MATRICES:
            yield from _matrix_sections(f"layers.{number}.{name}", getattr(block, name))
    yield "norm", weights.norm, {}
    yield from _matrix_sections("head", weights.head)
    if weights.embedding is not None:
        yield "embedding", weights.embedding, {}


def _matrix_sections(name: str, matrix: PackedLinear) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    quant = None
    if matrix.quant is not None:
        quant = {**asdict(matrix.quant), "scale_dtype": str(matrix.quant.scale_dtype).removeprefix("torch.")}
    about = {key: getattr(matrix, key) for key in ("num_outputs", "num_inputs", "layout", "gated")}
    yield name, matrix.data, {"matrix": {**about, "quant": quant, "of": str(matrix.dtype).removeprefix("torch.")}}
    if matrix.columns is not None:
        yield f"{name}.columns", matrix.columns, {}


def _assemble(tensors: dict[str, Tensor], about: dict[str, dict[str, Any]]) -> PackedWeights:
    def matrix(name: str) -> PackedLinear:
        told = dict(about[name]["matrix"])
        quant, dtype = told.pop("quant"), getattr(torch, told.pop("of"))
        if quant is not None:
            quant = QuantFormat(**{**quant, "scale_dtype": getattr(torch, quant["scale_dtype"])})
        return PackedLinear(data=tensors[name], dtype=dtype, quant=quant, columns=tensors.get(f"{name}.columns"), **told)

    count = sum(name.endswith(".qkv") for name in tensors)
    blocks = [
        BlockWeights(
            norm=tensors[f"layers.{number}.norm"],
            ffn_norm=tensors[f"layers.{number}.ffn_norm"],
            qkv=matrix(f"layers.{number}.qkv"),
            out=matrix(f"layers.{number}.out"),
            gate_up=matrix(f"layers.{number}.gate_up"),
            down=matrix(f"layers.{number}.down"),
        )
        for number in range(count)
    ]
    return PackedWeights(blocks=blocks, norm=tensors["norm"], head=matrix("head"), embedding=tensors.get("embedding"))
