"""The answers of packed rows and their ranking, read from the columns `documents`, `branches` and `grades`.

`grades` holds the grade of an answer on each of its tokens; a higher one is better (rejected 1, chosen 2, edited 3). Answers of one
document are answers to one prompt. All of it follows from the data, so counts are known before any forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.model.transformer import Transformer
from herd.train.batch import Columns, to_tensors
from herd.train.loss import token_logprobs
from herd.train.objectives.forward import hidden_states

KL_ONLY = -1
"""Grade of an answer that belongs to another prompt: it only measures how far the model has moved (KTO)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The A answers of a batch in their order, so that answers to one prompt stand side by side.

    `ids` [B, T+1]: the answer that a token is part of, or -1; `prompts`: equal for answers to one prompt; `grades`; `last`: the place of
    an answer's last token in the flattened batch.
    """

    ids: NDArray[np.int64]
    prompts: NDArray[np.int64]
    grades: NDArray[np.int64]
    last: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.grades)


def find_answers(columns: Columns) -> Answers:
    """The answers of a batch."""
    documents, branches = columns["documents"].astype(np.int64), columns["branches"].astype(np.int64)
    rows = np.arange(len(documents))[:, None]
    prompts = rows * (documents.max(initial=0) + 1) + documents
    keys = np.where(branches > 0, prompts * (branches.max(initial=0) + 1) + branches, -1).ravel()
    places = np.flatnonzero(keys >= 0)
    _, first, ids = np.unique(keys[places], return_index=True, return_inverse=True)
    found = np.full(keys.shape, -1, dtype=np.int64)
    found[places] = ids
    last = np.zeros(len(first), dtype=np.int64)
    np.maximum.at(last, ids, places)
    return Answers(
        ids=found.reshape(documents.shape),
        prompts=prompts.ravel()[last],
        grades=columns["grades"].ravel()[last].astype(np.int64),
        last=last,
    )


def ranked_pairs(answers: Answers) -> NDArray[np.int64]:
    """[P, 2]: of every two answers to one prompt with different grades, the better and the worse."""
    pairs = [np.empty((0, 2), dtype=np.int64)]
    edges = np.flatnonzero(np.diff(answers.prompts)) + 1
    for start, grades in zip([0, *edges.tolist()], np.split(answers.grades, edges), strict=True):
        better = (grades[:, None] > grades[None, :]) & (grades >= 0)
        pairs.append(np.argwhere(better) + start)
    return np.concatenate(pairs)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerTokens:
    """The N tokens of a batch's answers: the answer each is part of, its column values, its log-probability (differentiable)."""

    ids: Tensor
    logprobs: Tensor
    num_answers: int

    def sums(self, mask_N: Tensor, values_N: Tensor | None = None) -> Tensor:
        """For each answer, the sum of its tokens' values (their log-probabilities unless given) where the mask is set."""
        values = self.logprobs if values_N is None else values_N
        return torch.zeros(self.num_answers, dtype=torch.float32, device=values.device).index_add(0, self.ids, values * mask_N)

    def lengths(self, mask_N: Tensor) -> Tensor:
        """For each answer, how many of its tokens the mask counts; 1 at least, so that it can divide."""
        return self.sums(mask_N, torch.ones_like(self.logprobs)).clamp(min=1)


def answer_tokens(
    model: Transformer, columns: Columns, answers: Answers, dtype: torch.dtype, *extra: str
) -> tuple[AnswerTokens, Sequence[Tensor]]:
    """The tokens of all answers with their log-probabilities, and the columns `extra` at the same places.

    An answer begins with its own header, so every token of content follows another token of its answer, never one of its neighbour.
    """
    chosen = np.flatnonzero((answers.ids[:, 1:] >= 0) & (answers.ids[:, 1:] == answers.ids[:, :-1]))
    tensors = to_tensors(columns, model.device)
    places = torch.from_numpy(chosen).to(model.device)
    hidden = hidden_states(model, tensors, dtype).flatten(0, 1)[places]
    targets = tensors["tokens"][:, 1:].flatten()[places]
    ids = torch.from_numpy(answers.ids[:, 1:].ravel()[chosen]).to(model.device)
    logprobs = token_logprobs(hidden, model.head_weight, targets)
    picked = [tensors[name][:, 1:].flatten()[places] for name in extra]
    return AnswerTokens(ids=ids, logprobs=logprobs, num_answers=len(answers)), picked
