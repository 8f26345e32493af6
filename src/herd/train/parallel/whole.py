"""Whole hidden states and logits of a model that is cut over a mesh, on every rank: for gates and scores of a few rows.

All ranks call these together with the same arguments, as they would call a `Transformer`.
Shapes: B rows, T tokens, D model dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from herd.train.parallel import tensor as tp
from herd.train.parallel.context import global_order, local_positions
from herd.train.parallel.model import ShardedTransformer
from herd.train.parallel.pipeline import Pipeline


def whole_hidden(model: ShardedTransformer, tokens_BT: Tensor) -> Tensor:
    """[B, T, D] of rows that are one document each."""
    config, length = model.mesh.config, tokens_BT.shape[1]
    piece = (2 * config.cp if config.cp > 1 else 1) * config.tp
    # What is added comes after everything, so nothing looks at it.
    tokens = torch.nn.functional.pad(tokens_BT, (0, -length % piece))
    places = local_positions(tokens.shape[1], config.cp, model.mesh.place["cp"], tokens.device)
    pipeline = Pipeline(model, rows=len(tokens), length=tokens.shape[1])
    found = pipeline.forward_only(tokens[:, places], torch.zeros_like(tokens, dtype=torch.int16))
    model.forget_gathered()
    shape = (*tokens.shape, model.config.hidden_size)
    whole = _gathered(model, found[0], tokens.shape[1]) if found else torch.empty(shape, dtype=model.stream_dtype, device=model.device)
    return _from_last_stage(model, whole)[:, :length]


def _gathered(model: ShardedTransformer, hidden: Tensor, length: int) -> Tensor:
    config = model.mesh.config
    if config.tp > 1:
        hidden = tp.gather_sequence(hidden, model.mesh.submesh("tp"))
    if config.cp == 1:
        return hidden
    parts = _all_gather(hidden, model.mesh.group("cp"))
    return torch.cat(parts, dim=1)[:, global_order(length, config.cp, hidden.device)]


def whole_logits(model: ShardedTransformer, hidden: Tensor) -> Tensor:
    """[..., V], float32."""
    shape = (*hidden.shape[:-1], model.config.vocab_size)
    chunk = model.last_chunk
    if chunk is None:
        return _from_last_stage(model, torch.empty(shape, dtype=torch.float32, device=model.device))
    if model.mesh.is_sharded:
        cast("Any", chunk).unshard()
    weight = chunk.head_weight
    logits = (hidden @ weight.to(hidden.dtype).t()).float()
    model.forget_gathered()
    if model.mesh.config.tp > 1:
        logits = torch.cat(_all_gather(logits, model.mesh.group("tp")), dim=-1)
    return _from_last_stage(model, logits)


def _all_gather(x: Tensor, group: Any) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return parts


def _from_last_stage(model: ShardedTransformer, x: Tensor) -> Tensor:
    if model.mesh.config.pp == 1:
        return x
    x = x.contiguous()
    dist.broadcast(x, group=model.mesh.group("pp"), group_src=model.mesh.config.pp - 1)
    return x
