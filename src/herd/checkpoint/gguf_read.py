"""Read a Llama from a GGUF file: a mapped file, checked before use, one tensor at a time, dequantised in chunks.

Gives Hugging Face names and row order. Quantised kinds read as float32, F16 and BF16 as themselves; F32 as float32, except that norms
come back in the dtype `herd.norm_dtype` names (llama.cpp keeps every norm in F32), so that what herd wrote returns byte for byte.
Knows no text: the tokenizer in the file is `gguf_tokenizer`'s. Format: `gguf_format`; names and keys: `gguf_llama`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from herd.base.errors import CheckpointError, ConfigError, NotFoundError
from herd.checkpoint.gguf_blocks import dequantise
from herd.checkpoint.gguf_format import Metadata, StoredTensor, padded
from herd.checkpoint.gguf_header import Header, parse_header
from herd.checkpoint.gguf_llama import (
    EMBEDDING,
    NORM_DTYPE_KEY,
    OUTPUT,
    ROPE_FACTORS,
    config_from_metadata,
    gguf_name,
    interleaved_rows,
    scaling_from_metadata,
)
from herd.checkpoint.source import Format, TensorInfo
from herd.model.config import ModelConfig

CHUNK_VALUES = 2**20
"""Values dequantised at once: temporary memory is some tens of MB whatever the tensor."""

DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What the kinds that are not quantised read as."""


