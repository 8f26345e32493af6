"""A model's weights as the kernels read them, and a model that consists of nothing else.

`PackedModel` is a `Transformer` in name, config and dtype, for the engine to run; its own matrices have no numbers, so it computes nothing
by itself and says so. Shapes: D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from herd.base.errors import UsageError
from herd.engine.layers import BlockWeights, pack, pack_block, packs, stack_packs
from herd.engine.packed.stored import StoredBlock, StoredWeights
from herd.kernels import dispatch
from herd.kernels.linear import PackedLinear
from herd.kernels.stored import StoredMatrix
from herd.model.config import ModelConfig
from herd.model.quant_linear import quantised_matrices
from herd.model.transformer import Transformer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedWeights:
    """`embedding` is None where the rows of `head` are the embedding."""

    blocks: list[BlockWeights]
    norm: Tensor
    head: PackedLinear
    embedding: Tensor | None

    @staticmethod
    def of(stored: StoredWeights) -> PackedWeights:
        """Tensors over the memory of stored weights."""
        return PackedWeights(
            blocks=[_block_of(block) for block in stored.blocks],
            norm=stored.norm.tensor(),
            head=PackedLinear.of(stored.head),
            embedding=None if stored.embedding is None else stored.embedding.tensor(),
        )

    def tensors(self) -> Iterator[Tensor]:
        """Everything that has bytes."""
        for block in self.blocks:
            yield from block.tensors()
        yield self.norm
        yield from (part for part in (self.head.data, self.head.columns, self.embedding) if part is not None)

    @property
    def size_bytes(self) -> int:
        """Bytes of it all."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def with_vocabulary(self, size: int) -> PackedWeights:
        """The same memory, of the output matrix the first `size` rows."""
        return replace(self, head=replace(self.head, num_outputs=min(size, self.head.num_outputs)))


def _block_of(stored: StoredBlock) -> BlockWeights:
    matrices: dict[str, StoredMatrix] = {name: getattr(stored, name) for name in ("qkv", "out", "gate_up", "down")}
    packed = {name: PackedLinear.of(matrix) for name, matrix in matrices.items()}
    return BlockWeights(norm=stored.norm.tensor(), ffn_norm=stored.ffn_norm.tensor(), **packed)


def pack_model(model: Transformer, vocab_size: int | None = None) -> PackedWeights:
    """Pack a model; of the output matrix the first `vocab_size` rows. A packed model's own weights are handed out as they are."""
    if isinstance(model, PackedModel):
        return model.packed if vocab_size is None else model.packed.with_vocabulary(vocab_size)
    return PackedWeights(
        blocks=[pack_block(block, model.dtype) for block in model.model.layers],
        norm=model.model.norm.weight.detach().to(model.dtype),
        head=pack(model.lm_head or model.model.embed_tokens, dtype=model.dtype, rows=vocab_size),
        embedding=None if model.config.tie_word_embeddings else model.model.embed_tokens.weight.detach(),
    )


def weights_bytes(model: Transformer) -> int | None:
    """What the weights of a model take where not each is a number of the model's dtype; else None."""
    if isinstance(model, PackedModel):
        return model.packed.size_bytes
    if not quantised_matrices(model):
        return None
    return sum(part.nbytes for part in (*model.parameters(), *model.buffers()))


def runs_in_c(model: Transformer) -> bool:
    """Whether every quantised matrix of a model has a kernel here; a model with one that has none computes by itself."""
    if isinstance(model, PackedModel) or not quantised_matrices(model):
        return True
    if dispatch.native(model.device, model.dtype) is None:
        return False
    head = model.lm_head
    return all(packs(block) for block in model.model.layers) and (head is None or stack_packs((head,)))


class PackedModel(Transformer):
    """Packed weights under a model's name. `digest` names their content."""

    def __init__(self, config: ModelConfig, packed: PackedWeights, *, dtype: torch.dtype, digest: str) -> None:
        nn.Module.__init__(self)
        self.config, self.packed, self.digest, self._dtype = config, packed, digest, dtype
        self.eval()

    @property
    def device(self) -> torch.device:
        """The CPU: nothing else has packed weights."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream."""
        return self._dtype

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            "this model's weights are packed for the engine's kernels: it generates, and does nothing else",
            hint="load it with herd.checkpoint.load.load_model to compute with the model itself",
        )

    forward = hidden = logits = _refuse
