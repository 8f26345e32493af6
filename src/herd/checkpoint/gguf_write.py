"""Write a Llama as GGUF that llama.cpp loads, tensor by tensor and chunk by chunk, whole or not at all.

Matrices take the kind that is asked for, norms are always F32, q and k rows are interleaved, a scaled model carries
`rope_freqs.weight`. BF16, F16 and F32 sources written in their own kind come back from `GgufSource` byte for byte. A row that does
not fill its blocks and a value beyond its kind are refused. Format: `gguf_format`; names and keys: `gguf_llama`.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from herd.base.atomic import atomic_file
from herd.base.errors import CheckpointError, UsageError, did_you_mean
from herd.checkpoint.gguf_blocks import MAX_MAGNITUDE, quantise
from herd.checkpoint.gguf_format import DEFAULT_ALIGNMENT, KINDS, Kind, Metadata, StoredTensor, pack_header, padded, text
from herd.checkpoint.gguf_llama import NORM_DTYPE_KEY, ROPE_FACTORS, gguf_name, interleaved_rows, metadata_from_config, rope_factors
from herd.checkpoint.gguf_read import CHUNK_VALUES, DTYPES
from herd.checkpoint.gguf_tokenizer import tokenizer_metadata
from herd.checkpoint.source import TensorInfo, TensorSource
from herd.text.tokenizer import Tokenizer

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 14, "Q6_K": 18, "BF16": 32}
"""llama.cpp's file type of each kind: what most of the tensors are."""

QUANTISATIONS = (*FILE_TYPES, "keep")
"""What `write_gguf` takes; "keep" stores each matrix in the dtype that the source reads as."""

_KIND_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def write_gguf(source: TensorSource, path: Path | str, *, quantisation: str = "BF16", tokenizer: Tokenizer | None = None) -> None:
    """Write a checkpoint as one GGUF file, replacing what is at `path` once it is whole.

    Args:
        source: any open checkpoint.
        path: the file.
        quantisation: BF16, F16, F32, Q8_0, Q4_0, Q4_K, Q6_K, or "keep" for the dtype of each matrix.
        tokenizer: written into the file; without one llama.cpp needs the tokens from elsewhere.

    Raises:
        UsageError: an unknown quantisation, or rows that are no whole blocks of it.
        CheckpointError: the source lacks a tensor, has one of another shape or dtype, or one with values that the kind cannot hold.
        TokenizerError: the tokenizer has more tokens than the model, or is not Llama 3's kind.
    """
    stored = _plan(source, quantisation)
    factors = _rope_tensor(source, stored)
    everything = [*stored.values()] if factors is None else [factors, *stored.values()]
    header = pack_header(_metadata(source, stored, tokenizer), everything)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        if factors is not None:
            _write_padded(file, factors, iter([_rope_bytes(source)]))
        for name, tensor in stored.items():
            _write_padded(file, tensor, _encoded(source, name, tensor.kind))


