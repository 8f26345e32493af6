"""Hashed n-grams: plain text first, the same places on every machine, rows as a matrix would have them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.safety.features import hashes, plain, rows_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I G N O R E  the rules", "ignore the rules"),
        ("ig\u200bno\u00adre", "ignore"),
        ("ＩＧＮＯＲＥ", "ignore"),
        ("іgnоrе", "ignore"),  # with Cyrillic letters
        ("1gn0re", "ignore"),
        ("k1ll", "kill"),
        ("h@te", "hate"),
        ("Привет мир", "привет мир"),
        ("a\n\n b\t c", "a b c"),
        ("1984 and 42", "1984 and 42"),
        ("Straße", "strasse"),
    ],
)
def test_what_an_attacker_does_to_letters_is_undone(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_the_hashes_are_these_on_every_machine() -> None:
    found = hashes("Hello wörld")
    assert len(found) == 2 + 1 + 0 + (13 - 2) + (13 - 3) + (13 - 4)
    assert found[:3].tolist() == hashes("hello wörld")[:3].tolist()
    assert [int(value) for value in found[:3]] == HELLO


HELLO = [2598896727, 1672637453, 267256916]


@given(st.lists(st.text(max_size=60), min_size=1, max_size=6), st.integers(0, 2**31))
def test_rows_are_a_matrix(texts: list[str], seed: int) -> None:
    size = 256
    rows = rows_of(texts, size)
    dense = np.zeros((len(texts), size))
    for row in range(len(rows)):
        dense[row, rows.places[rows.starts[row] : rows.starts[row + 1]]] = rows.values[rows.starts[row] : rows.starts[row + 1]]
    draw = np.random.default_rng(seed)
    weights, by_row = draw.normal(size=size), draw.normal(size=len(texts))
    np.testing.assert_allclose(rows.dot(weights), dense @ weights, atol=1e-6)
    np.testing.assert_allclose(rows.spread(by_row, size), dense.T @ by_row, atol=1e-6)
    order = draw.permutation(len(texts))
    np.testing.assert_allclose(rows.take(order).dot(weights), (dense @ weights)[order], atol=1e-6)
    lengths = np.linalg.norm(dense, axis=1)
    assert np.all(np.isclose(lengths, 1.0) | (lengths == 0.0))


@given(st.text(max_size=200))
def test_any_text_has_features_and_being_plain_is_stable_in_space(text: str) -> None:
    assert len(rows_of([text], 1024)) == 1
    assert "  " not in plain(text)
