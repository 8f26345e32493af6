"""Hugging Face's layout, which is herd's own: config.json and safetensors, in one file or in shards with an index.

Streams: `HfSource.read` holds one tensor, `write_hf` too. Knows nothing of tokenizers: `convert` copies their files, `load` writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from herd.base.errors import CheckpointError, NotFoundError
from herd.checkpoint.hf_config import CONFIG_FILE, SpecialIds, config_from_json, config_to_json, generation_config_to_json
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.problems import Problem, compare_shapes, raise_first
from herd.checkpoint.safetensors_file import SafetensorsFile, write_safetensors
from herd.checkpoint.source import DTYPE_NAMES, Format, TensorInfo, TensorSource

GENERATION_CONFIG_FILE = "generation_config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5 * 2**30
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class HfSource:
    """A folder in Hugging Face's layout, open for reading. Every header is checked when it is opened, no weights are read.

    With `strict=False` problems do not raise, they gather in `problems` (for `verify`); a damaged config always raises.
    """

    format: Format = "hf"
    accepts_quantised = False

    def __init__(self, folder: Path | str, *, strict: bool = True) -> None:
        self.path = Path(folder)
        self.problems: list[Problem] = []
        self.config = config_from_json(read_json_object(self.path / CONFIG_FILE), CONFIG_FILE, accept_quantised=self.accepts_quantised)
        self._files: dict[str, SafetensorsFile] = {}
        self._where: dict[str, SafetensorsFile] = {}
        try:
            self._open()
            self._drop_ignored()
            self._check()
            if strict:
                raise_first(self.problems)
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = self._infos()

    def _infos(self) -> Mapping[str, TensorInfo]:
        return {name: self._info(name) for name in self._where}

    def _info(self, name: str) -> TensorInfo:
        entry = self._where[name].entries[name]
        return TensorInfo(shape=entry.shape, dtype=entry.dtype, stored=entry.code, size_bytes=entry.end - entry.begin)

    def _open(self) -> None:
        index_path = self.path / INDEX_FILE
        weight_map: dict[str, str] | None = None
        if (self.path / SINGLE_FILE).is_file() or not index_path.is_file():
            names = [SINGLE_FILE]
        else:
            weight_map = read_weight_map(read_json_object(index_path))
            names = sorted(set(weight_map.values()))
        for name in names:
            self._open_file(name, weight_map)
        if weight_map is not None:
            self._check_index(weight_map)

    def _open_file(self, name: str, weight_map: Mapping[str, str] | None) -> None:
        if weight_map is None and not (self.path / name).is_file():
            raise NotFoundError(f"there are no weights in {self.path}: {SINGLE_FILE} is missing", hint=_other_weights(self.path))
        try:
            if not (self.path / name).is_file():
                raise CheckpointError(f"{INDEX_FILE} names the file {name}, which is not there", hint="download the missing file")
            file = self._files[name] = SafetensorsFile(self.path / name)
        except CheckpointError as error:
            self.problems.append(Problem(kind="damaged", name=name, message=error.message, hint=error.hint))
            return
        for tensor in file.entries:
            if tensor in self._where:
                message = f"{tensor} is stored twice, in {self._where[tensor].path.name} and in {name}"
                self.problems.append(Problem(kind="unexpected", name=tensor, message=message, hint="remove one of the two files"))
            self._where[tensor] = file

    def _check_index(self, weight_map: Mapping[str, str]) -> None:
        for name, file_name in weight_map.items():
            file = self._files.get(file_name)
            if file is not None and name not in file.entries:
                message = f"{INDEX_FILE} says that {name} is in {file_name}, its header has no such tensor"
                self.problems.append(
                    Problem(kind="missing", name=name, message=message, hint="index and shards are of two different downloads")
                )
        for name, file in self._where.items():
            if name not in weight_map:
                message = f"{file.path.name} holds {name}, which {INDEX_FILE} does not list"
                self.problems.append(
                    Problem(kind="unexpected", name=name, message=message, hint="index and shards are of two different downloads")
                )

    def _drop_ignored(self) -> None:
        """Buffers that old writers stored, and the second copy of a tied matrix."""
        for name in [name for name in self._where if name.endswith("rotary_emb.inv_freq")]:
            del self._where[name]
        if not (self.config.tie_word_embeddings and _HEAD in self._where and _EMBEDDING in self._where):
            return
        head, embedding = self._where[_HEAD].map(_HEAD), self._where[_EMBEDDING].map(_EMBEDDING)
        if head.shape == embedding.shape and head.dtype == embedding.dtype and torch.equal(head, embedding):
            del self._where[_HEAD]
            return
        message = f"{_HEAD} differs from {_EMBEDDING}, but {CONFIG_FILE} says tie_word_embeddings"
        self.problems.append(
            Problem(kind="values", name=_HEAD, message=message, hint="set tie_word_embeddings to false, or remove the tensor")
        )
        del self._where[_HEAD]

    def _check(self) -> None:
        if self.config.num_hidden_layers > max(len(self._where), 1):
            message = f"num_hidden_layers in {CONFIG_FILE} is {self.config.num_hidden_layers}, the files hold {len(self._where)} tensors"
            self.problems.append(Problem(kind="config", name=CONFIG_FILE, message=message))
            return
        found = {name: file.entries[name].shape for name, file in self._where.items()}
        self.problems += compare_shapes(self.config.parameter_shapes(), found, str(self.path))
        for name, file in self._where.items():
            entry = file.entries[name]
            if entry.dtype not in DTYPE_NAMES:
                self.problems.append(Problem(kind="dtype", name=name, message=f"{name} in {file.path.name} is stored as {entry.code}"))

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own. Raises CheckpointError if there is none of that name or the file was cut meanwhile."""
        return self._file_of(name).read(name)

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill a tensor of the right shape and any dtype; nothing else is allocated."""
        self._file_of(name).read_into(name, out)

    def map(self, name: str) -> Tensor:
        """One tensor over the mapped file, private to the process: writing to it is safe and leaves the file as it is."""
        return self._file_of(name).map(name)

    def _file_of(self, name: str) -> SafetensorsFile:
        if name not in self._where:
            raise CheckpointError(f"{self.path} has no tensor {name}", hint="see the names in `herd verify --json`")
        return self._where[name]

    def close(self) -> None:
        """Close every file. Tensors of `map` stay valid."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> HfSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _other_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        return "herd reads no pickled weights (.bin, .pt), which can hold code: get the model as safetensors"
    if any(folder.glob("model-*-of-*.safetensors")):
        return f"there are shards without {INDEX_FILE}: download it"
    return "download the model's .safetensors files into the folder"


