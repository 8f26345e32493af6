"""Write Meta's layout, one shard at a time: memory of one shard and one tensor.

Files: params.json, consolidated.NN.pth, fp8_scales_{rank}.pt for the 8-bit release, and checklist.chk with the MD5 sums of them all.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from herd.base.errors import CheckpointError, DoesNotFitError
from herd.checkpoint.hf import write_json
from herd.checkpoint.meta_fp8 import FP8_DTYPE, quantise_rows, scale_key
from herd.checkpoint.meta_layout import Slot, check_shardable, kv_repeats, meta_shard_shapes, meta_slots, repeat_heads, rows_to_meta
from herd.checkpoint.meta_params import PARAMS_FILE, params_to_json
from herd.checkpoint.source import TensorSource
from herd.model.config import ModelConfig

CHECKLIST_FILE = "checklist.chk"


def write_meta(source: TensorSource, folder: Path | str, *, shards: int = 1, fp8: bool = False, dtype: torch.dtype | None = None) -> None:
    """Write a source into an existing folder.

    Args:
        source: where the tensors come from.
        folder: an existing folder (make it with `atomic_directory`).
        shards: model-parallel ranks, one file each. Over the number of KV heads each head is stored several times, as Meta does.
        fp8: store the feed-forward matrices of all layers but the first and the last in 8 bits, with scales beside.
        dtype: of everything else; None keeps each tensor's own, and takes bfloat16 with fp8.

    Raises:
        UsageError: the model cannot be cut into that many shards, or Meta's format cannot describe it.
        DoesNotFitError: the disk is full.
    """
    folder, config = Path(folder), source.config
    check_shardable(config, shards, fp8=fp8)
    repeats = kv_repeats(config, shards)
    write_json(folder / PARAMS_FILE, params_to_json(config, stored_kv_heads=config.num_key_value_heads * repeats))
    for rank in range(shards):
        writer = _RankWriter(source, config, rank=rank, shards=shards, fp8=fp8, dtype=torch.bfloat16 if fp8 and dtype is None else dtype)
        _save(writer.tensors(), folder / f"consolidated.{rank:02d}.pth")
        if fp8:
            _save(writer.scales, folder / f"fp8_scales_{rank}.pt")
    write_checklist(folder)


class _RankWriter:
    """What one rank stores of each tensor."""

    def __init__(self, source: TensorSource, config: ModelConfig, *, rank: int, shards: int, fp8: bool, dtype: torch.dtype | None) -> None:
        self.source, self.config = source, config
        self.rank, self.shards, self.fp8, self.dtype = rank, shards, fp8, dtype
        self.scales: dict[str, Tensor] = {}

    def tensors(self) -> dict[str, Tensor]:
        shapes = meta_shard_shapes(self.config, self.shards, self.fp8)
        slots = meta_slots(self.config)
        # All memory is claimed before the first tensor is read: what comes and goes while reading would leave holes in it.
        table = {slot.key: torch.empty(shapes[slot.key][0], dtype=self._dtype(slot)) for slot in slots}
        for slot in slots:
            table[slot.key].copy_(self._codes(slot) if table[slot.key].dtype == FP8_DTYPE else self._piece(slot))
        if self.config.tie_word_embeddings:
            # The same tensor under both keys: torch stores its bytes once, and Meta's loader wants the key.
            table["output.weight"] = table["tok_embeddings.weight"]
        return table

    def _dtype(self, slot: Slot) -> torch.dtype:
        return FP8_DTYPE if self.fp8 and slot.is_fp8(self.config) else self.dtype or self.source.tensors[slot.name].dtype

    def _codes(self, slot: Slot) -> Tensor:
        codes, scales = quantise_rows(self._piece(slot))
        if not bool(torch.isfinite(scales).all()):
            raise CheckpointError(f"{slot.name} holds values that are not finite numbers", hint="find them with `herd verify`")
        self.scales[scale_key(slot.layer, slot.matrix, self.rank)] = scales
        return codes

    def _piece(self, slot: Slot) -> Tensor:
        """This rank's part of a tensor, a view of the whole."""
        weight = self.source.read(slot.name)
        if slot.matrix == "wq":
            weight = rows_to_meta(weight, self.config.num_attention_heads)
        if slot.matrix == "wk":
            weight = rows_to_meta(weight, self.config.num_key_value_heads)
        if slot.is_keyvalue:
            weight = repeat_heads(weight, self.config.head_dim, kv_repeats(self.config, self.shards))
        return weight if slot.split is None else weight.chunk(self.shards, dim=slot.split)[self.rank]


def _save(table: dict[str, Tensor], path: Path) -> None:
    try:
        torch.save(table, path)
    except (OSError, RuntimeError) as error:
        raise DoesNotFitError(f"cannot write {path}: {error}", hint="free some space, or choose another disk") from error


def write_checklist(folder: Path) -> None:
    """Write checklist.chk: a line of MD5 sum and name for every file of weights and for params.json."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".pth", ".pt", ".json"))
    lines = []
    for name in names:
        with open(folder / name, "rb") as file:
            lines.append(f"{hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()}  {name}\n")
    (folder / CHECKLIST_FILE).write_text("".join(lines), encoding="utf-8")
