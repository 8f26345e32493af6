"""States written in pieces: each rank of a mesh writes the parts that it has, and any other mesh, or one process, reads what it needs.

A piece is a tensor named `NAME@START,START` after where it begins in the whole; its size is its own. Files are `model-00003.safetensors`
and so on, one a rank, in the folder of a state; `state` checks their digests. Knows files and boxes, nothing of meshes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from herd.base.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Box:
    """The first index and the length along every dimension of the whole."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """For indexing the whole tensor."""
        return tuple(slice(start, start + size) for start, size in zip(self.starts, self.sizes, strict=True))

    @property
    def is_empty(self) -> bool:
        """Whether a rank beyond the last index has it."""
        return 0 in self.sizes

    @property
    def num_values(self) -> int:
        """Values inside."""
        count = 1
        for size in self.sizes:
            count *= size
        return count

    def overlap(self, other: Box) -> Box | None:
        """What both have."""
        starts = tuple(map(max, self.starts, other.starts))
        ends = [min(a + n, b + m) for a, n, b, m in zip(self.starts, self.sizes, other.starts, other.sizes, strict=True)]
        sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
        return Box(starts, sizes) if all(size > 0 for size in sizes) else None

    def within(self, whole: Box) -> tuple[slice, ...]:
        """For indexing a tensor that holds `whole`."""
        return tuple(slice(a - b, a - b + n) for a, b, n in zip(self.starts, whole.starts, self.sizes, strict=True))


def whole_box(shape: Iterable[int]) -> Box:
    """Everything."""
    sizes = tuple(shape)
    return Box((0,) * len(sizes), sizes)


def piece_name(name: str, box: Box) -> str:
    """The name of a piece in its file."""
    return f"{name}@{','.join(map(str, box.starts))}"


def piece_file(kind: str, rank: int) -> str:
    """The file of a rank's pieces of the kind that a whole file has: `model-00003.safetensors` for `model.safetensors`."""
    stem, _, end = kind.rpartition(".")
    return f"{stem}-{rank:05d}.{end}"


class PieceReader:
    """The tensors of one kind in a state's folder, whatever mesh wrote them. Use as a context manager."""

    def __init__(self, folder: Path, files: Iterable[str], kind: str) -> None:
        stem = kind.rpartition(".")[0]
        self.folder = folder
        self._files = [file for file in files if file.rpartition("-")[0] == stem]
        self._open: list[Any] = []
        self._pieces: dict[str, list[tuple[Box, Any, str]]] = {}

    def __enter__(self) -> PieceReader:
        for name in self._files:
            file = safe_open(self.folder / name, framework="pt")
            self._open.append(file.__enter__())
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                whole, _, starts = key.rpartition("@")
                box = Box(tuple(int(start) for start in starts.split(",") if start), tuple(file.get_slice(key).get_shape()))
                self._pieces.setdefault(whole, []).append((box, file, key))
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open:
            file.__exit__(None, None, None)

    def names(self) -> list[str]:
        """The tensors, by the names of the whole ones."""
        return sorted(self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole tensor."""
        ends = [tuple(map(sum, zip(box.starts, box.sizes, strict=True))) for box, _, _ in self._pieces[name]]
        return tuple(map(max, *ends)) if len(ends) > 1 else ends[0]

    def read(self, name: str, box: Box) -> Tensor:
        """A part of a tensor. Raises CheckpointError where the state does not have all of it."""
        out: Tensor | None = None
        filled = 0
        for piece, file, key in self._pieces.get(name, []):
            common = piece.overlap(box)
            if common is None:
                continue
            values: Tensor = file.get_slice(key)[common.within(piece)] if common.sizes else file.get_tensor(key)
            out = torch.empty(box.sizes, dtype=values.dtype) if out is None else out
            out[common.within(box)] = values
            filled += common.num_values
        if out is None or filled != box.num_values:
            raise CheckpointError(
                f"{self.folder} has {filled:,} of the {box.num_values:,} values of {name} that are asked for",
                hint="the state belongs to another model; choose another output folder",
            )
        return out

    def whole(self, name: str) -> Tensor:
        """A whole tensor."""
        return self.read(name, whole_box(self.shape(name)))


def read_whole(folder: Path, record: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """Every tensor of one kind, whole."""
    with PieceReader(folder, record["sha256"], kind) as reader:
        return {name: reader.whole(name) for name in reader.names()}