def _plan(source: TensorSource, quantisation: str) -> dict[str, StoredTensor]:
    """Where every tensor goes: Hugging Face names in file order to kinds and offsets. Reads no weights."""
    if quantisation not in QUANTISATIONS:
        known = ", ".join(QUANTISATIONS)
        raise UsageError(
            f"herd cannot write GGUF as {quantisation!r}", hint=did_you_mean(quantisation, QUANTISATIONS, otherwise=f"choose from {known}")
        )
    stored: dict[str, StoredTensor] = {}
    config = source.config
    offset = 0 if config.rope_scaling is None else padded(config.head_dim // 2 * 4, DEFAULT_ALIGNMENT)
    for name, shape in config.parameter_shapes().items():
        kind = _kind(name, _source_info(source, name, shape), quantisation)
        stored[name] = StoredTensor(name=gguf_name(name), shape=shape, kind=kind, offset=offset)
        offset += padded(stored[name].size_bytes, DEFAULT_ALIGNMENT)
    return stored


def _source_info(source: TensorSource, name: str, shape: tuple[int, ...]) -> TensorInfo:
    info = source.tensors.get(name)
    if info is None:
        raise CheckpointError(f"{source.path} lacks tensor {name!r}", hint="the checkpoint is incomplete: fetch it again")
    if info.shape != shape:
        raise CheckpointError(f"{source.path}: {name} has shape {info.shape}, the config says {shape}", hint="config and weights differ")
    if info.dtype not in _KIND_OF_DTYPE:
        raise CheckpointError(
            f"{source.path}: {name} is {info.dtype}", hint="GGUF takes float32, float16 and bfloat16 weights: convert first"
        )
    return info


def _kind(name: str, info: TensorInfo, quantisation: str) -> Kind:
    if len(info.shape) == 1:
        return KINDS["F32"]
    kind = KINDS[_KIND_OF_DTYPE[info.dtype] if quantisation == "keep" else quantisation]
    if info.shape[-1] % kind.block_values:
        raise UsageError(
            f"{name} has rows of {info.shape[-1]:,} values, {kind.name} stores blocks of {kind.block_values}",
            hint="write this model as BF16, F16 or F32",
        )
    return kind


def _rope_tensor(source: TensorSource, stored: dict[str, StoredTensor]) -> StoredTensor | None:
    if source.config.rope_scaling is None:
        return None
    return StoredTensor(name=ROPE_FACTORS, shape=(source.config.head_dim // 2,), kind=KINDS["F32"], offset=0)


def _rope_bytes(source: TensorSource) -> bytes:
    assert source.config.rope_scaling is not None
    return quantise(rope_factors(source.config, source.config.rope_scaling), "F32").tobytes()


def _metadata(source: TensorSource, stored: dict[str, StoredTensor], tokenizer: Tokenizer | None) -> Metadata:
    path = source.path.resolve()
    name = (path.stem if source.format == "gguf" else path.name) or "llama"
    file_type = FILE_TYPES[stored["model.embed_tokens.weight"].kind.name]
    metadata = metadata_from_config(
        source.config, name=name.encode("utf-8", "replace").decode(), file_type=file_type, alignment=DEFAULT_ALIGNMENT
    )
    norms = {info.dtype for name, info in source.tensors.items() if name in stored and len(info.shape) == 1}
    if len(norms) == 1:
        metadata[NORM_DTYPE_KEY] = text(_KIND_OF_DTYPE[norms.pop()])
    return metadata | (tokenizer_metadata(tokenizer, source.config.vocab_size) if tokenizer is not None else {})


def _encoded(source: TensorSource, name: str, kind: Kind) -> Iterator[bytes]:
    """A tensor's bytes in GGUF row order, a chunk at a time."""
    tensor = source.read(name)
    matrix = tensor.reshape(-1, tensor.shape[-1])
    rows = interleaved_rows(name, source.config)
    step = max(1, CHUNK_VALUES // matrix.shape[-1])
    for start in range(0, len(matrix), step):
        chunk = matrix[start : start + step] if rows is None else matrix[torch.from_numpy(rows[start : start + step])]
        yield _encode(f"{source.path}: {name}", chunk, kind)


def _encode(where: str, chunk: Tensor, kind: Kind) -> bytes:
    if chunk.dtype == DTYPES.get(kind.name):
        return chunk.contiguous().view(torch.uint8).numpy().tobytes()
    values = chunk.float().numpy()
    largest, limit = np.abs(values).max(), MAX_MAGNITUDE.get(kind.name, np.inf)
    if not largest <= limit:
        raise CheckpointError(
            f"{where} holds {largest:g}, {kind.name} holds up to {limit:g}", hint="write it as BF16 or F32, or repair the weights"
        )
    return quantise(values, kind.name).tobytes()


def _write_padded(file: BinaryIO, tensor: StoredTensor, chunks: Iterator[bytes]) -> None:
    written = sum(file.write(chunk) for chunk in chunks)
    assert written == tensor.size_bytes, f"{tensor.name}: {written} bytes of {tensor.size_bytes} for {prod(tensor.shape)} values"
    file.write(bytes(padded(written, DEFAULT_ALIGNMENT) - written))
