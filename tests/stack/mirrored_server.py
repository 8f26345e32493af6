"""`herd serve` over cria whose `herd.toml` names two providers: the server itself under another name, and one that is not there.

So remote models are asked over a real wire, and the answers can be held against the engine's own. Import the fixtures by name.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_server import LiveServer, needs_cria  # pyright: ignore[reportMissingImports]

TOML = """
[[providers]]
name = "mirror"
base_url = "http://127.0.0.1:{port}/v1"
dialect = "herd"

[[providers.models]]
id = "cria"
aliases = ["glass"]

[[providers]]
name = "gone"
base_url = "http://127.0.0.1:{closed}/v1"
connect_retries = 0
models = ["nothing"]
"""
PEER = Path(__file__).resolve().parents[1] / "tools" / "mcp_peer.py"


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="session")
def mirrored() -> Iterator[LiveServer]:
    """The server. Tests leave it as it was."""
    needs_cria()
    with tempfile.TemporaryDirectory(prefix="herd-mirror-") as home:
        port = free_port()
        (Path(home) / "herd.toml").write_text(TOML.format(port=port, closed=free_port()))
        server = LiveServer("--port", str(port), "--allow-mcp", "127.0.0.0/8", home=Path(home))
        yield server
        server.stop()


@pytest.fixture(scope="session")
def mcp_peer_url() -> Iterator[str]:
    """An MCP server made with the SDK, over HTTP."""
    port = free_port()
    with subprocess.Popen([sys.executable, str(PEER), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while True:
                with socket.socket() as sock:
                    if sock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None and time.monotonic() < until, "the MCP server did not start"
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()
