"""A text as a vector: the request for it and the reader of what comes. No torch.

The vector is the model's final hidden state, after its last norm: the mean over all tokens of the text and <|begin_of_text|>, or the last
token's. Llama was not trained to embed: expect vectors for search by rough likeness, not those of a model made for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import UsageError
from herd.engine.params import TokenParams
from herd.engine.pooling import POOLINGS, Pooling
from herd.engine.stream import Embedded, TokenEvent, TokenRequest
from herd.inference.port import Caller
from herd.inference.reading import QuietReader
from herd.text.tokenizer import Tokenizer


def embed_request(tokenizer: Tokenizer, text: str | Sequence[int], pooling: Pooling, *, caller: Caller | None = None) -> TokenRequest:
    """What the engine is asked: a text after <|begin_of_text|>, or token ids as they are. Raises UsageError, TokenizerError."""
    if pooling not in POOLINGS:
        raise UsageError(f"pooling is {pooling!r}", hint="choose " + " or ".join(POOLINGS))
    who = caller or Caller()
    prompt = tokenizer.encode(text, bos=True) if isinstance(text, str) else list(text)
    for token_id in prompt:
        tokenizer.token_bytes(token_id)
    return TokenRequest(
        prompt=tuple(prompt),
        params=TokenParams(max_tokens=1),
        embed=pooling,
        tenant=who.tenant,
        salt=who.salt,
        priority=who.priority,
    )


class EmbedReader(QuietReader):
    """Reads the events of one `embed_request`."""

    def __init__(self) -> None:
        super().__init__()
        self._vector: tuple[float, ...] | None = None

    def take(self, event: TokenEvent) -> None:
        """Keep the vector."""
        if isinstance(event, Embedded):
            self._vector = event.vector

    def result(self) -> tuple[float, ...]:
        """The vector, once `done`."""
        assert self._vector is not None, "the request ended without a vector"
        return self._vector


def as_array(vectors: Sequence[tuple[float, ...]], *, normalize: bool, width: int) -> NDArray[np.float32]:
    """Vectors as the rows of an array [N, D], each of length 1 if `normalize`. One of length 0 stays so."""
    found = np.asarray(vectors, dtype=np.float32).reshape(len(vectors), width)
    if normalize:
        lengths = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
        found = (found / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    return found
