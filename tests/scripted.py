"""A model that says what it is told: its scores are those of a script, whatever the prompt. For tests of stopping and streaming."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from herd.engine.build import build_engine
from herd.inference.local import LocalModel
from herd.inference.prepare import grammar_compiler
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.text.tokenizer import Tokenizer


class ScriptedModel(Transformer):
    """Gives the ids of its script one after another; `calls` counts the forwards."""

    def __init__(self, script: Sequence[int], vocab_size: int, context: int = 4096) -> None:
        super().__init__(
            ModelConfig(
                vocab_size=vocab_size,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=context,
            )
        )
        self.script = list(script)
        self.calls = 0

    def hidden(self, tokens_BT: Tensor, **_: object) -> Tensor:
        """Nothing is computed."""
        return torch.zeros(*tokens_BT.shape, self.config.hidden_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """All weight on the script's next id; its last one goes on for ever."""
        scores = torch.full((*hidden.shape[:-1], self.config.vocab_size), -100.0)
        scores[..., self.script[min(self.calls, len(self.script) - 1)]] = 100.0
        self.calls += 1
        return scores


def scripted(tokenizer: Tokenizer, script: Sequence[int] | str, *, end: bool = True, context: int = 4096) -> LocalModel:
    """A `LocalModel` that answers with a text (and then <|eot_id|>) or with ids as they are."""
    ids = tokenizer.encode(script, allowed_special="all") + ([tokenizer.eot_id] if end else []) if isinstance(script, str) else list(script)
    return local(ScriptedModel(ids, tokenizer.vocab_size, context), tokenizer)


def local(model: Transformer, tokenizer: Tokenizer) -> LocalModel:
    """A model behind the port."""
    size = tokenizer.vocab_size
    return LocalModel(build_engine(model, vocab_size=size, grammars=partial(grammar_compiler, tokenizer, size)), tokenizer)
