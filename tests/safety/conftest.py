"""The tiny tokenizer, and shields that say what they are told."""

from __future__ import annotations

from tiny_model import tiny_tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]
