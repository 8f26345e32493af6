"""What ranks send each other, over gloo: the one file that names `torch.distributed`.

Groups are made by hand, so that several engines may live in one process, and beside a group of the caller's. They meet through a file in a
private folder and talk over 127.0.0.1. Only tensors travel, never objects, which torch would pickle.
Gloo's all-reduce sums in an order that depends on the tensor's size: with 4 ranks a row's sum changes with the number of rows. So parts are
gathered and summed here, in the order of ranks, each in float32: a row's sum is the same in any batch, and the same on every rank.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor

from herd.engine.parallel.layout import Layout

STORE_FILE = "ranks"
_dist: Any = torch.distributed
"""Stores and groups are public in its documentation, not to type checkers."""


def _group(store: Any, name: str, rank: int, size: int, timeout_s: float) -> Any:
    gloo = _dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname="127.0.0.1", lazy_init=False)]
    options._timeout = timedelta(seconds=timeout_s)
    return gloo(_dist.PrefixStore(name, store), rank, size, options)


class Mesh:
    """The lines of one rank. Making it waits for all ranks; whatever goes wrong on a line later is a RuntimeError.

    Args:
        layout, rank: who this is.
        folder: the private folder where the ranks meet.
        max_tokens, width, dtype: of the largest part that is summed.
        timeout_s: the longest that anything may take.
    """

    def __init__(
        self, layout: Layout, rank: int, folder: Path, *, max_tokens: int, width: int, dtype: torch.dtype, timeout_s: float
    ) -> None:
        store = _dist.FileStore(str(folder / STORE_FILE), layout.size)
        self.layout, self.rank = layout, rank
        self._world = _group(store, "world", rank, layout.size, timeout_s)
        self._stage: Any = None
        if layout.tp > 1:
            self._stage = _group(store, f"stage{layout.stage(rank)}", layout.part(rank), layout.tp, timeout_s)
            self._parts = torch.empty(layout.tp, max_tokens, width, dtype=dtype)

    def whole(self, part_TD: Float[Tensor, "T D"]) -> None:
        """Replace this rank's part of a sum by the sum over its stage."""
        if self._stage is None:
            return
        parts = [parts[: len(part_TD)] for parts in self._parts]
        # As bytes: what is gathered is never looked at, and not every dtype is known to gloo everywhere.
        self._stage.allgather([[part.view(torch.uint8) for part in parts]], [part_TD.view(torch.uint8)]).wait()
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        part_TD.copy_(total)

    def send(self, x: Tensor, rank: int) -> Any:
        """Begin to send a contiguous tensor; it must not change until `wait` of what is returned."""
        return self._world.send([x], rank, 0)

    def receive(self, x: Tensor, rank: int) -> None:
        """Fill a contiguous tensor with what a rank sent."""
        self._world.recv([x], rank, 0).wait()
