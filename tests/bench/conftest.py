"""The tiny model, and herd's command line."""

from __future__ import annotations

from tiny_model import tiny_folder, tiny_llm, tiny_tokenizer  # pyright: ignore[reportMissingImports]

__all__ = ["tiny_folder", "tiny_llm", "tiny_tokenizer"]