def read_weight_map(index: Mapping[str, Any]) -> dict[str, str]:
    """The index's map of tensor to file. Names that lead out of the folder are refused before anything is opened."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE} has no weight_map", hint="download the index again")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _is_plain_name(file_name):
            raise CheckpointError(
                f"{INDEX_FILE} puts {name} into {file_name!r}, which is no .safetensors file of the folder",
                hint="the index is damaged or hostile: do not use this download",
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return name.endswith(".safetensors") and not any(character in name for character in '/\\:\0"') and not name.startswith(".")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A file of weights and the names of its tensors."""

    name: str
    tensors: tuple[str, ...]


def cut_shards(sizes: Mapping[str, int], shard_bytes: int) -> list[Shard]:
    """Cut the tensors, in order, into files of at most `shard_bytes`; a tensor over the limit has a file of its own."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return [Shard(name=SINGLE_FILE, tensors=tuple(groups[0]))]
    total = len(groups)
    return [Shard(name=f"model-{i:05d}-of-{total:05d}.safetensors", tensors=tuple(group)) for i, group in enumerate(groups, 1)]


def _read_as(source: TensorSource, names: Sequence[str], dtype: torch.dtype | None) -> Iterator[Tensor]:
    for name in names:
        yield source.read(name).to(dtype or source.tensors[name].dtype)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON as Hugging Face does: two spaces, a final newline."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main_dtype(source: TensorSource) -> torch.dtype:
    """The dtype of a model as it is stored: that of its matrices (the widest, where they differ), bfloat16 where any is quantised."""
    matrices = [info for info in source.tensors.values() if len(info.shape) > 1]
    if any(info.stored not in ("F32", "F16", "BF16") for info in matrices):
        return torch.bfloat16
    found = {info.dtype for info in matrices}
    return found.pop() if len(found) == 1 else torch.float32


def write_hf(
    source: TensorSource,
    folder: Path | str,
    *,
    shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype | None = None,
    ids: SpecialIds | None = None,
) -> None:
    """Write a source into an existing folder; memory of one tensor.

    Args:
        source: where the tensors come from.
        folder: an existing folder (make it with `atomic_directory`).
        shard_bytes: the most bytes of weights in one file.
        dtype: what to store; None keeps each tensor's own.
        ids: the special ids for config.json and generation_config.json.

    Raises:
        DoesNotFitError: the disk is full.
    """
    folder = Path(folder)
    names = list(source.config.parameter_shapes())
    dtypes = {name: dtype or source.tensors[name].dtype for name in names}
    sizes = {name: math.prod(source.tensors[name].shape) * dtypes[name].itemsize for name in names}
    shards = cut_shards(sizes, shard_bytes)
    for shard in shards:
        declared = [(name, source.tensors[name].shape, dtypes[name]) for name in shard.tensors]
        write_safetensors(folder / shard.name, declared, _read_as(source, shard.tensors, dtype))
    if len(shards) > 1:
        weight_map = {name: shard.name for shard in shards for name in shard.tensors}
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})
    write_json(folder / CONFIG_FILE, config_to_json(source.config, dtype or main_dtype(source), ids))
    write_json(folder / GENERATION_CONFIG_FILE, generation_config_to_json(ids))
