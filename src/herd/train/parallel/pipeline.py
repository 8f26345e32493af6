"""Micro-batches through the chunks of a rank: torch's pipeline schedules where there are several stages, a plain loop where there is one.

Knows chunks and what a loss function says of the last one's hidden states; nothing of objectives or optimisers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from herd.train.parallel.model import Chunk, ShardedTransformer

LossOf = Callable[[Tensor, Tensor], Tensor]
"""Of hidden states [B, C / TP, D] and targets [B, C]."""


class Pipeline:
    """Runs the micro-batches of one shape. Build another for another number of micro-batches or length."""

    def __init__(
        self, model: ShardedTransformer, *, rows: int, length: int, num_micro_batches: int = 0, loss_of: LossOf | None = None
    ) -> None:
        """Without a loss it only goes forward."""
        self.model, self.loss_of = model, loss_of
        self.num_micro_batches, self.rows, self.length = num_micro_batches, rows, length
        self._schedule = self._torch_schedule() if loss_of is not None and model.mesh.config.pp > 1 else None

    def _hidden(self) -> Tensor:
        """What goes from one stage to the next, without values."""
        config = self.model.mesh.config
        shape = (self.rows, self.length // config.cp // config.tp, self.model.config.hidden_size)
        return torch.empty(shape, dtype=self.model.stream_dtype, device="meta", requires_grad=True)

    def _torch_schedule(self) -> Any:
        model = self.model
        config, group = model.mesh.config, model.mesh.group("pp")
        tokens = torch.empty(self.rows, self.length // config.cp, dtype=torch.int64, device="meta")
        made = [
            PipelineStage(
                chunk,
                chunk.index,
                model.num_chunks,
                model.device,
                input_args=(tokens if chunk.is_first else self._hidden(),),
                output_args=(self._hidden(),),
                group=group,
            )
            for chunk in model.chunks
        ]
        if config.virtual_stages > 1:
            return ScheduleInterleaved1F1B(cast("Any", made), self.num_micro_batches, self.loss_of, scale_grads=False)
        kind = ScheduleGPipe if config.schedule == "gpipe" else Schedule1F1B
        return kind(made[0], self.num_micro_batches, self.loss_of, scale_grads=False)

    def run(self, tokens: Tensor, documents: Tensor, targets: Tensor) -> None:
        """Forward and backward of every micro-batch; gradients are added up in the parameters. Rows are those of all micro-batches."""
        if self._schedule is None:
            self._loop(tokens, documents, targets)
            return
        inputs = (tokens,) if self.model.has_embedding else ()
        wanted: dict[str, Any] = {"target": targets, "losses": []} if self.model.has_head else {}
        self._schedule.step(*inputs, documents=documents, **wanted)

    def _loop(self, tokens: Tensor, documents: Tensor, targets: Tensor) -> None:
        (chunk,) = self.model.chunks
        assert self.loss_of is not None, "made to go forward only"
        shared = self.model.mesh.is_sharded
        for start in range(0, len(tokens), self.rows):
            rows = slice(start, start + self.rows)
            if shared and self.model.mesh.config.zero == 2:
                # Gathered parameters stay for the next micro-batch; gradients are shared out after each.
                cast("Any", chunk).set_reshard_after_backward(start + self.rows >= len(tokens))
            loss = self.loss_of(chunk(tokens[rows], documents[rows]), targets[rows])
            if loss.requires_grad:
                loss.backward()

    @torch.no_grad()
    def forward_only(self, tokens: Tensor, documents: Tensor) -> list[Tensor]:
        """The last chunk's hidden states of every micro-batch, on the ranks that have it; nothing elsewhere.

        The caller forgets what was gathered. Chunk after chunk and micro-batch after micro-batch: evaluation fills no pipeline.
        """
        found: list[Tensor] = []
        for start in range(0, len(tokens), self.rows):
            rows = slice(start, start + self.rows)
            x = tokens[rows]
            for index in range(self.model.num_chunks):
                x = self._pass(index, x, documents[rows])
            if self.model.has_head:
                found.append(x)
        return found

    def _pass(self, index: int, x: Tensor, documents: Tensor) -> Tensor:
        """One chunk of the model, where this rank has it: receive, compute, send on."""
        chunk = next((chunk for chunk in self.model.chunks if chunk.index == index), None)
        if chunk is None:
            return x
        ranks, here = self.model.mesh.config.pp, self.model.mesh.place["pp"]
        before, after = (index - 1) % ranks, (index + 1) % ranks
        group = self.model.mesh.group("pp")
        if not chunk.is_first and before != here:
            x = torch.empty(self._hidden().shape, dtype=self.model.stream_dtype, device=self.model.device)
            dist.recv(x, group=group, group_src=before)
        x = chunk(x, documents)
        if not chunk.is_last and after != here:
            dist.send(x.contiguous(), group=group, group_dst=after)
        return x


def chunk_names(chunks: list[Chunk]) -> list[str]:
    """The chunks in words, for messages and tables."""
    return [
        f"{chunk.index}: {'embedding, ' if chunk.is_first else ''}{len(chunk.layers)} layers{', head' if chunk.is_last else ''}"
        for chunk in chunks
    ]
