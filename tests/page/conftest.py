"""The browser and the server that tests of the page share, and the server tests' own helpers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "stack"))

from browser import browser_fixture, open_page, page_server, serve_fixture  # noqa: F401  # pyright: ignore[reportMissingImports]
