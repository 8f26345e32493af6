"""Convert a checkpoint between Hugging Face's layout, Meta's and GGUF: whole or not at all, with its tokenizer, in the memory of a tensor.

Writing Meta's layout needs the memory of one shard. The space on the disk is checked before anything is written.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from herd.base.atomic import atomic_directory
from herd.base.errors import DoesNotFitError, TokenizerError, UsageError, did_you_mean
from herd.checkpoint.hf import GENERATION_CONFIG_FILE, SHARD_BYTES, main_dtype, write_hf
from herd.checkpoint.hf_config import CONFIG_FILE, SpecialIds, special_ids_from_json
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.load import as_dtype, special_ids
from herd.checkpoint.meta import write_meta
from herd.checkpoint.meta_fp8 import FP8_DTYPE
from herd.checkpoint.meta_layout import meta_scale_bytes, meta_shard_shapes, meta_slots
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.source import Format, TensorInfo, TensorSource

if TYPE_CHECKING:
    from herd.text.tokenizer import Tokenizer

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_LICENCE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_FORMATS = ("hf", "meta", "gguf")
_PLAIN = ("F32", "F16", "BF16")

Progress = Callable[[int, int, str], None]
"""Called before each tensor with the number done, the number in all, and the tensor's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertReport:
    """What was written: tensors, bytes of all files, where, the seconds it took, and remarks worth telling the user."""

    num_tensors: int
    size_bytes: int
    path: Path
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """The checked arguments of `convert`."""

    to: str
    shards: int
    fp8: bool
    dtype: torch.dtype | None
    quantisation: str
    shard_bytes: int
    overwrite: bool


