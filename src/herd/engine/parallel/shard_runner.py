"""One rank's part of a step: embed or receive, run its blocks, send on or score.

Every rank calls `run` with the same batch. Rank 0 gets the scores, whole: the last stage's ranks send it theirs, each its rows of the
vocabulary. States, where they are wanted, it gets from the first of these, before any scores. Through all of it a row's scores stay the
same whatever else is in the batch, for a given layout.
Shapes: T tokens, D model dim, R rows, E rows for states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.engine.arenas import allocate
from herd.engine.batch import RaggedBatch
from herd.engine.disk.identity import share_name
from herd.engine.layers import PackedLayers
from herd.engine.memory import EngineConfig
from herd.engine.parallel.mesh import Mesh
from herd.engine.parallel.microbatch import num_pieces, pieces
from herd.engine.parallel.shard import Shard
from herd.kernels.buffer import dtype_name
from herd.kernels.caches import cache_dtype_name
from herd.kernels.linear import linear, pack_linear
from herd.kernels.norm import rms_norm

Scores = Iterator[tuple[int, NDArray[np.float32]]]


class ShardRunner:
    """A `Runner` on rank 0; on the others `run` gives nothing. `sizes` has its number of blocks set.

    A `BlockCopier` of the rank's share of each block. `share` names all that its bits depend on here, where there is a `prefix_dir`.
    """

    def __init__(self, shard: Shard, mesh: Mesh, sizes: EngineConfig, *, vocab_size: int) -> None:
        assert sizes.num_blocks is not None
        self.num_blocks, self.block_size, self.vocab_size = sizes.num_blocks, sizes.block_size, vocab_size
        self._mesh, self._layout, self._rank = mesh, mesh.layout, mesh.rank
        self._dtype, self._eps, self._rows = shard.dtype, shard.config.rms_norm_eps, shard.rows
        arenas = allocate(
            shard.config,
            dtype=dtype_name(shard.dtype),
            cache_dtype=cache_dtype_name(sizes.cache_dtype, shard.dtype),
            num_blocks=sizes.num_blocks,
            block_size=sizes.block_size,
            max_tokens=sizes.token_budget,
        )
        self._layers = PackedLayers(shard.config, shard.blocks(), arenas)
        self.block_layout, self.block_bytes = self._layers.block_layout, self._layers.block_bytes
        self._norm, self._embedding, head = shard.norm, shard.embedding, shard.head
        self.share = self._share_name(shard) if sizes.prefix_dir is not None else None
        self._head = None if head is None else pack_linear(head)
        width = len(self._rows) if self._head is not None or self._rank == 0 else 0
        self._part = torch.empty(sizes.score_rows * width, dtype=torch.float32)
        self._score_rows = sizes.score_rows
        holds_states = self._layout.is_last(self._rank) or self._rank == 0
        self._states = torch.empty(sizes.token_budget if holds_states else 0, shard.config.hidden_size, dtype=torch.float32)
        self._scores = torch.empty(sizes.score_rows if self._rank == 0 else 0, vocab_size, dtype=torch.float32)

    def _share_name(self, shard: Shard) -> str:
        place, layout = (self._rank, self._layout.tp, self._layout.pp), self.block_layout
        return share_name(shard.whole_config, weights=shard.digest, dtype=shard.dtype, layout=layout, place=place)

    def copy_out(self, block: int) -> memoryview:
        """See `batch.BlockCopier`."""
        return self._layers.copy_out(block)

    def copy_in(self, block: int, content: memoryview) -> None:
        """See `batch.BlockCopier`."""
        self._layers.copy_in(block, content)

    def run(self, batch: RaggedBatch) -> Scores:
        """See `batch.Runner.run`; with several stages, the last may still be at work when this returns."""
        with torch.inference_mode():
            self._layers.arenas.copy_blocks(batch.copies)
            hidden = self._hidden(batch)
            self._exchange_states(hidden, batch)
            if self._layout.is_last(self._rank):
                hidden = self._normed(hidden, batch.rows_R)
        if self._rank == 0:
            return self._whole_scores(hidden, len(batch.rows_R))
        if self._layout.is_last(self._rank):
            self._send_scores(hidden)
        return iter(())

    def hidden(self, batch: RaggedBatch) -> Scores:
        """See `batch.Runner.hidden`; all rows are here since `run`."""
        if len(batch.hidden_E):
            yield 0, self._states[: len(batch.hidden_E)].numpy()

    def _normed(self, hidden_TD: Tensor, rows: NDArray[np.int64]) -> Tensor:
        assert self._norm is not None
        return rms_norm(hidden_TD[torch.from_numpy(rows)], self._norm, self._eps)

    def _exchange_states(self, hidden_TD: Tensor, batch: RaggedBatch) -> None:
        """Bring the states that are wanted to rank 0; every part of the last stage has them, its first sends them."""
        source = self._layout.last_ranks[0]
        if not len(batch.hidden_E) or self._rank not in (0, source):
            return
        states = self._states[: len(batch.hidden_E)]
        if self._rank == source:
            states.copy_(self._normed(hidden_TD, batch.hidden_E))
            if source:
                self._mesh.send(states, 0).wait()
        else:
            self._mesh.receive(states, source)

    def _hidden(self, batch: RaggedBatch) -> Tensor:
        """The residual stream after the rank's last block, [T, D], in the arena; sent on unless the rank is of the last stage."""
        layout, rank = self._layout, self._rank
        sent: list[Any] = []
        begin = 0
        for piece in pieces(batch, num_pieces(len(batch.tokens_T), layout.pp)):
            plan = self._layers.plan(piece)
            x_TD = self._layers.residual[begin : begin + plan.num_tokens]
            begin += plan.num_tokens
            if layout.is_first(rank):
                self._embed(torch.from_numpy(piece.tokens_T).long(), x_TD)
            else:
                self._mesh.receive(x_TD, rank - layout.tp)
            self._layers.run(x_TD, plan, self._mesh.whole)
            if not layout.is_last(rank):
                sent.append(self._mesh.send(x_TD, rank + layout.tp))
        for work in sent:
            work.wait()
        return self._layers.residual[:begin]

    def _embed(self, tokens_T: Tensor, out_TD: Tensor) -> None:
        """Each part looks its own rows up; the others have zeros there, so that the sum is exact."""
        rows = self._rows
        mine = (tokens_T >= rows.start) & (tokens_T < rows.stop)
        found = tokens_T[mine] - rows.start
        out_TD.zero_()
        if self._embedding is not None:
            out_TD[mine] = self._embedding[found]
        else:
            assert self._head is not None
            out_TD[mine] = self._head.rows(found)
        self._mesh.whole(out_TD)

    def _chunks(self, count: int) -> Iterator[tuple[int, int]]:
        """Where the rows are cut that are scored at once: (first, how many)."""
        for first in range(0, count, self._score_rows):
            yield first, min(self._score_rows, count - first)

    def _score(self, normed_RD: Tensor) -> Tensor:
        """The rank's columns of the scores."""
        assert self._head is not None
        count, width = len(normed_RD), len(self._rows)
        with torch.inference_mode():
            return linear(normed_RD, self._head, out=self._part[: count * width].view(count, width))

    def _send_scores(self, normed_RD: Tensor) -> None:
        for first, count in self._chunks(len(normed_RD)):
            self._mesh.send(self._score(normed_RD[first : first + count]), 0).wait()

    def _whole_scores(self, normed_RD: Tensor, num_rows: int) -> Scores:
        for first, count in self._chunks(num_rows):
            scores = self._scores[:count]
            for rank in self._layout.last_ranks:
                rows = self._layout.rows(self.vocab_size, rank)
                if rank == 0:
                    part = self._score(normed_RD[first : first + count])
                else:
                    part = self._part[: count * len(rows)].view(count, len(rows))
                    self._mesh.receive(part, rank)
                scores[:, rows.start : rows.stop] = part
            yield first, scores.numpy()
