"""The runner for devices that have no kernels of ours yet: the transformer itself, over a paged core made of torch's operations.

It is right and plain, not fast, and makes no promise of bit-equal scores across batches: torch may sum in another order for another number
of rows. The CPU runner keeps that promise. Shapes: T tokens, S source tokens, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from herd.engine import block_copy
from herd.engine.batch import RaggedBatch
from herd.kernels import draw
from herd.kernels.batch import Batch, plan_batch
from herd.kernels.caches import row_width
from herd.kernels.int8_rows import BYTE_DTYPES, cache_dtype_of, dequantise, stored
from herd.model.attention import sdpa
from herd.model.transformer import Transformer


class PagedCore:
    """An attention core whose keys and values lie in blocks. One batch of ragged sequences at a time, as a single row of T tokens."""

    def __init__(self, keys: Tensor, values: Tensor, plan: Batch) -> None:
        device = keys.device
        self._keys, self._values = keys.flatten(1, 2), values.flatten(1, 2)
        self._slots = plan.slots.to(device)
        ends = (plan.first + plan.starts.diff()).tolist()
        offsets = torch.arange(max(ends, default=0))
        size = plan.block_size
        table = plan.block_table.long()
        self._spans = list(zip(plan.starts.tolist(), plan.starts.tolist()[1:], plan.first.tolist(), strict=False))
        self._read = [(table[row][offsets[:end] // size] * size + offsets[:end] % size).to(device) for row, end in enumerate(ends)]

    def __call__(
        self, layer: int, q_BTNH: Float[Tensor, "B T N H"], k_BTKH: Float[Tensor, "B T K H"], v_BTKH: Float[Tensor, "B T K H"]
    ) -> Float[Tensor, "B T N H"]:
        """Write keys and values to their slots, then attend sequence by sequence."""
        keys, values = self._keys[layer], self._values[layer]
        keys[self._slots], values[self._slots] = (stored(x_BTKH[0], keys.dtype) for x_BTKH in (k_BTKH, v_BTKH))
        out = torch.empty_like(q_BTNH)
        for (begin, end, first), read in zip(self._spans, self._read, strict=True):
            mask = torch.ones(end - begin, len(read), dtype=torch.bool, device=q_BTNH.device).tril(diagonal=first)
            k, v = (_loaded(cache[read][None], q_BTNH.dtype) for cache in (keys, values))
            out[:, begin:end] = sdpa(q_BTNH[:, begin:end], k, v, mask)
        return out


def _loaded(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return (dequantise(rows) if rows.dtype in BYTE_DTYPES else rows).to(dtype)


class TorchRunner:
    """A `Runner` on the model's own device. Its scores come to the host, and so are drawn there."""

    draw_rows = staticmethod(draw.draw)

    def __init__(
        self,
        model: Transformer,
        *,
        num_blocks: int,
        block_size: int,
        score_rows: int,
        cache_dtype: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        config = model.config
        self.draws_rows = draw.available()
        self.model, self.num_blocks, self.block_size, self._score_rows = model, num_blocks, block_size, score_rows
        self.vocab_size = min(vocab_size or config.vocab_size, config.vocab_size)
        self._states = torch.empty(0, config.hidden_size)
        dtype = cache_dtype_of(cache_dtype, model.dtype)
        shape = (config.num_hidden_layers, num_blocks, block_size, config.num_key_value_heads, row_width(config.head_dim, dtype))
        self._keys, self._values = (torch.zeros(shape, dtype=dtype, device=model.device) for _ in range(2))
        caches = (self._keys, self._values)
        self.block_layout, self.block_bytes = block_copy.block_layout(caches), block_copy.block_bytes(caches)

    @torch.inference_mode()
    def run(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.run`."""
        for source, target in batch.copies:
            self._keys[:, target], self._values[:, target] = self._keys[:, source], self._values[:, source]
        lengths = np.diff(batch.starts)
        plan = plan_batch(
            batch.block_table_SW, first=batch.first_S, lengths=lengths, num_blocks=self.num_blocks, block_size=self.block_size
        )
        device = self.model.device
        tokens = torch.from_numpy(batch.tokens_T).long().to(device)[None]
        core = PagedCore(self._keys, self._values, plan)
        hidden = self.model.hidden(tokens, core=core, positions_BT=plan.positions.to(device)[None])[0]
        self._states = hidden[torch.from_numpy(batch.hidden_E).to(device)]
        return self._score(hidden[torch.from_numpy(batch.rows_R).to(device)])

    def hidden(self, batch: RaggedBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `batch.Runner.hidden`."""
        assert len(batch.hidden_E) == len(self._states), "another batch was run since"
        for first in range(0, len(self._states), self._score_rows):
            yield first, self._states[first : first + self._score_rows].float().cpu().numpy()

    def copy_out(self, block: int) -> memoryview:
        """See `batch.BlockCopier`."""
        return block_copy.copy_out((self._keys, self._values), block)

    def copy_in(self, block: int, content: memoryview) -> None:
        """See `batch.BlockCopier`."""
        block_copy.copy_in((self._keys, self._values), block, content)

    def _score(self, hidden_RD: Tensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for first in range(0, len(hidden_RD), self._score_rows):
            with torch.inference_mode():
                scores = self.model.logits(hidden_RD[first : first + self._score_rows])[:, : self.vocab_size].cpu()
            yield first, scores.numpy()