class GgufFile:
    """A mapped GGUF file and its checked header. Raises NotFoundError if there is none, CheckpointError if it is not one."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self.size_bytes = file.seek(0, 2)
                if self.size_bytes < 24:
                    raise CheckpointError(
                        f"{self.path} has {self.size_bytes} bytes, a GGUF header has 24", hint="the file is cut short: fetch it again"
                    )
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise NotFoundError(f"cannot read {self.path}: {error.strerror}", hint="check the path; it must be one .gguf file") from error
        try:
            self.header: Header = parse_header(self.map, str(self.path))
        except BaseException:
            self.map.close()
            raise

    @property
    def metadata(self) -> Metadata:
        """The key-values."""
        return self.header.metadata

    def blocks(self, tensor: StoredTensor, start: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        """A view of part of a tensor's bytes; let go of it before closing."""
        if self.map.closed:
            raise CheckpointError(f"{self.path} is closed", hint="read tensors inside the `with` block that opened it")
        return np.frombuffer(self.map, dtype=np.uint8, count=num_bytes, offset=self.header.data_start + tensor.offset + start)

    def forget(self, tensor: StoredTensor) -> None:
        """Give the pages below a tensor back, so that streaming through the file does not fill memory with it."""
        start = self.header.data_start + tensor.offset
        begin = padded(start, mmap.PAGESIZE)
        end = (start + tensor.size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin and hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def close(self) -> None:
        """Let go of the file. A view that is still held keeps the map alive until it is dropped."""
        with suppress(BufferError):
            self.map.close()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in config errors: `gguf_llama` sees metadata only."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error


class GgufSource:
    """A Llama in a GGUF file, as a `TensorSource`.

    Args:
        path: one .gguf file.

    Raises:
        NotFoundError: there is no such file.
        CheckpointError: damaged, hostile, or tensors that do not match the config.
        ConfigError: another architecture, or a config that herd's Llama does not have.
    """

    format: Format = "gguf"

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = GgufFile(path)
        try:
            self.config: ModelConfig = self._read_config()
            self._stored = self._match_tensors()
            self._norm_dtype = self._read_norm_dtype()
            self.tensors: Mapping[str, TensorInfo] = {name: self._info(name) for name in self._stored}
        except BaseException:
            self._file.close()
            raise

    @property
    def metadata(self) -> Metadata:
        """The file's key-values, tokenizer included."""
        return self._file.metadata

    def read(self, name: str) -> Tensor:
        """One tensor in Hugging Face row order; a copy. Raises CheckpointError for a name the model does not have."""
        stored = self._stored.get(name)
        if stored is None:
            raise CheckpointError(f"{self.path} has no tensor {name!r}", hint="names are Hugging Face's, such as model.norm.weight")
        values = self._read_rows(stored, interleaved_rows(name, self.config))
        return self._as_norm(name, values) if len(stored.shape) == 1 else values

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> GgufSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read_rows(self, stored: StoredTensor, rows: npt.NDArray[np.int64] | None) -> Tensor:
        values = torch.empty(stored.shape, dtype=DTYPES.get(stored.kind.name, torch.float32))
        length = stored.shape[-1]
        target = values.view(torch.uint8).numpy().reshape(-1, length * values.element_size())
        row_bytes = stored.kind.size_bytes(length)
        step = max(1, CHUNK_VALUES // length)
        for start in range(0, len(target), step):
            stop = min(start + step, len(target))
            data = self._file.blocks(stored, start * row_bytes, (stop - start) * row_bytes)
            if stored.kind.name not in DTYPES:
                data = dequantise(data, stored.kind.name).view(np.uint8)
            target[slice(start, stop) if rows is None else rows[start:stop]] = data.reshape(stop - start, -1)
        self._file.forget(stored)
        return values

    def _as_norm(self, name: str, values: Tensor) -> Tensor:
        cast = values.to(self._norm_dtype or values.dtype)
        if not torch.equal(cast.float().nan_to_num(), values.float().nan_to_num()):
            raise CheckpointError(
                f"{self.path}: {name} does not fit {NORM_DTYPE_KEY} {cast.dtype}",
                hint="the file was changed after herd wrote it: convert again",
            )
        return cast

    def _read_config(self) -> ModelConfig:
        tensors = self._file.header.tensors
        embedding = tensors.get(EMBEDDING)
        rows = embedding.shape[0] if embedding is not None else 0
        with _named(self.path):
            config = config_from_metadata(self.metadata, vocab_rows=rows, tied=OUTPUT not in tensors)
        if config.num_hidden_layers > len(tensors):
            raise CheckpointError(
                f"{self.path}: llama.block_count is {config.num_hidden_layers:,}, the file holds {len(tensors):,} tensors",
                hint="the file is damaged: fetch or convert it again",
            )
        factors = self._read_factors(config)
        with _named(self.path):
            return replace(config, rope_scaling=scaling_from_metadata(self.metadata, config, factors))

    def _read_factors(self, config: ModelConfig) -> npt.NDArray[np.float32] | None:
        stored = self._file.header.tensors.get(ROPE_FACTORS)
        if stored is None:
            return None
        if stored.kind.name != "F32" or stored.shape != (config.head_dim // 2,):
            raise ConfigError(
                f"{self.path}: {ROPE_FACTORS} is {stored.kind.name} {stored.shape}, it should be F32 ({config.head_dim // 2},)",
                hint="convert the original model again",
            )
        return dequantise(self._file.blocks(stored, 0, stored.size_bytes), "F32")

    def _match_tensors(self) -> dict[str, StoredTensor]:
        """Hugging Face names to stored tensors: every one that the config asks for, and no other."""
        tensors = self._file.header.tensors
        matched: dict[str, StoredTensor] = {}
        for name, shape in self.config.parameter_shapes().items():
            stored = tensors.get(gguf_name(name))
            if stored is None:
                raise CheckpointError(
                    f"{self.path} lacks tensor {gguf_name(name)!r}", hint="the file is incomplete: convert the model again"
                )
            if stored.shape != shape:
                raise CheckpointError(
                    f"{self.path}: {stored.name} has shape {stored.shape}, the config says {shape}",
                    hint="the metadata belongs to another model",
                )
            matched[name] = stored
        extra = sorted(tensors.keys() - {stored.name for stored in matched.values()} - {ROPE_FACTORS})
        if extra:
            raise CheckpointError(
                f"{self.path} holds {len(extra)} tensors that a Llama does not have, the first is {extra[0]!r}",
                hint="herd's Llama has no biases, experts or adapters: this is another model",
            )
        return matched

    def _read_norm_dtype(self) -> torch.dtype | None:
        typed = self.metadata.get(NORM_DTYPE_KEY)
        if typed is None:
            return None
        if typed.value not in DTYPES:
            raise ConfigError(f"{self.path}: {NORM_DTYPE_KEY} is not one of {', '.join(DTYPES)}", hint="remove the key or convert again")
        return DTYPES[typed.value]

    def _info(self, name: str) -> TensorInfo:
        stored = self._stored[name]
        dtype = DTYPES.get(stored.kind.name, torch.float32)
        if len(stored.shape) == 1:
            dtype = self._norm_dtype or dtype
        return TensorInfo(shape=stored.shape, dtype=dtype, stored=stored.kind.name, size_bytes=stored.size_bytes)
