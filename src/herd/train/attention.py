"""Attention inside documents without a mask: memory grows with the row, not with its square.

Each document is a causal attention of its own. On a CPU documents of the same length run together; on a GPU all of a batch are one call
of torch's variable-length FlashAttention, since a call for each length starves it. A mask of T x T booleans costs more time (2 to 6 times
at 4K on a CPU), and at 128K it would be 16 GiB a row. Padding (document -1) attends to itself like a document.
Shapes: B batch, T tokens, N query heads, K KV heads, H head dim; X = B T; D1 documents and one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from inspect import signature
from itertools import pairwise
from typing import Any

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


def document_edges(documents_BT: Int[Tensor, "B T"]) -> Int[Tensor, "D1"]:
    """Where every run of one document number begins, counted over all rows, and the number of all tokens; on the device, int32."""
    begins = torch.ones_like(documents_BT, dtype=torch.bool)
    begins[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return torch.nn.functional.pad(begins.flatten().nonzero()[:, 0], (0, 1), value=documents_BT.numel()).int()


def document_spans(documents_BT: Int[Tensor, "B T"]) -> list[Span]:
    """Every run of one document number, in order. They cover the rows."""
    length = documents_BT.shape[1]
    edges = document_edges(documents_BT).tolist()
    return [(start // length, start % length, start % length + end - start) for start, end in pairwise(edges)]


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


class VarlenCore:
    """Causal attention inside each document, all documents of a batch in one call of FlashAttention. For 16-bit numbers on a GPU.

    Not reproducible to the bit: its backward pass adds up in any order, unless `torch.use_deterministic_algorithms` asks for one.
    """

    def __init__(self, edges_D1: Int[Tensor, "D1"], longest: int) -> None:
        """`edges_D1` as `document_edges` gives them; no document is longer than `longest`, which a row's length may be."""
        self.edges, self.longest = edges_D1, longest

    def __call__(
        self, layer: int, q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
    ) -> Float[Tensor, "B T N H"]:
        """Mix the tokens of each document."""
        q, k, v = (part.flatten(0, 1) for part in (q_BTNH, k_BTKH, v_BTKH))
        return _varlen()(q, k, v, self.edges, self.longest).view(q_BTNH.shape)

    @staticmethod
    def runs_on(device: torch.device) -> bool:
        """Whether a batch on this device, computed by autocast in what is set now, can take it."""
        narrow = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) in (torch.bfloat16, torch.float16)
        return device.type == "cuda" and narrow and torch.cuda.get_device_capability(device) >= (8, 0)


@lru_cache(maxsize=1)
def _varlen() -> Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]:
    """Torch's function over [X, heads, H]; releases that know no grouped heads get the KV heads repeated."""
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}

    def call(q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int) -> Tensor:
        if not grouped and q.shape[1] != k.shape[1]:
            k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
        return varlen_attn(q, k, v, edges, edges, longest, longest, window_size=(-1, 0), **grouped)  # pyright: ignore[reportReturnType]

    return call


def training_core(documents_BT: Int[Tensor, "B T"]) -> AttentionCore:
    """The core for packed rows: all documents at once on a GPU, else document by document, but for short rows of very short documents."""
    if VarlenCore.runs_on(documents_BT.device):
        return VarlenCore(document_edges(documents_BT), documents_BT.shape[1])
    spans = document_spans(documents_BT)
    if documents_BT.shape[1] <= MASKED_UP_TO and documents_BT.numel() < SHORT_DOCUMENTS * len(spans):
        return MaskedCore(document_mask(documents_BT))
    return DocumentCore(spans)
