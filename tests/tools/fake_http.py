"""A small HTTP server in a thread, which answers what a function says and keeps what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(kw_only=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(kw_only=True)
class Answer:
    """What to answer. `pieces` are sent one by one, without a length, until the other side goes."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: Iterable[bytes] | None = None


@dataclass(kw_only=True)
class FakeServer:
    """Where it listens, and what it was asked."""

    port: int
    asked: list[Asked]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(answer: Callable[[Asked], Answer]) -> Iterator[FakeServer]:
    """A server for as long as the block lasts."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            request = Asked(
                method=self.command, path=self.path, headers={k.lower(): v for k, v in self.headers.items()}, body=self.rfile.read(length)
            )
            asked.append(request)
            got = answer(request)
            try:
                self.send_response(got.status)
                for name, value in got.headers.items():
                    self.send_header(name, value)
                if got.pieces is None:
                    self.send_header("Content-Length", str(len(got.body)))
                self.end_headers()
                self.wfile.write(got.body)
                for piece in got.pieces or ():
                    self.wfile.write(piece)
                    self.wfile.flush()
            except OSError:
                pass

        do_GET = do_POST = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield FakeServer(port=server.server_address[1], asked=asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
