"""Hidden states of packed rows, where each document is a text, or a prompt with several answers that do not see each other.

A document with answers has the column `branches`: 0 on the prompt, 1, 2, ... on its answers in their order. Every answer sees the prompt
and itself, at the positions it would have if it followed the prompt alone, so a row of a prompt and three answers gives the numbers of
three separate rows; the prompt is computed once. Llama 3 report, section 4.1.2 (rewards), where answers share a row.
Shapes: B batch, T tokens, D model dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from herd.model.attention import MaskedCore, document_mask
from herd.model.transformer import Transformer
from herd.train.attention import training_core


def branch_mask(documents_BT: Int[Tensor, "B T"], branches_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Causal, within one document, and of its answers only the token's own."""
    query, key = branches_BT[:, None, :, None], branches_BT[:, None, None, :]
    return document_mask(documents_BT) & ((key == 0) | (key == query))


def _latest(flags_BT: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """For every place, the last place up to it whose flag is set (0 before the first)."""
    places = torch.arange(flags_BT.shape[1], device=flags_BT.device).expand_as(flags_BT)
    return torch.where(flags_BT, places, 0).cummax(1).values


def _changes(values_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Whether a value differs from the one before it; the first of a row always does."""
    flags = torch.ones_like(values_BT, dtype=torch.bool)
    flags[:, 1:] = values_BT[:, 1:] != values_BT[:, :-1]
    return flags


def branch_positions(documents_BT: Int[Tensor, "B T"], branches_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions from 0 in each document, every answer going on where the prompt ended."""
    starts = _changes(documents_BT)
    turns = starts | _changes(branches_BT)
    places = torch.arange(documents_BT.shape[1], device=documents_BT.device).expand_as(documents_BT)
    in_prompt = places - _latest(starts)
    prompt_length = _latest(turns & (branches_BT == 1)) - _latest(starts)
    return torch.where(branches_BT == 0, in_prompt, prompt_length + places - _latest(turns))


def hidden_states(
    model: Transformer, tensors: Mapping[str, Tensor], dtype: torch.dtype, *, length: int | None = None
) -> Float[Tensor, "B T D"]:
    """The final hidden states of the first `length` tokens of each row (all but the last, unless given), in `dtype`."""
    tokens, documents = tensors["tokens"][:, : length or -1], tensors["documents"][:, : length or -1]
    branches = tensors["branches"][:, : length or -1] if "branches" in tensors else None
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        if branches is None:
            hidden = model.hidden(tokens, core=training_core(documents))
        else:
            core, positions = MaskedCore(branch_mask(documents, branches)), branch_positions(documents, branches)
            hidden = model.hidden(tokens, core=core, positions_BT=positions)
    return hidden.to(dtype)
