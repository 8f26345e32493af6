"""One rank's weights, cut from a checkpoint that is open: nothing of the others' is kept, and of mapped files little of it is read.

q, k, v, gate and up are cut by rows, o and down by columns, embedding and head by rows of the vocabulary; norms are whole. Blocks come one
at a time, since each is packed and let go of. Shapes: V vocabulary, D model dim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from herd.checkpoint.hf import HfSource
from herd.checkpoint.source import TensorSource
from herd.engine.disk.identity import note_weight
from herd.engine.parallel.layout import Layout, span
from herd.model.block import Block
from herd.model.config import ModelConfig

_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_COLUMNS = ("o_proj", "down_proj")


class Shard:
    """What rank `rank` holds of a source's model, in `dtype`; rows of the vocabulary from `vocab_size` on are left out.

    With `hashed`, `digest` stands for all that was taken from it.
    """

    def __init__(
        self, source: TensorSource, layout: Layout, rank: int, *, dtype: torch.dtype, vocab_size: int, hashed: bool = False
    ) -> None:
        self.config = layout.share(source.config, rank)
        self.rows = layout.rows(vocab_size, rank)
        self.dtype = dtype
        self._source, self._layout, self._rank = source, layout, rank
        self._total = hashlib.blake2b(digest_size=32) if hashed else None

    @property
    def whole_config(self) -> ModelConfig:
        """The model that is shared out."""
        return self._source.config

    @property
    def digest(self) -> str:
        """Of the weights taken so far."""
        assert self._total is not None, "a shard that was not to be hashed"
        return self._total.hexdigest()

    def blocks(self) -> Iterator[Block]:
        """The rank's blocks, in order."""
        for layer in self._layout.layers(self._source.config, self._rank):
            prefix = f"model.layers.{layer}."
            with torch.device("meta"):
                block = Block(self.config, layer)
            for name, parameter in list(block.named_parameters()):
                owner, _, leaf = name.rpartition(".")
                part = self._cut(prefix + name)
                assert part.shape == parameter.shape
                setattr(block.get_submodule(owner), leaf, nn.Parameter(part, requires_grad=False))
            yield block

    @property
    def embedding(self) -> Float[Tensor, "V D"] | None:
        """The rank's rows of the embedding; None where its stage is not the first, or they are the head's."""
        if not self._layout.is_first(self._rank) or (self._tied and self._layout.is_last(self._rank)):
            return None
        return self._vocabulary("model.embed_tokens.weight")

    @property
    def norm(self) -> Float[Tensor, "D"] | None:
        """The final norm; None where the rank's stage is not the last."""
        name = "model.norm.weight"
        return self._noted(name, self._read(name).to(self.dtype)) if self._layout.is_last(self._rank) else None

    @property
    def head(self) -> Float[Tensor, "V D"] | None:
        """The rank's rows of the output matrix; None where its stage is not the last."""
        if not self._layout.is_last(self._rank):
            return None
        return self._vocabulary("model.embed_tokens.weight" if self._tied else "lm_head.weight")

    @property
    def _tied(self) -> bool:
        return self._source.config.tie_word_embeddings

    def _vocabulary(self, name: str) -> Tensor:
        return self._noted(name, self._read(name)[self.rows.start : self.rows.stop].to(self.dtype))

    def _cut(self, name: str) -> Tensor:
        whole = self._read(name)
        kind = name.split(".")[-2]
        if kind in _ROWS or kind in _COLUMNS:
            dim = 0 if kind in _ROWS else 1
            part = span(whole.shape[dim], self._layout.tp, self._layout.part(self._rank))
            whole = whole.narrow(dim, part.start, len(part))
        return self._noted(name, whole.to(self.dtype))

    def _noted(self, name: str, tensor: Tensor) -> Tensor:
        if self._total is not None:
            note_weight(self._total, name, tensor)
        return tensor

    def _read(self, name: str) -> Tensor:
        return self._source.map(name) if isinstance(self._source, HfSource) else self._source.read(name)
