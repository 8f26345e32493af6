"""The server that tests of clients share, and OpenAI's client of it."""

from __future__ import annotations

from client_server import live_server  # noqa: F401  # pyright: ignore[reportMissingImports]
from openai_client import client  # noqa: F401  # pyright: ignore[reportMissingImports]
