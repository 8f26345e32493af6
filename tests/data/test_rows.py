"""Packing: no token is lost, doubled, moved or shown to a neighbour, and the rows are as few as best fit makes them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.data.rows import Document, Rows, best_fit, pack, split_document

PAD = 10**6


def numbered(lengths: list[int], counts: list[list[bool] | None] | None = None) -> list[Document]:
    """Documents of these lengths in which no two tokens are equal, so that each can be found in the rows."""
    starts = np.cumsum([0, *lengths])
    return [
        Document(ids=list(range(int(start), int(start) + length)), counts=counts[number] if counts else None)
        for number, (start, length) in enumerate(zip(starts, lengths, strict=False))
    ]


def pieces_of(rows: Rows) -> list[list[int]]:
    """The tokens of every numbered piece in the rows, in their places; checks that a piece is one run and the rest is padding."""
    pieces: list[list[int]] = []
    for tokens, documents in zip(rows.tokens.tolist(), rows.documents.tolist(), strict=True):
        present = [number for number in documents if number >= 0]
        assert present == sorted(present), "a piece is one run, and pieces are numbered in their order"
        assert sorted(set(present)) == list(range(len(set(present)))), "numbers begin at 0 and leave none out"
        assert documents[len(present) :] == [-1] * (len(documents) - len(present)), "padding is at the end"
        assert set(tokens[len(present) :]) <= {PAD}
        for number in sorted(set(present)):
            pieces += [[token for token, owner in zip(tokens, documents, strict=True) if owner == number]]
    return pieces


LENGTHS = st.lists(st.integers(0, 40), max_size=30)


@settings(deadline=None, max_examples=300)
@given(lengths=LENGTHS, sequence_length=st.integers(2, 16), split=st.booleans())
def test_packing_loses_and_doubles_no_token_and_keeps_every_document_in_order(
    lengths: list[int], sequence_length: int, split: bool
) -> None:
    documents = numbered(lengths)
    rows = pack(documents, sequence_length, pad_id=PAD, split=split)
    kept = [document for document in documents if len(document.ids) >= 2 and (split or len(document.ids) <= sequence_length + 1)]
    pieces = sorted(pieces_of(rows))
    # Every token has its own number, so the pieces in the order of their first token are the documents one after another.
    assert [token for piece in pieces for token in piece] == [token for document in kept for token in document.ids]
    # A piece never spans two documents: what follows a document's end begins a piece.
    begins = {piece[0] for piece in pieces}
    assert all(document.ids[0] in begins for document in kept)
    assert all(len(piece) >= 2 for piece in pieces)
    assert rows.num_documents == len(documents)
    assert rows.num_dropped == len(documents) - len(kept)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), sequence_length=st.integers(2, 12))
def test_a_token_counts_as_its_document_says_except_the_first_of_a_piece(data: st.DataObject, sequence_length: int) -> None:
    lengths = data.draw(st.lists(st.integers(2, 30), min_size=1, max_size=12))
    counts = [data.draw(st.none() | st.lists(st.booleans(), min_size=length, max_size=length)) for length in lengths]
    rows = pack(numbered(lengths, counts), sequence_length, pad_id=PAD)
    wanted = [flag for length, flags in zip(lengths, counts, strict=True) for flag in (flags or [True] * length)]
    for tokens, documents, counted in zip(rows.tokens, rows.documents, rows.counts, strict=True):
        for place, token in enumerate(tokens):
            first = place == 0 or documents[place] != documents[place - 1]
            assert counted[place] == (token != PAD and not first and wanted[token])


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, sequence_length=st.integers(1, 16), split=st.booleans())
def test_packing_is_a_pure_function_of_its_input(lengths: list[int], sequence_length: int, split: bool) -> None:
    first = pack(numbered(lengths), sequence_length, pad_id=PAD, split=split)
    again = pack(iter(numbered(lengths)), sequence_length, pad_id=PAD, split=split)
    for name in ("tokens", "documents", "counts"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def simple_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best fit decreasing, by looking at every bin for every item."""
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        room = [capacity - sum(lengths[other] for other in held) for held in bins]
        fitting = [(free, number) for number, free in enumerate(room) if free >= lengths[item]]
        if fitting:
            bins[min(fitting)[1]].append(item)
        else:
            bins.append([item])
    return bins


