"""The cache's blocks: who holds them, what they contain, which is given away next. No torch, no tensors: numbers of blocks only.

Every block is held (by one block table or by several) or free. A full block is registered under the digest of its content, and then never
written while others may read it: whoever comes with the same prefix holds it too, also while its first owner runs. A free block keeps its
content until it is needed; blocks without content go first, then the one whose content was used the longest ago. Block 0 is no one's:
padding may write there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from herd.base.errors import ConfigError
from herd.engine.prefix import PrefixHasher


class BlockPool:
    """Blocks 1 .. num_blocks-1 of `block_size` tokens. `key` is the secret of the content's digests.

    Attributes:
        refs: how many block tables hold each block.
        digests: the name of each block's content, None where it has none.
        num_references: their sum.
        num_queried_tokens: tokens of the sequences that looked for their prefix, since the start.
        num_hit_tokens: tokens of these that were found.
        num_evictions: contents lost to make room.
    """

    def __init__(self, num_blocks: int, block_size: int, *, key: bytes) -> None:
        """Raises ConfigError for sizes that leave no block to hold."""
        if num_blocks < 2:
            raise ConfigError(
                f"the cache has {num_blocks} blocks, it must have at least 2", hint="block 0 is reserved; give the cache more"
            )
        if block_size < 1:
            raise ConfigError(f"a block has {block_size} tokens, it must have at least 1", hint="16 is usual")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.hasher = PrefixHasher(key, block_size)
        self.refs = [0] * num_blocks
        self.num_references = 0
        self.num_queried_tokens = self.num_hit_tokens = self.num_evictions = 0
        self.digests: list[bytes | None] = [None] * num_blocks
        self._by_digest: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_usable(self) -> int:
        """All blocks that can be held."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks that no one holds."""
        return len(self._blank) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Free blocks that still have content."""
        return len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks so many tokens take."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Blocks for one new holder; their content is gone. There have to be that many free."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} free"
        blocks = [self._take() for _ in range(count)]
        for block in blocks:
            self.refs[block] = 1
        self.num_references += count
        return blocks

    def _take(self) -> int:
        if self._blank:
            return self._blank.pop()
        block, _ = self._cached.popitem(last=False)
        self._forget(block)
        self.num_evictions += 1
        return block

    def _forget(self, block: int) -> None:
        digest = self.digests[block]
        assert digest is not None
        del self._by_digest[digest]
        self.digests[block] = None

    def release(self, blocks: list[int]) -> None:
        """Give a block table back. Content stays, and of one table the end is evicted before the beginning, which more prefixes share."""
        refs = self.refs
        for block in reversed(blocks):
            refs[block] -= 1
            if refs[block] == 0:
                if self.digests[block] is None:
                    self._blank.append(block)
                else:
                    self._cached[block] = None
        self.num_references -= len(blocks)

    def acquire(self, blocks: list[int]) -> None:
        """Hold blocks that have content once more: found ones, or those of a running sequence."""
        refs = self.refs
        for block in blocks:
            if refs[block] == 0:
                del self._cached[block]
            refs[block] += 1
        self.num_references += len(blocks)

    def fork(self, blocks: list[int]) -> list[int]:
        """A second table over the same blocks."""
        self.acquire(blocks)
        return list(blocks)

    def lookup(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks of a prefix, as far as they are here. Not held yet: `acquire` them before anything is allocated."""
        found: list[int] = []
        known = self._by_digest
        for digest in digests:
            block = known.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def find(self, digest: bytes) -> int | None:
        """The block of this content, if it is here."""
        return self._by_digest.get(digest)

    def holds(self, digest: bytes) -> bool:
        """Whether a block of this content is here."""
        return digest in self._by_digest

    def num_free_of(self, blocks: list[int]) -> int:
        """How many of these no one holds."""
        refs = self.refs
        return sum(not refs[block] for block in blocks)

    def count_lookup(self, num_tokens: int, num_hits: int) -> None:
        """Count a prefix that was looked for and is going to be used."""
        self.num_queried_tokens += num_tokens
        self.num_hit_tokens += num_hits

    def register(self, block: int, digest: bytes) -> None:
        """Name the content of a full, computed block. Where another block has the same content already, this one stays nameless."""
        if digest not in self._by_digest:
            assert self.digests[block] is None, f"block {block} has two contents"
            self._by_digest[digest] = block
            self.digests[block] = digest

    def writable(self, blocks: list[int], position: int) -> tuple[int, int] | None:
        """Make the block of `position` the table's own before it is written: (source, destination) to copy, None where it is already.

        A copy takes a free block. A block written in place loses its name until it is registered again.
        """
        index = position // self.block_size
        block = blocks[index]
        if self.refs[block] > 1:
            (own,) = self.allocate(1)
            blocks[index] = own
            self.refs[block] -= 1
            self.num_references -= 1
            return block, own
        if self.digests[block] is not None:
            self._forget(block)
        return None

    def forget(self) -> None:
        """Forget all content, for instance because the weights changed."""
        self._by_digest.clear()
        self.digests = [None] * self.num_blocks
        self._blank += reversed(self._cached)
        self._cached.clear()

    def check(self, tables: Iterable[list[int]]) -> None:
        """Assert that the books are right, given every block table there is."""
        counted = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counted[block] += 1
        assert counted == self.refs, "a block's count of holders is wrong"
        assert counted[0] == 0, "someone holds block 0"
        assert self.num_references == sum(counted)
        free = sorted([*self._blank, *self._cached])
        assert free == [block for block in range(1, self.num_blocks) if not counted[block]], "a block is lost, or free and held"
        assert all(self.digests[block] is None for block in self._blank)
        assert all(self.digests[block] is not None for block in self._cached)
        named = {digest: block for block, digest in enumerate(self.digests) if digest is not None}
        assert named == self._by_digest, "names and blocks differ"
