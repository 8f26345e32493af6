"""Rows of tokens: what a training step reads. Documents are packed into rows of a fixed length by best fit.

A row holds T + 1 tokens, the document each belongs to (attention stays inside it) and whether each token counts in the loss. Documents
longer than a row are cut into row-long pieces; a dialogue that is too long is left out and counted, since half an answer teaches the wrong
end.
Knows token ids only. Shapes: R rows, T sequence length.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

RowBatch = tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.bool_]]
"""Tokens, document numbers and loss mask, each [rows, T+1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Token ids of one document, and for each whether it counts in the loss (None: all do)."""

    ids: Sequence[int]
    counts: Sequence[bool] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Packed rows: tokens int32 [R, T+1], document numbers int16 [R, T+1] (-1 on padding), loss mask bool [R, T+1]."""

    tokens: NDArray[np.int32]
    documents: NDArray[np.int16]
    counts: NDArray[np.bool_]
    num_documents: int = 0
    num_dropped: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def row_length(self) -> int:
        """Tokens of a row: T + 1."""
        return self.tokens.shape[1]

    def take(self, rows: NDArray[np.int64]) -> RowBatch:
        """Tokens, document numbers and loss mask of some rows."""
        return self.tokens[rows], self.documents[rows], self.counts[rows]


def split_document(document: Document, length: int) -> list[Document]:
    """Cut a document into pieces of at most `length` tokens; the last has two at least, since a token alone is never predicted."""
    ids, counts = document.ids, document.counts
    if len(ids) <= length:
        return [document]
    cuts = [*range(0, len(ids), length), len(ids)]
    if cuts[-1] - cuts[-2] == 1 and length > 2:
        cuts[-2] -= 1
    return [Document(ids=ids[start:end], counts=None if counts is None else counts[start:end]) for start, end in pairwise(cuts)]


def best_fit(lengths: Sequence[int], capacity: int, *, max_items: int | None = None) -> list[list[int]]:
    """Assign items to bins: each, longest first, to the fullest bin that still holds it. Returns the item numbers of every bin.

    Ties keep the order of the items, so the result is a pure function of the lengths. A bin takes at most `max_items`. O(n log n)
    comparisons: open bins are kept by their room, of which there are at most `capacity`.
    """
    bins: list[list[int]] = []
    rooms: list[int] = []
    open_bins: dict[int, list[int]] = {}
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(rooms, lengths[item])
        if place == len(rooms):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            number = heappop(open_bins[room])
            if not open_bins[room]:
                del rooms[place]
        bins[number].append(item)
        room -= lengths[item]
        if room > 0 and len(bins[number]) != max_items:
            if not open_bins.setdefault(room, []):
                insort(rooms, room)
            heappush(open_bins[room], number)
    return bins


def pack(documents: Iterable[Document], sequence_length: int, *, pad_id: int, split: bool = True) -> Rows:
    """Pack documents into rows of `sequence_length` + 1 tokens. With `split` false, longer documents are dropped and counted.

    Documents of fewer than two tokens hold nothing to predict: they are dropped and counted too.
    """
    capacity = sequence_length + 1
    pieces: list[Document] = []
    num_documents = num_dropped = 0
    for document in documents:
        num_documents += 1
        if len(document.ids) < 2 or (not split and len(document.ids) > capacity):
            num_dropped += 1
        else:
            pieces.extend(split_document(document, capacity))
    bins = best_fit([len(piece.ids) for piece in pieces], capacity)
    tokens = np.full((len(bins), capacity), pad_id, dtype=np.int32)
    numbers = np.full((len(bins), capacity), -1, dtype=np.int16)
    counts = np.zeros((len(bins), capacity), dtype=np.bool_)
    for row, items in enumerate(bins):
        end = 0
        for number, item in enumerate(items):
            piece = pieces[item]
            start, end = end, end + len(piece.ids)
            tokens[row, start:end] = piece.ids
            numbers[row, start:end] = number
            counts[row, start:end] = True if piece.counts is None else piece.counts
            counts[row, start] = False  # the first token of a piece has nothing before it to be predicted from
    return Rows(tokens=tokens, documents=numbers, counts=counts, num_documents=num_documents, num_dropped=num_dropped)
