"""The pool against a model that knows what every block contains: no hit is wrong, nothing is lost, what was used last goes last."""

from __future__ import annotations

from dataclasses import dataclass

from fake_engine import KEY
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from herd.engine.blocks import BlockPool
from herd.engine.request import Sequence

TOKENS = st.integers(1, 2)
"""Two tokens only: prefixes meet all the time."""
SALTS = st.sampled_from([b"", b"x"])


@dataclass(eq=False)
class Table:
    """A block table, and the tokens that its slots should hold."""

    salt: bytes
    tokens: list[int]
    blocks: list[int]
    num_registered: int = 0


class PoolMachine(RuleBasedStateMachine):
    """`slots` is the memory; `order` the free blocks with content, next to go first."""

    tables = Bundle("tables")

    @initialize(num_usable=st.integers(1, 8), block_size=st.integers(1, 3))
    def make(self, num_usable: int, block_size: int) -> None:
        self.pool = BlockPool(num_usable + 1, block_size, key=KEY)
        self.slots: list[list[tuple[bytes, tuple[int, ...]] | None]] = [[None] * block_size for _ in range(num_usable + 1)]
        self.order: list[int] = []
        self.held: list[Table] = []

    def _allocate(self, count: int) -> list[int]:
        num_blank = self.pool.num_free - self.pool.num_cached
        evicted, self.order = self.order[: max(0, count - num_blank)], self.order[max(0, count - num_blank) :]
        blocks = self.pool.allocate(count)
        assert blocks[min(count, num_blank) :] == evicted, "not the least recently used"
        for block in blocks:
            self.slots[block] = [None] * self.pool.block_size
        return blocks

    def _write(self, table: Table, position: int) -> None:
        """The slot holds the whole prefix that its token was computed from."""
        block = table.blocks[position // self.pool.block_size]
        assert sum(block in other.blocks for other in self.held) == 1, "a shared block is written"
        self.slots[block][position % self.pool.block_size] = (table.salt, tuple(table.tokens[: position + 1]))

    def _register(self, table: Table) -> None:
        sequence = self._sequence(table)
        for index in range(table.num_registered, len(table.tokens) // self.pool.block_size):
            self.pool.register(table.blocks[index], self.pool.hasher.block_hash(sequence, index))
            table.num_registered += 1

    @staticmethod
    def _sequence(table: Table) -> Sequence:
        return Sequence(id=1, prompt=tuple(table.tokens), max_new_tokens=1, salt=table.salt)

    @rule(target=tables, salt=SALTS, tokens=st.lists(TOKENS, min_size=1, max_size=10))
    def open(self, salt: bytes, tokens: list[int]) -> Table:
        """Start from what is cached, as far as there is memory for the rest."""
        size = self.pool.block_size
        table = Table(salt, tokens, [])
        hits = self.pool.lookup(self.pool.hasher.block_hashes(self._sequence(table), len(tokens) // size))
        self.pool.acquire(hits)
        self.order = [block for block in self.order if block not in hits]
        num_new = min(self.pool.blocks_for(len(tokens)) - len(hits), self.pool.num_free)
        table.blocks = hits + self._allocate(num_new)
        del tokens[len(table.blocks) * size :]
        table.num_registered = len(hits)
        self.held.append(table)
        for position in range(len(hits) * size, len(tokens)):
            self._write(table, position)
        self._register(table)
        return table

    @rule(table=tables, token=TOKENS)
    def append(self, table: Table, token: int) -> None:
        """Write one more token, after a copy where others hold the block."""
        size, position = self.pool.block_size, len(table.tokens)
        place = position // size
        if place == len(table.blocks):
            if not self.pool.num_free:
                return
            table.blocks += self._allocate(1)
        elif sum(table.blocks[place] in other.blocks for other in self.held) > 1 and not self.pool.num_free:
            return
        else:
            self._make_writable(table, position)
        table.tokens.append(token)
        self._write(table, position)
        self._register(table)

    def _make_writable(self, table: Table, position: int) -> None:
        before = list(table.blocks)
        num_blank = self.pool.num_free - self.pool.num_cached
        copy = self.pool.writable(table.blocks, position)
        if copy is None:
            assert table.blocks == before
            return
        source, destination = copy
        if not num_blank:
            assert self.order.pop(0) == destination, "not the least recently used"
        assert before[position // self.pool.block_size] == source
        self.slots[destination] = list(self.slots[source])

    @rule(table=tables)
    def rewrite_the_last(self, table: Table) -> None:
        """Compute the last token again, as a sequence does that forked from a whole prompt."""
        position = len(table.tokens) - 1
        if position < 0:
            return
        shared = sum(table.blocks[position // self.pool.block_size] in other.blocks for other in self.held) > 1
        if shared and not self.pool.num_free:
            return
        self._make_writable(table, position)
        table.num_registered = min(table.num_registered, position // self.pool.block_size)
        self._write(table, position)
        self._register(table)

    @rule(target=tables, table=tables)
    def fork(self, table: Table) -> Table:
        forked = Table(table.salt, list(table.tokens), self.pool.fork(table.blocks), table.num_registered)
        self.held.append(forked)
        return forked

    @rule(table=consumes(tables))
    def close(self, table: Table) -> None:
        self.held.remove(table)
        for block in reversed(table.blocks):
            if not any(block in other.blocks for other in self.held) and self.pool.digests[block] is not None:
                self.order.append(block)
        self.pool.release(table.blocks)

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        self.order = []

    @invariant()
    def every_table_reads_its_own_tokens(self) -> None:
        for table in self.held:
            read = [slot for block in table.blocks for slot in self.slots[block]][: len(table.tokens)]
            assert read == [(table.salt, tuple(table.tokens[: end + 1])) for end in range(len(table.tokens))]

    @invariant()
    def every_name_tells_the_content(self) -> None:
        for block, digest in enumerate(self.pool.digests):
            if digest is None:
                continue
            last = self.slots[block][-1]
            assert last is not None
            salt, tokens = last
            assert len(tokens) % self.pool.block_size == 0
            sequence = Sequence(id=1, prompt=tokens, max_new_tokens=1, salt=salt)
            assert digest == self.pool.hasher.block_hash(sequence, len(tokens) // self.pool.block_size - 1)

    @invariant()
    def the_books_are_right(self) -> None:
        self.pool.check([table.blocks for table in self.held])
        assert self.pool.num_cached == len(self.order)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase
