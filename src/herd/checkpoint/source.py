"""The seam of every checkpoint format: named tensors that are read one at a time, and the config they belong to.

A source gives Hugging Face names and layout whatever it reads (rotary pairs are (i, i + H/2), a tied head is left out): a writer never asks
where its tensors come from. Nothing is held: converting needs the memory of one tensor, and of one shard where a format cannot be mapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from herd.model.config import ModelConfig

DTYPE_NAMES: dict[torch.dtype, str] = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""What weights can be stored in and computed with, as config.json calls it."""

Format = Literal["hf", "meta", "gguf"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """One tensor: its shape, the dtype that `read` returns, what it is stored as ("BF16", "Q4_K", "F8_E4M3") and its bytes on disk."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: str
    size_bytes: int


@runtime_checkable
class TensorSource(Protocol):
    """A checkpoint that is open for reading. `tensors` is known without reading any weights."""

    format: Format
    path: Path
    config: ModelConfig
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str) -> Tensor:
        """One tensor; it may be a read-only view of the mapped file, so copy before changing it. Raises CheckpointError."""
        ...

    def close(self) -> None:
        """Let go of every file."""
        ...

    def __enter__(self) -> TensorSource: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