@settings(deadline=None, max_examples=300)
@given(capacity=st.integers(1, 30), data=st.data())
def test_best_fit_equals_looking_at_every_bin(capacity: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    assert best_fit(lengths, capacity) == simple_best_fit(lengths, capacity)


@settings(deadline=None, max_examples=200)
@given(capacity=st.integers(1, 50), data=st.data())
def test_every_item_is_in_one_bin_and_no_bin_overflows(capacity: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    bins = best_fit(lengths, capacity)
    assert Counter(item for held in bins for item in held) == Counter(range(len(lengths)))
    fills = [sum(lengths[item] for item in held) for held in bins]
    assert all(fill <= capacity for fill in fills)
    # No two bins could have been one.
    assert all(first + second > capacity for first, second in zip(sorted(fills), sorted(fills)[1:], strict=False))


def test_best_fit_fills_rows_that_can_be_filled() -> None:
    assert best_fit([3, 7, 5, 5, 6, 4], 10) == [[1, 0], [4, 5], [2, 3]]


@settings(deadline=None, max_examples=200)
@given(size=st.integers(0, 100), length=st.integers(3, 20), masked=st.booleans())
def test_a_split_document_is_its_pieces_and_none_is_too_long_or_too_short(size: int, length: int, masked: bool) -> None:
    ids = list(range(size))
    counts = [number % 3 == 0 for number in ids] if masked else None
    pieces = split_document(Document(ids=ids, counts=counts), length)
    assert [token for piece in pieces for token in piece.ids] == ids
    assert counts is None or [flag for piece in pieces for flag in piece.counts or ()] == counts
    assert all(len(piece.ids) <= length for piece in pieces)
    assert len(pieces) == max(1, -(-size // length)), "as few pieces as there can be"
    assert size < 2 or all(len(piece.ids) >= 2 for piece in pieces)


def test_rows_hold_one_token_more_than_the_sequence_and_small_types() -> None:
    rows = pack(numbered([3, 9, 4]), 8, pad_id=PAD)
    assert len(rows) == 2
    assert rows.tokens.shape == rows.documents.shape == rows.counts.shape == (2, 9)
    assert (rows.tokens.dtype, rows.documents.dtype, rows.counts.dtype) == (np.int32, np.int16, np.bool_)
    np.testing.assert_array_equal(rows.documents, [[0] * 9, [0, 0, 0, 0, 1, 1, 1, -1, -1]])
    np.testing.assert_array_equal(rows.tokens[1], [12, 13, 14, 15, 0, 1, 2, PAD, PAD])
    np.testing.assert_array_equal(rows.counts[1], [False, True, True, True, False, True, True, False, False])


@pytest.mark.parametrize("split", [True, False])
def test_no_documents_make_no_rows(split: bool) -> None:
    rows = pack(numbered([0, 1]), 8, pad_id=PAD, split=split)
    assert len(rows) == 0 and rows.tokens.shape == (0, 9)
    assert (rows.num_documents, rows.num_dropped) == (2, 2)


def test_a_dialogue_that_is_too_long_is_dropped_whole_and_a_document_is_cut() -> None:
    dialogues = pack(numbered([9, 10, 4]), 8, pad_id=PAD, split=False)
    assert (dialogues.num_documents, dialogues.num_dropped) == (3, 1)
    assert sorted(map(len, pieces_of(dialogues))) == [4, 9]
    texts = pack(numbered([9, 10, 4]), 8, pad_id=PAD)
    assert texts.num_dropped == 0
    assert sorted(map(len, pieces_of(texts))) == [2, 4, 8, 9]
