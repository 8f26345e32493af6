"""A digest names a whole prefix, its adapter and its salt, and nobody without the key can compute it."""

from __future__ import annotations

import hashlib
from itertools import product

import pytest

from herd.base.errors import ConfigError
from herd.engine.prefix import MAX_TOKEN_ID, PrefixHasher
from herd.engine.request import Sequence

KEY = bytes(range(32))


def digests(prompt: tuple[int, ...], *, key: bytes = KEY, salt: bytes = b"", adapter: str = "", block_size: int = 2) -> list[bytes]:
    sequence = Sequence(id=1, prompt=prompt, max_new_tokens=1, salt=salt, adapter=adapter)
    return list(PrefixHasher(key, block_size).block_hashes(sequence, len(prompt) // block_size))


def test_equal_prefixes_have_equal_digests() -> None:
    one, other = digests((1, 2, 3, 4, 5, 6)), digests((1, 2, 3, 4, 9, 9))
    assert one[:2] == other[:2] and one[2] != other[2]


def test_a_block_is_named_with_all_that_comes_before_it() -> None:
    assert digests((1, 2, 3, 4))[1] != digests((9, 9, 3, 4))[1]


@pytest.mark.parametrize("change", [{"salt": b"other"}, {"adapter": "other"}, {"key": bytes(32)}])
def test_salt_adapter_and_key_change_every_digest(change: dict[str, bytes]) -> None:
    assert not set(digests((1, 2, 3, 4))) & set(digests((1, 2, 3, 4), **change))  # type: ignore[arg-type]


def test_what_is_salt_and_what_adapter_is_never_confused() -> None:
    pairs = list(product([b"", b"a", b"ab", b"\0"], ["", "a", "b", "ba", "\0"]))
    assert len({digests((1, 2), salt=salt, adapter=adapter)[0] for salt, adapter in pairs}) == len(pairs)


def test_without_the_key_a_digest_cannot_be_computed() -> None:
    """The construction is public: with the wrong key, or none, it gives something else."""
    hasher = PrefixHasher(KEY, 2)
    root = hasher.root(b"", "")
    message = root + (1).to_bytes(4, "little") + (2).to_bytes(4, "little")
    keyed = hashlib.blake2b(message, key=KEY, digest_size=32, person=b"herd block").digest()
    plain = hashlib.blake2b(message, digest_size=32, person=b"herd block").digest()
    assert hasher.digest(root, [1, 2]) == keyed != plain


def test_output_is_named_like_a_prompt() -> None:
    """The next turn of a conversation finds what this one wrote."""
    sequence = Sequence(id=1, prompt=(1, 2, 3), max_new_tokens=9, output=[4, 5, 6])
    assert list(PrefixHasher(KEY, 2).block_hashes(sequence, 3)) == digests((1, 2, 3, 4, 5, 6))


def test_each_block_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = PrefixHasher(KEY, 2)
    hashed: list[list[int]] = []
    digest = hasher.digest
    monkeypatch.setattr(hasher, "digest", lambda parent, tokens: hashed.append(tokens) or digest(parent, tokens))
    sequence = Sequence(id=1, prompt=(1, 2, 3, 4, 5, 6), max_new_tokens=1)
    for _ in range(2):
        next(hasher.block_hashes(sequence, 3))
    assert hashed == [[1, 2]], "it hashes only as far as it is asked"
    list(hasher.block_hashes(sequence, 3))
    assert hashed == [[1, 2], [3, 4], [5, 6]]


def test_the_largest_token_id_is_hashed() -> None:
    assert len(digests((MAX_TOKEN_ID, 0))[0]) == 32


@pytest.mark.parametrize("length", [0, 15, 65])
def test_a_key_that_is_guessed_or_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(ConfigError, match=f"{length} bytes") as caught:
        PrefixHasher(bytes(length), 16)
    assert caught.value.hint == "take secrets.token_bytes(32)"
