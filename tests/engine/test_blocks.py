"""The pool counts holders, shares by content, copies before it lets a shared block be written, and gives away the least recently used."""

from __future__ import annotations

import pytest

from herd.base.errors import ConfigError
from herd.engine.blocks import BlockPool

KEY = bytes(32)


def pool(num_usable: int = 4, block_size: int = 2) -> BlockPool:
    return BlockPool(num_usable + 1, block_size, key=KEY)


def named(blocks: BlockPool, *names: bytes) -> list[int]:
    """Blocks with these contents, held."""
    table = blocks.allocate(len(names))
    for block, name in zip(table, names, strict=True):
        blocks.register(block, name)
    return table


def test_block_0_is_no_ones() -> None:
    blocks = pool(4)
    assert sorted(blocks.allocate(4)) == [1, 2, 3, 4]
    assert blocks.num_free == 0


def test_what_is_given_back_is_free_again() -> None:
    blocks = pool(4)
    table = blocks.allocate(3)
    assert (blocks.num_free, blocks.num_references) == (1, 3)
    blocks.release(table)
    assert (blocks.num_free, blocks.num_references) == (4, 0)
    blocks.check([])


def test_a_prefix_is_found_while_its_owner_still_holds_it() -> None:
    blocks = pool()
    table = named(blocks, b"a", b"b")
    found = blocks.lookup([b"a", b"b", b"c"])
    assert found == table
    blocks.acquire(found)
    assert [blocks.refs[block] for block in table] == [2, 2]
    blocks.release(table)
    blocks.check([found])


def test_a_prefix_is_found_after_its_owner_left() -> None:
    blocks = pool()
    table = named(blocks, b"a", b"b")
    blocks.release(table)
    assert (blocks.num_free, blocks.num_cached) == (4, 2)
    assert blocks.num_free_of(blocks.lookup([b"a", b"b"])) == 2
    blocks.acquire(table)
    assert (blocks.num_free, blocks.num_cached) == (2, 0)
    blocks.check([table])


def test_a_chain_with_a_gap_is_found_up_to_the_gap() -> None:
    blocks = pool()
    first, *_ = named(blocks, b"a", b"c")
    assert blocks.lookup([b"a", b"b", b"c"]) == [first]


def test_looking_holds_nothing() -> None:
    blocks = pool()
    table = named(blocks, b"a")
    blocks.release(table)
    blocks.lookup([b"a"])
    assert blocks.num_free == 4


def test_blocks_without_content_go_first() -> None:
    blocks = pool(3)
    blocks.release(named(blocks, b"a"))
    blocks.allocate(2)
    assert blocks.holds(b"a") and blocks.num_evictions == 0
    blocks.allocate(1)
    assert not blocks.holds(b"a") and blocks.num_evictions == 1


def test_then_the_content_that_was_used_the_longest_ago() -> None:
    blocks = pool(3)
    tables = [named(blocks, name) for name in (b"a", b"b", b"c")]
    for table in tables:
        blocks.release(table)
    blocks.acquire(tables[0])
    blocks.release(tables[0])
    blocks.allocate(1)
    assert [blocks.holds(name) for name in (b"a", b"b", b"c")] == [True, False, True]
    blocks.allocate(1)
    assert [blocks.holds(name) for name in (b"a", b"b", b"c")] == [True, False, False]


def test_of_one_table_the_end_goes_before_the_beginning() -> None:
    blocks = pool(3)
    blocks.release(named(blocks, b"a", b"b", b"c"))
    for left in (2, 1, 0):
        blocks.allocate(1)
        assert len(blocks.lookup([b"a", b"b", b"c"])) == left


def test_of_two_blocks_of_one_content_the_first_has_the_name() -> None:
    blocks = pool()
    first, second = blocks.allocate(2)
    blocks.register(first, b"a")
    blocks.register(second, b"a")
    assert blocks.lookup([b"a"]) == [first]
    blocks.release([second])
    blocks.check([[first]])


def test_a_block_that_others_hold_is_copied_before_it_is_written() -> None:
    blocks = pool()
    mine = blocks.allocate(2)
    yours = blocks.fork(mine)
    copy = blocks.writable(yours, 3)
    assert copy == (mine[1], yours[1]) and mine[1] != yours[1] and mine[0] == yours[0]
    assert blocks.writable(mine, 3) is None, "the last holder writes in place"
    blocks.check([mine, yours])


def test_a_block_written_in_place_loses_its_name() -> None:
    blocks = pool()
    table = named(blocks, b"a")
    assert blocks.writable(table, 1) is None
    assert not blocks.holds(b"a")
    blocks.check([table])


def test_a_copy_leaves_the_name_with_the_original() -> None:
    blocks = pool()
    mine = named(blocks, b"a")
    yours = blocks.fork(mine)
    blocks.writable(yours, 0)
    assert blocks.lookup([b"a"]) == mine
    assert blocks.digests[yours[0]] is None


def test_forgetting_leaves_blocks_but_no_content() -> None:
    blocks = pool()
    kept = named(blocks, b"a")
    blocks.release(named(blocks, b"b"))
    blocks.forget()
    assert not blocks.holds(b"a") and not blocks.holds(b"b")
    assert (blocks.num_free, blocks.num_cached) == (3, 0)
    blocks.check([kept])


def test_more_than_is_free_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="5 blocks wanted, 4 free"):
        pool(4).allocate(5)


@pytest.mark.parametrize(("num_blocks", "block_size"), [(1, 16), (0, 16), (8, 0)])
def test_sizes_without_a_use_are_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ConfigError, match="it must"):
        BlockPool(num_blocks, block_size, key=KEY)


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (2, 1), (3, 2)])
def test_blocks_for_rounds_up(num_tokens: int, num_blocks: int) -> None:
    assert pool(block_size=2).blocks_for(num_tokens) == num_blocks
