"""The GPU runner: a `Runner` whose cache, activations and scores lie on the device. Built from a `Transformer`'s config and parameters.

A step of next tokens alone, which is most of them, is a captured graph for its padded number of sequences; any other goes op by op. Both
give a row the same bits, whatever else is in the batch. Scores come to the host only where someone reads them: where all rows of a step
can be drawn on the device, their ids come instead (`draw_there`), or go into the next step before the host has read them (`run_ahead`).
Runs on a CPU in Triton's interpreter, without graphs.
Shapes: T tokens, S sequences, R rows, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.engine import block_copy
from herd.engine.batch import RaggedBatch
from herd.engine.draw import RowNumbers
from herd.engine.gpu import device as place
from herd.engine.gpu.buffers import Buffers
from herd.engine.gpu.device import Arriving
from herd.engine.gpu.forward import GpuForward
from herd.engine.gpu.graphs import Graphs, padded_parts, padded_size
from herd.engine.gpu.layout import Places, Sizes, numbers_of, places
from herd.engine.gpu.weights import GpuWeights, gpu_weights
from herd.kernels import draw
from herd.kernels.batch import Batch, plan_batch
from herd.kernels.caches import row_width
from herd.kernels.int8_rows import cache_dtype_of
from herd.kernels.rope import RopeTable
from herd.kernels.triton import attention
from herd.kernels.triton import draw as device_draw
from herd.kernels.triton.linear import FP8
from herd.kernels.triton.norm import rms_norm
from herd.kernels.triton.rope import raw_cache
from herd.kernels.triton.runtime import require
from herd.model.rope import rope_frequencies
from herd.model.transformer import Transformer


class GpuRunner:
    """A `Runner` on the model's device. `exact=False` gives up equal bits in any batch for torch's faster product of many fp8 rows."""

    draw_rows = staticmethod(draw.draw)
    runs_ahead = True

    def __init__(
        self,
        model: Transformer,
        *,
        num_blocks: int,
        block_size: int,
        max_tokens: int,
        max_sequences: int,
        context: int,
        score_rows: int,
        cache_dtype: str | None = None,
        vocab_size: int | None = None,
        exact: bool = True,
    ) -> None:
        require(model.device)
        config, self.device = model.config, model.device
        self.config, self.num_blocks, self.block_size = config, num_blocks, block_size
        self.draws_rows = draw.available()
        self.vocab_size = min(vocab_size or config.vocab_size, config.vocab_size)
        kind = cache_dtype_of(cache_dtype, model.dtype)
        weights = gpu_weights(model, self.vocab_size)
        if kind == torch.float8_e4m3fn or any(one.kind == FP8 for one in weights.matrices()):
            place.check_fp8(self.device)
        self.buffers = buffers_of(
            model, weights, max_tokens=max_tokens, max_sequences=max_sequences, context=context, block_size=block_size, device=self.device
        )
        cos, sin = RopeTable(rope_frequencies(config)).upto(len(self.buffers.cos))
        self.buffers.cos.copy_(cos[: len(self.buffers.cos)])
        self.buffers.sin.copy_(sin[: len(self.buffers.sin)])
        shape = (config.num_hidden_layers, num_blocks, block_size, config.num_key_value_heads, row_width(config.head_dim, kind))
        self._keys, self._values = (torch.zeros(shape, dtype=kind, device=self.device) for _ in range(2))
        caches = (self._keys, self._values)
        self.block_layout, self.block_bytes = block_copy.block_layout(caches), block_copy.block_bytes(caches)
        self.forward = GpuForward(config, weights, self.buffers, self._keys, self._values, exact=exact)
        self._scores = torch.empty(score_rows, self.vocab_size, dtype=torch.float32, device=self.device)
        self._states = torch.empty(score_rows, config.hidden_size, dtype=torch.float32, device=self.device)
        self._most_rows = min(max_sequences, max_tokens)
        self._host = place.staging(len(self.buffers.numbers), self.device)
        self._sent = place.Sent(self.device)
        self._graphs = Graphs(place.graph_pool(self.device)) if place.captures(self.device) else None
        self._rows = torch.empty(0, dtype=torch.int32, device=self.device)

    @torch.inference_mode()
    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.run`. On a GPU the step has been launched when this returns, and whoever reads waits for it."""
        lengths = np.diff(batch.starts)
        plan = plan_batch(
            batch.block_table_SW, first=batch.first_S, lengths=lengths, num_blocks=self.num_blocks, block_size=self.block_size
        )
        with place.current(self.device):
            self._copy(batch.copies)
            if len(lengths) and (lengths == 1).all():
                self._decode(batch, plan)
            elif plan.num_tokens:
                self._any(batch, plan)
        return self._chunks(len(batch.rows_R))

    @torch.inference_mode()
    def run_ahead(self, batch: RaggedBatch, drawn: Arriving, rows: list[int]) -> None:
        """See `draw.AheadRunner`."""
        plan = plan_batch(
            batch.block_table_SW,
            first=batch.first_S,
            lengths=np.ones(len(rows), dtype=np.int64),
            num_blocks=self.num_blocks,
            block_size=self.block_size,
        )
        with place.current(self.device):
            chosen = place.sent_now(torch.tensor(rows), self.device)
            # What scores are no numbers of is told when it is read: until then any token will do.
            self._decode(batch, plan, tokens=torch.index_select(drawn.values, 0, chosen).clamp(min=0))

    def _decode(self, batch: RaggedBatch, plan: Batch, tokens: Tensor | None = None) -> None:
        """One token of each sequence; `tokens` on the device stand in for the batch's."""
        count = padded_size(plan.num_tokens, self._most_rows)
        parts = padded_parts(attention.num_parts(plan.num_positions))
        sizes = Sizes(tokens=count, sequences=count, width=self._width(parts * attention.PART), rows=count, tiles=count)
        where = self._send(batch, plan, sizes, tiles=[(row, row) for row in range(count)])
        if tokens is not None:
            where.tokens[: len(tokens)].copy_(tokens)
        launched = parts if count * parts <= self.buffers.most_partials else 0  # else programs walk all parts of their token
        if self._graphs is None:
            self._step(where, launched)
        else:
            self._graphs.run((count, parts), lambda: self._step(where, launched))

    def _any(self, batch: RaggedBatch, plan: Batch) -> None:
        """Chunks of prompts, and next tokens among them."""
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        tiles = attention.tiles_of(plan.starts.tolist(), group)
        width = self._width(plan.num_positions)
        sizes = Sizes(tokens=plan.num_tokens, sequences=plan.num_sequences, width=width, rows=len(batch.rows_R), tiles=len(tiles))
        self._step(self._send(batch, plan, sizes, tiles=tiles), 0)

    def _width(self, positions: int) -> int:
        """Blocks of a table's row for so many positions."""
        return min(-(-positions // self.block_size), -(-len(self.buffers.cos) // self.block_size))

    def _send(self, batch: RaggedBatch, plan: Batch, sizes: Sizes, *, tiles: Sequence[tuple[int, int]]) -> Places:
        """The step's numbers on the device, in one copy; what is padded stands at position and slot -1."""
        self._sent.wait()
        host = places(self._host, sizes)
        count, sequences = plan.num_tokens, plan.num_sequences
        for row in (host.positions, host.slots, host.first):
            row.fill_(-1)
        host.tokens.zero_()
        host.tables.zero_()
        host.tokens[:count] = numbers_of(batch.tokens_T)
        host.positions[:count], host.slots[:count] = numbers_of(plan.positions), numbers_of(plan.slots)
        host.rows.zero_()
        host.rows[: len(batch.rows_R)] = numbers_of(batch.rows_R)
        host.starts[: sequences + 1] = plan.starts
        host.starts[sequences + 1 :] = torch.arange(count + 1, count + 1 + sizes.sequences - sequences)
        host.first[:sequences] = plan.first
        host.tiles.copy_(numbers_of(tiles).view(-1, 2))
        width = min(sizes.width, plan.block_table.shape[1])
        host.tables[:sequences, :width] = plan.block_table[:, :width]
        self.buffers.numbers[: sizes.total].copy_(self._host[: sizes.total], non_blocking=True)
        self._sent.mark()
        where = places(self.buffers.numbers, sizes)
        self._rows = where.rows
        return where

    def _step(self, where: Places, parts: int) -> None:
        """The launches of a step. With `parts` every sequence has one token, whose parts are attended to side by side."""

        def attend(q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
            if parts:
                rows = {"tables": where.tables, "positions": where.positions}
                attention.attend_decoding(q, keys, values, **rows, parts=parts, scratch=self.buffers.partials, out=out)
            else:
                some = {"tables": where.tables, "starts": where.starts, "first": where.first, "tiles": where.tiles}
                attention.attend(q, keys, values, **some, out=out)

        self.forward.run(where, attend)

    def _score(self, first: int, count: int) -> Tensor:
        """Scores of wanted rows first and after, in their arena on the device."""
        arenas = self.buffers.arenas
        rows = self._rows[first : first + count]
        states = torch.index_select(arenas["residual"], 0, rows, out=arenas["delta"][:count])
        scores = self._scores[:count]
        self.forward.norm_then(states, self.forward.weights.norm, self.forward.weights.head, scores, None)
        return scores

    def _chunks(self, num_rows: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for first in range(0, num_rows, len(self._scores)):
            with torch.inference_mode(), place.current(self.device):
                found = self._score(first, min(num_rows - first, len(self._scores))).cpu()
            yield first, found.numpy()

    def draw_there(self, numbers: RowNumbers) -> list[int]:
        """The ids of all rows of the step that was run last, drawn on the device; -1 where scores are no finite numbers."""
        return self.draw_later(numbers).read()

    @torch.inference_mode()
    def draw_later(self, numbers: RowNumbers) -> Arriving:
        """As `draw_there`: launched, to be read later."""
        found = torch.empty(len(numbers.uniforms), dtype=torch.int64, device=self.device)
        kinds = (torch.float32, torch.int32, torch.float64, torch.float32, torch.float64)
        told = {
            name: place.sent_now(torch.tensor(values, dtype=kind), self.device)
            for name, values, kind in zip(numbers._fields, numbers, kinds, strict=True)
        }
        for first in range(0, len(found), len(self._scores)):
            some = slice(first, min(first + len(self._scores), len(found)))
            with place.current(self.device):
                scores = self._score(first, some.stop - first)
                device_draw.draw(scores, **{name: values[some] for name, values in told.items()}, ids=found[some])
        with place.current(self.device):
            return Arriving(found)

    def hidden(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.hidden`: the residual stream of the last batch is still in its arena."""
        rows = numbers_of(batch.hidden_E).to(self.device)
        for first in range(0, len(rows), len(self._states)):
            with torch.inference_mode(), place.current(self.device):
                part = self.buffers.arenas["residual"][rows[first : first + len(self._states)].long()]
                states = self._states[: len(part)]
                states.copy_(rms_norm(part, self.forward.weights.norm, self.config.rms_norm_eps, out=torch.empty_like(part)))
                found = states.cpu()
            yield first, found.numpy()

    def copy_out(self, block: int) -> memoryview:
        """See `batch.BlockCopier`."""
        return block_copy.copy_out((self._keys, self._values), block)

    def copy_in(self, block: int, content: memoryview) -> None:
        """See `batch.BlockCopier`."""
        block_copy.copy_in((self._keys, self._values), block, content)

    def _copy(self, copies: tuple[tuple[int, int], ...]) -> None:
        if copies:
            source, target = torch.tensor(copies, device=self.device).t()
            for cache in (raw_cache(self._keys), raw_cache(self._values)):
                cache[:, target] = cache[:, source]


def buffers_of(
    model: Transformer, weights: GpuWeights, *, max_tokens: int, max_sequences: int, context: int, block_size: int, device: torch.device
) -> Buffers:
    """The runner's working space; on the meta device to know its bytes."""
    return Buffers(
        model.config,
        list(weights.matrices()),
        dtype=model.dtype,
        max_tokens=max_tokens,
        max_sequences=max_sequences,
        width=-(-context // block_size),
        block_size=block_size,
        device=device,
    )
