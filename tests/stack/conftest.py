"""The server that tests of clients share."""

from __future__ import annotations

from live_server import live_server  # noqa: F401  # pyright: ignore[reportMissingImports]
