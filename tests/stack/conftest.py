"""The server that tests of clients share, OpenAI's client of it, and the tiny model."""

from __future__ import annotations

from client_server import live_server  # noqa: F401  # pyright: ignore[reportMissingImports]
from openai_client import client  # noqa: F401  # pyright: ignore[reportMissingImports]

from tiny_model import tiny_folder, tiny_tokenizer  # noqa: F401  # pyright: ignore[reportMissingImports]
