"""The seam to a model that makes vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from herd.tools.retrieval.chunking import TokenCounter


@runtime_checkable
class Embedder(Protocol):
    """Makes vectors of texts, for an owner whose limits count."""

    @property
    def name(self) -> str:
        """The model's name, which a store remembers."""
        ...

    @property
    def dimensions(self) -> int | None:
        """Numbers of a vector, where that is known before the first."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a text at most."""
        ...

    @property
    def tokenizer(self) -> TokenCounter:
        """Cuts text as the model does."""
        ...

    async def embed(self, texts: Sequence[str], *, owner: str, in_background: bool) -> NDArray[np.float32]:
        """A row for each text. In the background it waits for its turn; else it is refused as any request is. Raises HerdError."""
        ...
