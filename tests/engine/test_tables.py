"""Block tables kept from step to step are the lists they stand for, whatever came before."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from herd.engine.tables import BlockTables


def same(tables: BlockTables, lists: list[list[int]], *, moved: bool = False) -> None:
    found = tables.of(lists, moved=moved)
    assert found.dtype == np.int32 and len(found) == len(lists)
    assert [found[row, : len(blocks)].tolist() for row, blocks in enumerate(lists)] == lists


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["grow", "come", "go", "swap", "move", "nothing"]), st.integers(0, 30), st.integers(1, 5)), max_size=60
    )
)
def test_the_rows_are_the_lists(steps: list[tuple[str, int, int]]) -> None:
    tables, lists, block = BlockTables(), [[1, 2]], 3
    for kind, place, count in steps:
        place %= len(lists)
        moved = kind == "move"
        if kind == "grow":
            lists[place] += range(block, block + count)
        elif kind == "come":
            lists.insert(place, list(range(block, block + count)))
        elif kind == "go" and len(lists) > 1:
            del lists[place]
        elif kind == "swap":
            lists[place], lists[-1] = lists[-1], lists[place]
        elif kind == "move":
            lists[place][0] = block
        block += count
        same(tables, lists, moved=moved)


def test_a_new_list_of_the_same_length_takes_the_place_of_the_old() -> None:
    tables = BlockTables()
    same(tables, [[1, 2, 3], [4]])
    same(tables, [[5, 6, 7], [4]])
    same(tables, [[5, 6, 7]])
    same(tables, [[5, 6, 7], [8, 9]])
