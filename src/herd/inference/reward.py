"""Scores of conversations by a reward model: messages in, one number for the last answer out. Higher is better; differences count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from herd.base.errors import ContextOverflowError, FormatError
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.checkpoint.reward import load_reward_model
from herd.model.reward import RewardModel
from herd.text.messages import Message, ToolDefinition, as_messages
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer


class RewardScorer:
    """A reward model with its tokenizer: `RewardScorer.load("runs/reward/model").score(messages)`."""

    def __init__(self, model: RewardModel, tokenizer: Tokenizer, *, chat: PromptFormat | None = None) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.chat = chat or PromptFormat()

    @classmethod
    def load(cls, model: Path | str, *, dtype: str | None = None, device: str = "cpu") -> RewardScorer:
        """From a folder that `herd train reward` wrote. Raises NotFoundError, CheckpointError."""
        path = resolve_model(model)
        return cls(load_reward_model(path, dtype=dtype, device=device), load_checkpoint_tokenizer(path))

    @torch.no_grad()
    def score(self, messages: Sequence[Message | Mapping[str, Any]], *, tools: Iterable[ToolDefinition | Mapping[str, Any]] = ()) -> float:
        """The reward of a conversation that ends with an answer.

        Raises FormatError if its last message is not the assistant's, ContextOverflowError if it is too long.
        """
        found = as_messages(messages)
        if not found or found[-1].role != "assistant":
            raise FormatError("a reward is of an answer, and the last message is none", hint="end with an assistant message")
        ids, _ = self.chat.encode_with_mask(self.tokenizer, found, tools=tools)
        limit = self.model.config.max_position_embeddings
        if len(ids) > limit:
            raise ContextOverflowError(f"the conversation has {len(ids)} tokens, the model's context is {limit}", hint="shorten it")
        hidden = self.model.hidden(torch.tensor([ids], device=self.model.device))
        return float(self.model.score_of(hidden[0, -1]))
