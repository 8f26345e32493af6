"""Meta's layout: params.json and consolidated.00.pth and on, one file a model-parallel rank; the 8-bit and 4-bit releases too.

Each tensor is joined from the ranks when it is asked for, in Hugging Face's names and order, and the mapped pages it came from are let
go: memory of one tensor. Writing is in `meta_write`, the layout itself in `meta_layout`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from herd.base.errors import CheckpointError, NotFoundError, UsageError
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.meta_fp8 import FP8_DTYPE, dequantise_rows, scale_key
from herd.checkpoint.meta_int4 import CODES, check_parts, dequantise, split_parts
from herd.checkpoint.meta_layout import Slot, as_pairs, meta_shard_bytes, meta_shard_shapes, meta_slots
from herd.checkpoint.meta_params import PARAMS_FILE, MetaParams, params_from_json
from herd.checkpoint.meta_shard import read_shard
from herd.checkpoint.meta_write import write_meta
from herd.checkpoint.pages import forget_pages
from herd.checkpoint.problems import Problem, compare_shapes, raise_first
from herd.checkpoint.source import Format, TensorInfo
from herd.model.config import ModelConfig

__all__ = ["MetaSource", "meta_shard_bytes", "meta_shard_shapes", "write_meta"]

_SHARD_NAME = re.compile(r"consolidated\.(\d{2}|[1-9]\d{2})\.pth")
_STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", FP8_DTYPE: "F8_E4M3", CODES: "I8"}
_IGNORED = ("rope.freqs",)
_EMBEDDING, _OUTPUT = "tok_embeddings.weight", "output.weight"
_OTHER_DOWNLOAD = "the files are of different models or degrees of sharding: download the whole folder again"


def shard_paths(folder: Path) -> list[Path]:
    """The shards in rank order. Raises NotFoundError if there is none, CheckpointError if their numbering has a hole."""
    found = {int(match[1]): path for path in sorted(folder.glob("consolidated.*.pth")) if (match := _SHARD_NAME.fullmatch(path.name))}
    if not found:
        raise NotFoundError(
            f"there are no weights in {folder}: consolidated.00.pth is missing", hint="download the .pth files into the folder"
        )
    missing = next(rank for rank in range(len(found) + 1) if rank not in found)
    if missing != len(found):
        raise CheckpointError(
            f"consolidated.{missing:02d}.pth is missing from {folder}, which has shards up to {max(found):02d}",
            hint="download the missing file",
        )
    return [found[rank] for rank in sorted(found)]


class MetaSource:
    """A folder in Meta's layout, open for reading.

    With `strict=False` problems do not raise, they gather in `problems` (for `verify`), and `tensors` is empty where shards cannot be
    joined; a damaged params.json always raises.
    """

    format: Format = "meta"

    def __init__(self, folder: Path | str, *, strict: bool = True) -> None:
        self.path = Path(folder)
        self.problems: list[Problem] = []
        self.tensors: Mapping[str, TensorInfo] = {}
        params = params_from_json(read_json_object(self.path / PARAMS_FILE))
        self._paths = shard_paths(self.path)
        self._shards: list[dict[str, Tensor]] = []
        self._scales: list[dict[str, Tensor]] = []
        self._quant, self._parts = params.quant, {}
        self._read_shards()
        self.config = self._stored_config(params)
        self._repeats = 1
        self._slots: dict[str, Slot] = {}
        if not self.problems:
            self._check(params)
        if strict:
            raise_first(self.problems)
        if not self.problems:
            self._join(params)

    def _read_shards(self) -> None:
        for path in self._paths:
            try:
                shard = read_shard(path)
                self._shards.append({key: tensor for key, tensor in shard.items() if key not in _IGNORED})
            except CheckpointError as error:
                self.problems.append(Problem(kind="damaged", name=path.name, message=error.message, hint=error.hint))
        if self.problems:
            return
        if self._quant is not None:
            self._split_parts()
        if any(tensor.dtype == FP8_DTYPE for shard in self._shards for tensor in shard.values()):
            self._read_scales()

    def _split_parts(self) -> None:
        """Of the 4-bit releases: set aside what stands beside the codes."""
        assert self._quant is not None
        if len(self._shards) != 1:
            message = f"the 4-bit releases are one file, {self.path} has {len(self._shards)}"
            self.problems.append(Problem(kind="damaged", name=self._paths[1].name, message=message, hint=_OTHER_DOWNLOAD))
            return
        self._shards[0], self._parts = split_parts(self._shards[0])
        self.problems += check_parts(self._shards[0], self._parts, self._quant)

    def _read_scales(self) -> None:
        for rank in range(len(self._paths)):
            path = self.path / f"fp8_scales_{rank}.pt"
            try:
                if not path.is_file():
                    raise CheckpointError(
                        f"the weights have 8 bits and {path.name}, which holds their scales, is missing", hint="download it"
                    )
                self._scales.append(read_shard(path))
            except CheckpointError as error:
                self.problems.append(Problem(kind="damaged", name=path.name, message=error.message, hint=error.hint))

    def _stored_config(self, params: MetaParams) -> ModelConfig:
        """The config as the files are written: KV heads counted with their copies."""
        vocab = params.vocab_size
        if vocab == -1:
            rows = [shard[_EMBEDDING].shape[0] for shard in self._shards if _EMBEDDING in shard and shard[_EMBEDDING].ndim]
            vocab = sum(rows) if rows else 1
        config = params.to_config(vocab_size=vocab, num_kv_heads=params.num_kv_heads, tied=self._is_tied(params))
        num_found = max((len(shard) for shard in self._shards), default=0)
        if not self.problems and config.num_hidden_layers > max(num_found, 1):
            message = f"n_layers in {PARAMS_FILE} is {config.num_hidden_layers}, the shards hold {num_found} tensors"
            raise CheckpointError(message, hint="compare params.json with the published one")
        return config

    def _is_tied(self, params: MetaParams) -> bool:
        """Whether the output matrix is the embedding: absent, the same bytes of the file, or said to be tied and equal."""
        pairs = [(shard.get(_EMBEDDING), shard.get(_OUTPUT)) for shard in self._shards]
        if all(output is None for _, output in pairs):
            return True
        for embedding, output in pairs:
            if embedding is None or output is None or embedding.shape != output.shape or embedding.dtype != output.dtype:
                return False
            if embedding.dtype == CODES:
                return False  # each has scales of its own
            if embedding.data_ptr() != output.data_ptr() and not (params.says_tied and torch.equal(embedding, output)):
                return False
        return True

    def _check(self, params: MetaParams) -> None:
        shards = len(self._shards)
        try:
            table = meta_shard_shapes(self.config, shards)
        except UsageError as error:
            message = f"{PARAMS_FILE} does not fit the {shards} shards of {self.path}: {error.message}"
            self.problems.append(Problem(kind="config", name=PARAMS_FILE, message=message, hint="are shards missing at the end?"))
            return
        expected = {key: shape for key, (shape, _) in table.items()}
        for path, shard in zip(self._paths, self._shards, strict=True):
            found = {key: tuple(tensor.shape) for key, tensor in shard.items() if not (self.config.tie_word_embeddings and key == _OUTPUT)}
            self.problems += [_with_shard_hint(problem, shards) for problem in compare_shapes(expected, found, path.name)]
            allowed = set(_STORED) - ({CODES} if self._quant is None else set())
            self.problems += [_dtype_problem(key, tensor, path) for key, tensor in shard.items() if tensor.dtype not in allowed]
        if not self.problems:
            for slot in meta_slots(self.config):
                self._check_slot(slot)

    def _check_slot(self, slot: Slot) -> None:
        dtypes = {shard[slot.key].dtype for shard in self._shards}
        if len(dtypes) > 1:
            message = f"{slot.key} has different dtypes in different shards: {', '.join(sorted(map(str, dtypes)))}"
            self.problems.append(Problem(kind="dtype", name=slot.key, message=message, hint=_OTHER_DOWNLOAD))
        elif dtypes == {FP8_DTYPE}:
            self._check_scales(slot)

    def _check_scales(self, slot: Slot) -> None:
        for rank, (shard, scales) in enumerate(zip(self._shards, self._scales, strict=True)):
            name = scale_key(slot.layer, slot.matrix, rank)
            scale = scales.get(name)
            if scale is None:
                message = f"fp8_scales_{rank}.pt has no {name}, though {slot.key} has 8 bits"
                self.problems.append(Problem(kind="missing", name=name, message=message, hint=_OTHER_DOWNLOAD))
            elif scale.dtype != torch.float32 or tuple(scale.shape) != (shard[slot.key].shape[0],):
                message = f"{name} is {scale.dtype} {list(scale.shape)}, it must be float32 with {shard[slot.key].shape[0]} rows"
                self.problems.append(Problem(kind="shape", name=name, message=message, hint=_OTHER_DOWNLOAD))
            elif not bool((torch.isfinite(scale) & (scale > 0)).all()):
                message = f"{name} holds scales that are not positive finite numbers"
                self.problems.append(Problem(kind="values", name=name, message=message))

    def _join(self, params: MetaParams) -> None:
        """Count the KV heads without copies, and describe every tensor as it is read."""
        self._repeats = self._find_repeats()
        config = params.to_config(
            vocab_size=self.config.vocab_size,
            num_kv_heads=self.config.num_key_value_heads // self._repeats,
            tied=self.config.tie_word_embeddings,
        )
        self.config = config
        self._slots = {slot.name: slot for slot in meta_slots(config)}
        self.tensors = {slot.name: self._info(slot) for slot in self._slots.values()}

    def _find_repeats(self) -> int:
        """How often each KV head is stored. Writers repeat heads only to give each rank one, so nothing else is looked at."""
        shards = len(self._shards)
        if shards == 1 or self.config.num_key_value_heads != shards:
            return 1
        repeats = shards
        for slot in meta_slots(self.config):
            if repeats > 1 and slot.is_keyvalue:
                repeats = math.gcd(repeats, self._copies([shard[slot.key] for shard in self._shards]))
        return repeats

    def _copies(self, heads: list[Tensor]) -> int:
        """The largest number such that the heads come in groups of that many equal ones."""
        changes = [rank for rank in range(1, len(heads)) if not torch.equal(heads[rank], heads[rank - 1])]
        for head in heads:
            forget_pages(head)
        return math.gcd(len(heads), *changes)

    def _info(self, slot: Slot) -> TensorInfo:
        parts = [shard[slot.key] for shard in self._shards]
        stored = parts[0].dtype
        dtype = torch.float32 if stored in (FP8_DTYPE, CODES) else stored
        size = sum(part.nbytes for part in parts) if slot.split is not None else parts[0].nbytes
        return TensorInfo(shape=slot.shape, dtype=dtype, stored=_STORED[stored], size_bytes=size)

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own; quantised ones are multiplied out to float32. Raises CheckpointError."""
        slot = self._slot(name)
        out = torch.empty(slot.shape, dtype=self.tensors[name].dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill a contiguous tensor of the right shape and any dtype; nothing else is allocated. Raises CheckpointError."""
        slot = self._slot(name)
        parts = [shard[slot.key] for shard in self._shards]
        if slot.split is None:
            self._check_copies(slot, parts)
            out.copy_(parts[0])
        else:
            self._fill(slot, out, parts)
        for part in parts:
            forget_pages(part)

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            raise CheckpointError(f"{self.path} has no tensor {name}", hint="see the names in `herd verify --json`")
        return self._slots[name]

    def _check_copies(self, slot: Slot, parts: list[Tensor]) -> None:
        if any(not torch.equal(part, parts[0]) for part in parts[1:]):
            raise CheckpointError(f"{slot.key} differs between the shards of {self.path}, each holds a copy of it", hint=_OTHER_DOWNLOAD)

    def _fill(self, slot: Slot, out: Tensor, parts: list[Tensor]) -> None:
        """Copy each rank's part to its place; rows of wq and wk go where Hugging Face's order has them."""
        assert slot.split is not None
        heads = {"wq": self.config.num_attention_heads, "wk": self.config.num_key_value_heads}.get(slot.matrix)
        target = out if heads is None else as_pairs(out, heads)
        step = self._repeats if slot.is_keyvalue else 1
        places = target.chunk(len(parts) // step, dim=slot.split)
        for place, rank in zip(places, range(0, len(parts), step), strict=True):
            part = parts[rank]
            if part.dtype == FP8_DTYPE:
                part = dequantise_rows(part, self._scales[rank][scale_key(slot.layer, slot.matrix, rank)])
            elif part.dtype == CODES:
                assert self._quant is not None
                part = dequantise(slot.key, part, self._parts, self._quant)
            place.copy_(part.view(place.shape))

    def close(self) -> None:
        """Let the mapped files go."""
        self._shards, self._scales, self._slots = [], [], {}

    def __enter__(self) -> MetaSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _with_shard_hint(problem: Problem, shards: int) -> Problem:
    if problem.kind != "shape":
        return problem
    hint = f"params.json and {shards} shard{'s' if shards > 1 else ''} do not fit together: are shards missing, or of another model?"
    return Problem(kind=problem.kind, name=problem.name, message=problem.message, hint=hint)


def _dtype_problem(key: str, tensor: Tensor, path: Path) -> Problem:
    return Problem(kind="dtype", name=key, message=f"{key} in {path.name} is stored as {tensor.dtype}")