def convert(
    src: Path | str,
    dst: Path | str,
    *,
    to: str,
    shards: int = 1,
    fp8: bool = False,
    dtype: torch.dtype | str | None = None,
    quantisation: str = "BF16",
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert the checkpoint at `src` to `dst`; tokenizer and licence files come along.

    Args:
        src: a Hugging Face or Meta folder, or a GGUF file.
        dst: a folder that does not exist yet; for GGUF a file that ends in .gguf.
        to: the format to write: "hf", "meta" or "gguf".
        shards: Meta only: the number of model-parallel ranks.
        fp8: Meta only: the 8-bit format of the released 405B.
        dtype: Hugging Face and Meta: what to store. None keeps each tensor's own; quantised ones become bfloat16.
        quantisation: GGUF only: what matrices are stored as.
        shard_bytes: Hugging Face only: the most bytes of weights in one file.
        overwrite: replace what is at `dst`.
        progress: called before each tensor.

    Raises:
        UsageError: arguments that contradict each other, a destination that exists, or a model that the format cannot hold.
        DoesNotFitError: the disk has too little space.
        NotFoundError, CheckpointError, ConfigError: as `open_checkpoint`.
    """
    started = time.monotonic()
    wanted = None if dtype is None else as_dtype(dtype)
    plan = _Plan(to=to, shards=shards, fp8=fp8, dtype=wanted, quantisation=quantisation, shard_bytes=shard_bytes, overwrite=overwrite)
    src, dst = Path(src), Path(dst)
    _check_arguments(plan)
    _check_places(src, dst, plan)
    with open_checkpoint(src) as source:
        plan = _with_dtype(plan, source)
        _check_disk(dst, output_bytes(source, plan))
        counted = _Counted(source, passes=shards if to == "meta" else 1, progress=progress)
        notes = _write_gguf(counted, dst, plan) if to == "gguf" else _write_folder(counted, dst, plan)
        num_tensors = len(source.tensors)
    return ConvertReport(num_tensors=num_tensors, size_bytes=_tree_bytes(dst), path=dst, seconds=time.monotonic() - started, notes=notes)


def _check_arguments(plan: _Plan) -> None:
    if plan.to not in _FORMATS:
        raise UsageError(
            f"{plan.to!r} is not a format to convert to", hint=did_you_mean(plan.to, _FORMATS, otherwise="choose hf, meta or gguf")
        )
    if plan.to != "meta" and (plan.shards != 1 or plan.fp8):
        option = "fp8" if plan.fp8 else f"{plan.shards} shards"
        raise UsageError(f"{option} belongs to Meta's format, not to {plan.to}", hint="convert to meta, or leave the option out")
    if plan.to == "gguf" and plan.dtype is not None:
        raise UsageError("GGUF files take a quantisation, not a dtype", hint="choose BF16, F16 or F32 as the quantisation")
    if plan.shard_bytes < 1:
        raise UsageError(f"a file of at most {plan.shard_bytes} bytes is not possible", hint=f"the default is {SHARD_BYTES:,}")


def _check_places(src: Path, dst: Path, plan: _Plan) -> None:
    if src.resolve() != dst.resolve() and dst.resolve() in src.resolve().parents:
        raise UsageError(f"the source {src} lies inside the destination {dst}", hint="choose another destination")
    if plan.to != "gguf":
        if dst.exists() and not plan.overwrite and (not dst.is_dir() or any(dst.iterdir())):
            raise UsageError(f"{dst} exists and is not empty", hint="choose another destination, or pass --overwrite to replace it")
        return
    if dst.suffix != ".gguf" or dst.is_dir():
        raise UsageError(
            f"{dst} is not the name of a GGUF file", hint=f"try {dst / 'model.gguf' if dst.is_dir() else dst.with_suffix('.gguf')}"
        )
    if dst.exists() and not plan.overwrite:
        raise UsageError(f"{dst} exists", hint="choose another destination, or pass --overwrite to replace it")


def _with_dtype(plan: _Plan, source: TensorSource) -> _Plan:
    """Settle the dtype of a source that has quantised matrices, or GGUF's F32 norms beside them: one for all."""
    mixed = source.format == "gguf" or any(info.stored not in _PLAIN for info in source.tensors.values())
    if plan.to == "gguf" or plan.dtype is not None or not mixed or plan.fp8:
        return plan
    return _Plan(
        to=plan.to,
        shards=plan.shards,
        fp8=plan.fp8,
        dtype=main_dtype(source),
        quantisation=plan.quantisation,
        shard_bytes=plan.shard_bytes,
        overwrite=plan.overwrite,
    )


def output_bytes(source: TensorSource, plan: _Plan) -> int:
    """Bytes of weights that the conversion will write."""
    if plan.to == "gguf":
        return _gguf_bytes(source, plan.quantisation)
    stored = {name: (plan.dtype or info.dtype).itemsize for name, info in source.tensors.items()}
    if plan.to == "hf":
        return sum(math.prod(info.shape) * stored[name] for name, info in source.tensors.items())
    table = meta_shard_shapes(source.config, plan.shards, plan.fp8)
    total = meta_scale_bytes(source.config, plan.shards) if plan.fp8 else 0
    for slot in meta_slots(source.config):
        shape, published = table[slot.key]
        if published == FP8_DTYPE:
            itemsize = 1
        else:
            itemsize = 2 if plan.fp8 and plan.dtype is None else stored[slot.name]
        total += math.prod(shape) * itemsize
    return plan.shards * total


def _gguf_bytes(source: TensorSource, quantisation: str) -> int:
    from herd.checkpoint.gguf_format import KINDS

    kind = KINDS.get(quantisation)
    matrices = [info for info in source.tensors.values() if len(info.shape) > 1]
    norms = sum(4 * math.prod(info.shape) for info in source.tensors.values() if len(info.shape) == 1)
    if kind is None:
        return norms + sum(math.prod(info.shape) * info.dtype.itemsize for info in matrices)
    return norms + sum(kind.size_bytes(math.prod(info.shape)) for info in matrices)


def _check_disk(dst: Path, needed: int) -> None:
    parent = next(folder for folder in (dst.absolute(), *dst.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise DoesNotFitError(
            f"the converted weights take {needed:,} bytes, the disk of {parent} has {free:,} free",
            hint="free some space, choose another disk, or a smaller dtype or quantisation",
        )


class _Counted:
    """A source that tells how far its reading has come."""

    def __init__(self, source: TensorSource, *, passes: int, progress: Progress | None) -> None:
        self.format: Format = source.format
        self.path: Path = source.path
        self.config = source.config
        self.tensors: Mapping[str, TensorInfo] = source.tensors
        self._source, self._progress = source, progress
        self._done, self._total = 0, passes * len(source.tensors)

    def read(self, name: str) -> Tensor:
        if self._progress is not None:
            self._progress(self._done, self._total, name)
        self._done += 1
        return self._source.read(name)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _write_gguf(source: TensorSource, dst: Path, plan: _Plan) -> tuple[str, ...]:
    from herd.checkpoint.gguf_write import write_gguf

    tokenizer, notes = tokenizer_of(source)
    if tokenizer is None:
        notes = (*notes, "the file has no tokenizer: none lies beside the source")
    write_gguf(source, dst, quantisation=plan.quantisation, tokenizer=tokenizer)
    return notes


def _write_folder(source: TensorSource, dst: Path, plan: _Plan) -> tuple[str, ...]:
    with atomic_directory(dst, overwrite=plan.overwrite) as folder:
        copied = copy_companions(source, folder)
        tokenizer, notes = tokenizer_of(source)
        needed = "tokenizer.json" if plan.to == "hf" else "tokenizer.model"
        if tokenizer is not None and needed not in copied:
            tokenizer.save(folder)
        if plan.to == "meta":
            write_meta(source, folder, shards=plan.shards, fp8=plan.fp8, dtype=plan.dtype)
        else:
            write_hf(source, folder, shard_bytes=plan.shard_bytes, dtype=plan.dtype, ids=ids_of(source, tokenizer))
            if source.format == "hf" and (source.path / GENERATION_CONFIG_FILE).is_file():
                shutil.copyfile(source.path / GENERATION_CONFIG_FILE, folder / GENERATION_CONFIG_FILE)
    return notes


def _folders_of(source: TensorSource) -> list[Path]:
    """Where companions of a checkpoint lie: beside it, and for Meta's files in `original/` also one up."""
    folder = source.path if source.path.is_dir() else source.path.parent
    return [folder, folder.parent] if folder.name == "original" else [folder]


def copy_companions(source: TensorSource, target: Path) -> set[str]:
    """Copy tokenizer and licence files; returns the names."""
    copied: set[str] = set()
    for folder in _folders_of(source):
        for pattern in (*TOKENIZER_FILES, *_LICENCE_FILES):
            for path in sorted(folder.glob(pattern)):
                if path.is_file() and path.name not in copied:
                    shutil.copyfile(path, target / path.name)
                    copied.add(path.name)
    return copied


def tokenizer_of(source: TensorSource) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """The tokenizer beside the source, or in the GGUF file; a tokenizer that is not Llama 3's is a remark, since the weights are sound."""
    from herd.text.tokenizer import load_tokenizer

    try:
        for folder in _folders_of(source):
            for name in TOKENIZER_FILES[:2]:
                if (folder / name).is_file():
                    return load_tokenizer(folder / name), ()
        if source.format == "gguf":
            from herd.checkpoint.gguf_tokenizer import gguf_tokenizer

            return gguf_tokenizer(source.path), ()
    except TokenizerError as error:
        return None, (f"the tokenizer was not converted: {error.message}",)
    return None, ()


def ids_of(source: TensorSource, tokenizer: Tokenizer | None) -> SpecialIds | None:
    """The special ids: those of the source's config.json, else the tokenizer's."""
    if source.format == "hf" and (source.path / CONFIG_FILE).is_file():
        return special_ids_from_json(read_json_object(source.path / CONFIG_FILE))
    try:
        return None if tokenizer is None else special_ids(tokenizer)
    except TokenizerError:
        # A tokenizer without Llama 3's special tokens names no ids; config.json then says null.
        return None


def _tree_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
