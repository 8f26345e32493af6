"""One consolidated.NN.pth: a zip archive with a pickle, read as data and never as code, and checked before a byte of weights is touched.

torch's weights-only unpickler knows tensors and containers, nothing that runs. Records must be stored uncompressed, since only those can be
mapped and none can unfold to more than the file; a pickle alone may not claim memory. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from herd.base.errors import CheckpointError

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_MAX_PICKLE_BYTES = 64 * 2**20
_GET_IT_AGAIN = "the file is damaged: download it again, and compare checklist.chk"
_DATA_ONLY = "a .pth file is data to herd, never code: this one is damaged, or hostile and not to be opened with anything else either"


def read_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, mapped and read-only by agreement. Raises CheckpointError."""
    record_sizes = _check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # A damaged pickle makes the unpickler raise whatever it meets.
        raise CheckpointError(f"{path.name} cannot be read as tensors: {_reason(error)}", hint=_DATA_ONLY) from error
    if not isinstance(loaded, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()):
        raise CheckpointError(f"{path.name} is not a flat table of named tensors", hint="it is not one of Meta's consolidated files")
    tensors = {key: _checked(path.name, key, value.detach()) for key, value in loaded.items()}
    _check_storages(path.name, tensors, record_sizes)
    return tensors


def _reason(error: Exception) -> str:
    """The error in a few words, without torch's advice to load the file as code."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        called = _GLOBAL.search(text)
        return f"its pickle calls {called[1]}" if called else "its pickle holds more than tensors, or is cut short"
    return text.strip().partition("\n")[0][:200] or type(error).__name__


def _check_archive(path: Path) -> list[int]:
    """The sizes of the records that hold weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        reason = "it is cut short or not a zip archive" if isinstance(error, zipfile.BadZipFile) else str(error)
        raise CheckpointError(f"{path.name} is not a file of torch: {reason}", hint=_GET_IT_AGAIN) from error
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{path.name} holds the compressed record {record.filename!r}, torch writes none", hint=_DATA_ONLY)
        if record.filename.endswith(".pkl") and record.file_size > _MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"the pickle in {path.name} has {record.file_size:,} bytes, over the limit of {_MAX_PICKLE_BYTES:,}", hint=_DATA_ONLY
            )
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"the records of {path.name} claim more bytes than the file has", hint=_DATA_ONLY)
    return sorted(record.file_size for record in records if "/data/" in record.filename and record.file_size)


def _checked(where: str, key: str, tensor: Tensor) -> Tensor:
    """Refuse what is not a plain block of the file: sparse, on another device, strided over the same bytes."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or not tensor.is_contiguous():
        raise CheckpointError(f"{key} in {where} is no plain contiguous tensor", hint=_DATA_ONLY)
    return tensor


def _check_storages(where: str, tensors: Mapping[str, Tensor], record_sizes: list[int]) -> None:
    """The pickle says how long each record is, and torch believes it: a longer one would reach into its neighbours' bytes."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    if sorted(size for size in storages.values() if size) != record_sizes:
        raise CheckpointError(f"the tensors of {where} do not have the sizes of its records", hint=_DATA_ONLY)
