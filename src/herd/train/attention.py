"""Attention inside documents without a mask: memory grows with the row, not with its square.

Each document is a causal attention of its own; documents of the same length run together. A mask of T x T booleans costs more time
(2 to 6 times at 4K on a CPU), and at 128K it would be 16 GiB a row. Padding (document -1) attends to itself like a document.
Shapes: B batch, T tokens, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from herd.model.attention import AttentionCore, MaskedCore, document_mask, sdpa
from herd.train.blockwise import blockwise_attention, is_faster

MASKED_UP_TO = 2048
SHORT_DOCUMENTS = 32
"""Rows of at most so many tokens, whose documents have fewer than so many on average, take the mask: one call beats very many."""

Span = tuple[int, int, int]
"""Row, first token and end of a document."""


def document_spans(documents_BT: Int[Tensor, "B T"]) -> list[Span]:
    """Every run of one document number, in order. They cover the rows."""
    spans: list[Span] = []
    for row, numbers in enumerate(documents_BT.tolist()):
        starts = [0, *(place for place in range(1, len(numbers)) if numbers[place] != numbers[place - 1]), len(numbers)]
        spans += [(row, start, end) for start, end in pairwise(starts)]
    return spans


class DocumentCore:
    """Causal attention inside each span; nothing of size T x T exists."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = list(spans)
        self._by_length: dict[int, list[int]] = {}
        for number, (_, start, end) in enumerate(self.spans):
            self._by_length.setdefault(end - start, []).append(number)

    def __call__(
        self, layer: int, q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
    ) -> Float[Tensor, "B T N H"]:
        """Mix the tokens of each document."""
        pieces: list[Tensor | None] = [None] * len(self.spans)
        for members in self._by_length.values():
            q, k, v = (
                torch.stack([part[row, start:end] for row, start, end in (self.spans[member] for member in members)])
                for part in (q_BTNH, k_BTKH, v_BTKH)
            )
            out = blockwise_attention(q, k, v) if is_faster(q) else sdpa(q, k, v, causal=True)
            for member, piece in zip(members, out.unbind(0), strict=True):
                pieces[member] = piece
        return torch.cat([piece for piece in pieces if piece is not None]).view(q_BTNH.shape)


def training_core(documents_BT: Int[Tensor, "B T"]) -> AttentionCore:
    """The core for packed rows: document by document, but for short rows of very short documents."""
    spans = document_spans(documents_BT)
    if documents_BT.shape[1] <= MASKED_UP_TO and documents_BT.numel() < SHORT_DOCUMENTS * len(spans):
        return MaskedCore(document_mask(documents_BT))
    return DocumentCore(spans)
