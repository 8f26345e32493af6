"""Context parallel: every rank has two chunks of each row, and gathers all keys and values. Llama 3 report, section 3.3.2.

A row is cut in 2 x CP chunks; rank i has chunks i and 2 CP - 1 - i, so that the causal work is the same on all. Keys and values of all
ranks are gathered before attention, in one message, and their gradients are added up and scattered on the way back. Any document mask
works, since each rank sees all documents' numbers; a chunk that begins inside a document needs no mask for that (`past`). Memory is that of
K and V of one layer, small beside Q with grouped queries.
Shapes: B batch, T tokens of a row, C = T / CP, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from herd.kernels.torch_compat import all_gather_flat, reduce_scatter_flat
from herd.model.attention import AttentionCore, document_mask, sdpa
from herd.train.attention import MASKED_UP_TO, SHORT_DOCUMENTS, Span, document_spans
from herd.train.parallel.past import last_tokens


def local_positions(length: int, ranks: int, rank: int, device: torch.device | str = "cpu") -> Int[Tensor, "C"]:
    """The places of a row that a rank has, in its order."""
    if ranks == 1:
        return torch.arange(length, device=device)
    size = length // (2 * ranks)
    first, second = rank * size, (2 * ranks - 1 - rank) * size
    return torch.cat([torch.arange(start, start + size, device=device) for start in (first, second)])


def global_order(length: int, ranks: int, device: torch.device | str = "cpu") -> Int[Tensor, "T"]:
    """Where each place of a row is in what the ranks gathered, one after the other."""
    gathered = torch.cat([local_positions(length, ranks, rank, device) for rank in range(ranks)])
    return torch.argsort(gathered)


class _GatherRows(torch.autograd.Function):
    """[...] of each rank to [ranks, ...]; backward adds up and scatters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        ranks = dist.get_world_size(group)
        out = x.new_empty((ranks * x.shape[0], *x.shape[1:]))
        all_gather_flat(out, x.contiguous(), group)
        return out.view(ranks, *x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        out = grad.new_empty(grad.shape[1:])
        reduce_scatter_flat(out, grad.flatten(0, 1), ctx.group)
        return out, None


class ContextCore:
    """Attention of this rank's queries over everyone's keys and values."""

    def __init__(self, documents_BT: Int[Tensor, "B T"], *, group: Any, ranks: int, rank: int) -> None:
        self.documents, self.group, self.ranks, self.rank = documents_BT, group, ranks, rank
        self.length = documents_BT.shape[1]
        self._order: Tensor | None = None
        spans = document_spans(documents_BT)
        self.mask: Tensor | None = None
        if self.length <= MASKED_UP_TO and documents_BT.numel() < SHORT_DOCUMENTS * len(spans):
            self.mask = document_mask(documents_BT)[:, :, local_positions(self.length, ranks, rank, documents_BT.device)]
        self._pieces = self._cut(spans)

    def _cut(self, spans: list[Span]) -> list[tuple[int, int, int, int, int]]:
        """(row, first local query, queries, first key, keys) of each document in each of this rank's chunks, in the order of the output."""
        size = self.length // (2 * self.ranks)
        starts = (self.rank * size, (2 * self.ranks - 1 - self.rank) * size)
        found: list[tuple[int, int, int, int, int]] = []
        for row in range(self.documents.shape[0]):
            for number, begin in enumerate(starts):
                for of_row, start, end in spans:
                    first, last = max(start, begin), min(end, begin + size)
                    if of_row == row and first < last:
                        found.append((row, number * size + first - begin, last - first, start, last - start))
        return found

    def __call__(
        self, layer: int, q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
    ) -> Float[Tensor, "B T N H"]:
        """Gather, then mix. T is this rank's part of the row, S the whole."""
        k_BSKH, v_BSKH = self._gather(torch.stack((k_BTKH, v_BTKH)))
        if self.mask is not None:
            return sdpa(q_BTNH, k_BSKH, v_BSKH, self.mask.to(q_BTNH.device))
        out = [
            last_tokens(q_BTNH[row : row + 1, first : first + queries], *(x[row : row + 1, key : key + keys] for x in (k_BSKH, v_BSKH)))
            for row, first, queries, key, keys in self._pieces
        ]
        return torch.cat([piece[0] for piece in out]).view(q_BTNH.shape)

    def _gather(self, both: Tensor) -> tuple[Tensor, Tensor]:
        whole = _GatherRows.apply(both, self.group)
        if self._order is None:
            self._order = global_order(self.length, self.ranks, both.device)
        # [ranks, 2, B, C, K, H] -> [2, B, ranks * C, K, H] in the order of the row
        whole = whole.permute(1, 2, 0, 3, 4, 5).flatten(2, 3).index_select(2, self._order)  # pyright: ignore[reportOptionalMemberAccess]
        return whole[0], whole[1]


def context_core(documents_BT: Int[Tensor, "B T"], *, group: Any, ranks: int, rank: int) -> AttentionCore:
    """The core of a rank for packed rows."""
    return ContextCore(documents_BT, group=group, ranks=ranks, rank=rank)
