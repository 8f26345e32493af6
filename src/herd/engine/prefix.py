"""Names of blocks by content: a keyed hash chain over token ids. No torch.

    root     = BLAKE2b_key("root",  len(salt) | salt | adapter)
    digest_i = BLAKE2b_key("block", digest_(i-1) | token ids of block i)

A digest stands for the whole prefix up to the block's end, for the adapter that computed it and for the salt of those who may share it.
The key is secret and random, so that no one can look for two prefixes of the same digest, nor tell a digest for tokens he guesses.
RFC 7693 is BLAKE2.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

from herd.base.errors import ConfigError
from herd.engine.request import Sequence

DIGEST_BYTES = 32
MAX_TOKEN_ID = 2**32 - 1
"""A token id takes four bytes of what is hashed."""


class PrefixHasher:
    """Digests for blocks of `block_size` tokens."""

    def __init__(self, key: bytes, block_size: int) -> None:
        """Raises ConfigError for a key that is guessed too easily or longer than BLAKE2b takes."""
        if not 16 <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise ConfigError(
                f"the prefix cache's key has {len(key)} bytes, it must have 16 to {hashlib.blake2b.MAX_KEY_SIZE}",
                hint="take secrets.token_bytes(32)",
            )
        self.block_size = block_size
        self._pack = struct.Struct(f"<{block_size}I").pack
        # A copy of a state that has taken in the key is cheaper than a keyed state made anew.
        self._root = hashlib.blake2b(key=key, digest_size=DIGEST_BYTES, person=b"herd root")
        self._block = hashlib.blake2b(key=key, digest_size=DIGEST_BYTES, person=b"herd block")

    def root(self, salt: bytes, adapter: str) -> bytes:
        """Where a chain begins."""
        state = self._root.copy()
        state.update(len(salt).to_bytes(8, "little") + salt + adapter.encode())
        return state.digest()

    def digest(self, parent: bytes, tokens: list[int]) -> bytes:
        """The digest of a full block after `parent`."""
        state = self._block.copy()
        state.update(parent + self._pack(*tokens))
        return state.digest()

    def block_hash(self, sequence: Sequence, index: int) -> bytes:
        """The digest of its block `index`, all of whose tokens are known; kept in `block_hashes`, so that each is hashed once."""
        hashes, size = sequence.block_hashes, self.block_size
        while len(hashes) <= index:
            place = len(hashes) * size
            parent = hashes[-1] if hashes else self.root(sequence.salt, sequence.adapter)
            hashes.append(self.digest(parent, sequence.tokens(place, place + size)))
        return hashes[index]

    def block_hashes(self, sequence: Sequence, count: int) -> Iterator[bytes]:
        """Digests of its first `count` blocks, hashed only as far as they are asked for."""
        return (self.block_hash(sequence, index) for index in range(count))
