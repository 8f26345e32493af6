"""One optimiser step on a mesh, by the same law as on one device: sums over valid tokens, divided by their number on all ranks.

Each data parallel rank reads its rows of the global batch by their sample numbers; tensor, context and pipeline ranks of it read the same
rows. Gradients are sums already (`kernels.torch_compat.sum_gradients`); the gradient norm is that of the whole model, each part counted
once. Shapes: B rows of this rank, T tokens of a row, C this rank's of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from herd.kernels.torch_compat import local_tensor
from herd.train.batch import AnyBatch, Columns, as_columns, to_tensors
from herd.train.config import StageConfig
from herd.train.loss import IGNORE
from herd.train.objectives.next_token import num_targets
from herd.train.parallel import tensor as tp
from herd.train.parallel.context import local_positions
from herd.train.parallel.loss import split_cross_entropy_sum
from herd.train.parallel.model import ShardedTransformer
from herd.train.parallel.pieces import is_first_copy
from herd.train.parallel.pipeline import Pipeline
from herd.train.step import StepResult
from herd.train.update import Accept, update_if


@dataclass(kw_only=True, slots=True)
class _Found:
    """What the last stage saw: sums of loss and counted tokens of its rows, in their order."""

    losses: list[Tensor] = field(default_factory=list[Tensor])
    counts: list[Tensor] = field(default_factory=list[Tensor])
    totals: list[Tensor] = field(default_factory=list[Tensor])

    @property
    def objective(self) -> float:
        """The sum of what is minimised."""
        return float(torch.stack(self.totals).double().sum()) if self.totals else 0.0


class ParallelStep:
    """Makes the steps of a stage on a mesh. Keeps the pipeline of the last shape."""

    def __init__(self, model: ShardedTransformer, *, z_loss: float = 0.0, source_names: Sequence[str] = ()) -> None:
        self.model, self.z_loss, self.source_names = model, z_loss, tuple(source_names)
        self._pipelines: dict[tuple[int, int, int], Pipeline] = {}
        self._found, self.total = _Found(), 1

    def pipeline(self, count: int, rows: int, length: int) -> Pipeline:
        """What runs so many micro-batches of so many rows."""
        key = (count, rows, length)
        if key not in self._pipelines:
            self._pipelines = {key: Pipeline(self.model, num_micro_batches=count, rows=rows, length=length, loss_of=self._loss_of)}
        return self._pipelines[key]

    def _loss_of(self, hidden: Tensor, targets_BC: Tensor) -> Tensor:
        """The loss of a micro-batch on the last stage, divided by the global count."""
        losses = torch.zeros(targets_BC.numel(), dtype=torch.float32, device=targets_BC.device)
        total = self._cross_entropy(hidden, targets_BC, losses)
        self._found.losses.append(losses.view(targets_BC.shape).sum(1))
        self._found.counts.append((targets_BC != IGNORE).sum(1))
        self._found.totals.append(total.detach())
        return total / max(1, self.total)

    def _cross_entropy(self, hidden: Tensor, targets_BC: Tensor, losses: Tensor) -> Tensor:
        model, group = self.model, None
        chunk = model.last_chunk
        assert chunk is not None, "the loss is computed where the head is"
        if model.mesh.config.tp > 1:
            group = model.mesh.group("tp")
            hidden = tp.gather_sequence(hidden, model.mesh.submesh("tp"))
        hidden = hidden.to(model.compute_dtype)
        return split_cross_entropy_sum(
            hidden.flatten(0, 1), chunk.head_weight, targets_BC.flatten(), group=group, z_loss=self.z_loss, out_N=losses
        )

    def inputs(self, columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, C] and targets [B, C] of this rank's places, and documents [B, T] of the whole rows."""
        config, model = self.model.mesh.config, self.model
        needed = {name: columns[name] for name in ("tokens", "documents", "counts")}
        device = model.device
        tensors = to_tensors(needed, device)
        documents = tensors["documents"][:, :-1]
        places = local_positions(documents.shape[1], config.cp, model.mesh.place["cp"], device)
        targets = torch.where(tensors["counts"][:, 1:], tensors["tokens"][:, 1:], IGNORE)
        return tensors["tokens"][:, :-1][:, places], documents, targets[:, places]

    def __call__(
        self, optimizer: torch.optim.Optimizer, batch: AnyBatch, stage: StageConfig, *, lr: float, accept: Accept | None = None
    ) -> StepResult:
        """Forward, backward, clip, update. `batch` holds this data parallel rank's rows; `stage` has the global batch's sizes."""
        columns, model = as_columns(batch), self.model
        length = columns["tokens"].shape[1] - 1
        count = model.mesh.config.check_rows(length=length, batch_size=stage.batch_size, micro_batch_size=stage.micro_batch_size)
        # Tensor, context and pipeline ranks hold the same rows: each row is to be counted once.
        alone = all(model.mesh.place[name] == 0 for name in ("pp", "cp", "tp"))
        self.total = round(model.mesh.sum([num_targets(columns) if alone else 0])[0])
        self._found = _Found()
        self.pipeline(count, stage.micro_batch_size, length).run(*self.inputs(columns))
        self.settle_gradients()
        metrics = self._measured(columns)
        grad_norm, applied = self._update(optimizer, stage, lr=lr, loss=metrics["loss"], accept=accept)
        return StepResult(loss=metrics.pop("loss"), num_counted=self.total, grad_norm=grad_norm, metrics=metrics, applied=applied)

    def _measured(self, columns: Columns) -> dict[str, float]:
        """The loss of the whole batch, and each source's where they are known; the same on every rank."""
        names, found = self.source_names, self._found
        values = np.zeros(1 + 2 * len(names))
        if found.losses and self.model.mesh.place["tp"] == 0:
            values[0] = found.objective
            if names and "sources" in columns:
                losses, counts = (torch.cat(part).double().cpu().numpy() for part in (found.losses, found.counts))
                np.add.at(values, 1 + 2 * columns["sources"].astype(int), losses)
                np.add.at(values, 2 + 2 * columns["sources"].astype(int), counts)
        total = self.model.mesh.sum(values.tolist())
        by_source = {
            f"loss/{name}": total[1 + 2 * number] / total[2 + 2 * number] for number, name in enumerate(names) if total[2 + 2 * number]
        }
        return {"loss": total[0] / max(1, self.total), **by_source}

    def settle_gradients(self) -> None:
        """Bring every gradient to where its parameter is: sums that DTensor has put off, and a tied matrix's two ends."""
        for parameter in self.model.parameters():
            grad: Any = parameter.grad
            if grad is not None and hasattr(grad, "placements") and tuple(grad.placements) != tuple(parameter.placements):  # pyright: ignore[reportAttributeAccessIssue]
                parameter.grad = grad.redistribute(placements=parameter.placements)  # pyright: ignore[reportAttributeAccessIssue]
        mesh = self.model.mesh
        if self.model.config.tie_word_embeddings and mesh.config.pp > 1 and (self.model.has_embedding or self.model.has_head):
            self._join_tied()

    def _join_tied(self) -> None:
        """The first and the last stage both have the tied matrix: each adds the other's gradient."""
        mesh, weight = self.model.mesh, self.model.model.embed_tokens.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        mine = local_tensor(weight.grad).contiguous()
        theirs = torch.empty_like(mine)
        last = mesh.config.pp - 1
        peer, group = (last if mesh.place["pp"] == 0 else 0), mesh.group("pp")
        sending = [dist.P2POp(dist.isend, mine, group=group, group_peer=peer), dist.P2POp(dist.irecv, theirs, group=group, group_peer=peer)]
        for work in dist.batch_isend_irecv(sending):
            work.wait()
        # The same order of summation on both: they stay equal bit for bit.
        total = mine + theirs if mesh.place["pp"] == 0 else theirs + mine
        local_tensor(weight.grad).copy_(total)

    def _gradients(self) -> list[tuple[Tensor, bool]]:
        """This rank's part of every gradient, and whether it is the one that counts it."""
        model = self.model
        copy_of_tied = model.model.embed_tokens if model.mesh.config.pp > 1 and not model.has_embedding else None
        found: list[tuple[Tensor, bool]] = []
        for parameter in model.parameters():
            if parameter.grad is not None:
                counts = is_first_copy(parameter, model.mesh.place)
                is_copy = copy_of_tied is not None and parameter is copy_of_tied.weight
                found.append((local_tensor(parameter.grad), counts and not is_copy))
        return found

    @torch.no_grad()
    def _update(
        self, optimizer: torch.optim.Optimizer, stage: StageConfig, *, lr: float, loss: float, accept: Accept | None
    ) -> tuple[float, bool]:
        """Clip by the norm of the whole gradient, ask, update, clear: `train.update` over slices."""
        parts = self._gradients()
        squares = [grad.float().norm().double().square() for grad, counts in parts if counts and grad.numel()]
        mine = float(torch.stack(squares).sum()) if squares else 0.0
        grad_norm = math.sqrt(self.model.mesh.sum([mine])[0])
        if stage.grad_clip > 0 and stage.clip == "norm":
            # As torch's clip_grad_norm_ has it.
            scale = min(1.0, stage.grad_clip / (grad_norm + 1e-6))
            for grad, _ in parts:
                grad.mul_(scale)
        elif stage.grad_clip > 0:
            for grad, _ in parts:
                grad.clamp_(-stage.grad_clip, stage.grad_clip)
        return grad_norm, update_if(accept, optimizer, lr=lr, loss=loss, grad_norm=grad_norm)

    @torch.no_grad()
    def loss_sum(self, batch: AnyBatch, *, micro_batch_size: int) -> float:
        """The sum of cross entropies over the whole batch of every data parallel rank; the same on all ranks. All give as many rows."""
        columns = as_columns(batch)
        rows, length = len(columns["tokens"]), columns["tokens"].shape[1] - 1
        tokens, documents, targets = self.inputs(columns)
        pipeline = Pipeline(self.model, rows=micro_batch_size, length=length)
        self._found = _Found()
        for number, hidden in enumerate(pipeline.forward_only(tokens, documents)):
            part = slice(number * micro_batch_size, min(rows, (number + 1) * micro_batch_size))
            losses = torch.zeros(targets[part].numel(), dtype=torch.float32, device=targets.device)
            self._cross_entropy(hidden, targets[part], losses)
            self._found.totals.append(losses.sum())
        self.model.forget_gathered()
        mine = self._found.objective if self.model.mesh.place["tp"] == 0 else 0.0
        return self.model.mesh.sum([mine])[0]
