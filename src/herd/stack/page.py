"""The page at `/`: files of `stack/static` as they are, under a policy that lets nothing in from elsewhere. It knows no model and no key.

The files hold no secret, so they come without a key; what the page asks for afterwards does need one. No script or style stands inside
the document, and nothing that a model writes can become one: the policy names this server as the only source, and asks for trusted types.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static"
PREFIX = "/page/"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticFile:
    """A file with its packed form and its tag."""

    data: bytes
    packed: bytes
    media_type: str
    etag: str


@cache
def page_paths() -> dict[str, Path]:
    """Every path that the page has, each with its file. A path has one spelling."""
    files = sorted(path for path in FOLDER.rglob("*") if path.is_file() and path.suffix in _TYPES)
    return {"/": FOLDER / "index.html"} | {PREFIX + path.relative_to(FOLDER).as_posix(): path for path in files}


def page_routes() -> APIRouter:
    """The routes: one for each file, none that reads a name from the request."""
    router = APIRouter()
    for path, file in page_paths().items():
        router.add_api_route(path, _route(file), methods=["GET", "HEAD"], include_in_schema=False, response_model=None)
    return router


@cache
def _read(file: Path, changed: int) -> StaticFile:
    data = file.read_bytes()
    etag = '"' + hashlib.sha256(data).hexdigest()[:24] + '"'
    return StaticFile(data=data, packed=gzip.compress(data, 9, mtime=0), media_type=_TYPES[file.suffix], etag=etag)


def _route(file: Path) -> Callable[[Request], Awaitable[Response]]:
    async def page_file(request: Request) -> Response:
        found = _read(file, file.stat().st_mtime_ns)
        headers = {"etag": found.etag, "cache-control": "no-cache", "vary": "accept-encoding", "referrer-policy": "no-referrer"}
        headers |= {"content-security-policy": POLICY, "cross-origin-opener-policy": "same-origin"}
        if request.headers.get("if-none-match") == found.etag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(found.packed, headers=headers | {"content-encoding": "gzip"}, media_type=found.media_type)
        return Response(found.data, headers=headers, media_type=found.media_type)

    return page_file
