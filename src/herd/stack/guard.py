"""The outermost layer: who may come in, how much they may send, how long they may take, and what is told when something breaks.

Deny by default: every path but `/health`, `/ready` and the page's own files, exactly so spelled, needs a key where there are keys; whether
a route exists is told to no one else. A body is read whole, bounded in size and time, before any route sees it. Plain ASGI, no framework.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from herd.base.log import get_logger
from herd.stack.config import ServerConfig, is_loopback
from herd.stack.errors import RequestError, body_of, headers_of, note_internal, status_of
from herd.stack.keys import ApiKey, find_key
from herd.stack.origins import answer_headers, is_own, is_preflight, preflight_headers
from herd.stack.page import page_paths
from herd.stack.paths import PROBES, plain_path
from herd.stack.tracing import Tracing

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = get_logger("herd.stack.access")

OPEN_PATHS = frozenset({*PROBES, *page_paths()})
"""Health and readiness, which tell yes or no, and the files of the page, which hold no secret."""
UPLOADS = frozenset({"/v1/files"})
"""Paths whose body is a file: passed on as it comes, counted."""
MAX_HEADER_BYTES = 32 * 1024
"""The protocol stops reading headers that grow beyond it; those that came at once are counted here."""
LEAST_BYTES_PER_S = 16 * 1024
"""A body that comes slower than that, once its first wait is over, is not waited for."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_READ_ONLY = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(slots=True)
class Context:
    """One HTTP request: its id, whose key it came with, when it began, its span if there is one.

    `done_event` is false for clients of the Llama Stack, of which those up to 0.3 read OpenAI's last event, [DONE], as JSON and fail.
    """

    request_id: str
    key: ApiKey | None
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    log_fields: dict[str, Any] = field(default_factory=dict[str, Any])
    span: Any = None
    done_event: bool = True


class Guard:
    """Wraps the application. `draining` refuses new work; `observe` is told of every finished request."""

    def __init__(self, app: App, config: ServerConfig, *, observe: Callable[[str, str, int, float], None] | None = None) -> None:
        self._app, self._config, self._observe = app, config, observe
        self.tracing = Tracing()
        self.draining = False
        self.num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["path"] = plain_path(scope["path"])
        headers = _headers(scope)
        given = headers.get("x-request-id", "")
        context = Context(request_id=given if _REQUEST_ID.fullmatch(given) else "req-" + secrets.token_hex(12), key=None)
        context.done_event = "x-llamastack-client-version" not in headers
        context.span = self.tracing.request(scope["method"], headers, context.request_id)
        answer = _Answer(send, context, answer_headers(headers.get("origin"), self._config.allowed_origins))
        self.num_open += 1
        try:
            if is_preflight(scope["method"], headers, self._config.allowed_origins):
                self._check_host(headers)
                await answer.empty(204, preflight_headers())
                return
            self._admit(scope, headers, context)
            scope["herd"] = context
            inner = receive if scope["path"] in UPLOADS and scope["method"] == "POST" else await self._read(receive, headers)
            await self._app(scope, inner, answer.send)
        except asyncio.CancelledError:
            if not self.draining:
                raise
        except Exception as error:
            note_internal(error, context.request_id)
            if not answer.begun:
                await answer.error(error)
        finally:
            self.num_open -= 1
            self._note(scope, context)

    def _note(self, scope: Scope, context: Context) -> None:
        seconds = time.monotonic() - context.started
        route = getattr(scope.get("route"), "path", "other")
        if self._observe is not None:
            self._observe(scope["method"], route, context.status, seconds)
        key = None if context.key is None else context.key.name
        self.tracing.answered(context.span, method=scope["method"], route=route, status=context.status, key=key)
        if self._config.access_log and route not in (*PROBES, "/metrics"):
            told = {"id": context.request_id, "key": key, **context.log_fields}
            found = {name: value for name, value in told.items() if value is not None}
            shown = " ".join(f"{name}={value}" for name, value in found.items())
            facts = {"method": scope["method"], "route": route, "status": context.status, "ms": round(seconds * 1e3, 1), **found}
            log.info("%s %s %d %.1fms %s", *list(facts.values())[:4], shown, extra={"fields": facts})

    def _admit(self, scope: Scope, headers: dict[str, str], context: Context) -> None:
        """Raises RequestError for who may not come in."""
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > MAX_HEADER_BYTES:
            message = f"the headers have {size:,} bytes, the limit is {MAX_HEADER_BYTES:,}"
            raise RequestError("headers_too_large", message, hint="send fewer or shorter ones")
        self._check_host(headers)
        if _spelled(scope) not in OPEN_PATHS or scope["method"] not in ("GET", "HEAD"):
            context.key = self._check_key(headers)
        if self.draining and scope["method"] not in _READ_ONLY:
            raise RequestError("draining", "the server is shutting down", hint="ask another one", retry_after_s=5.0)

    def _check_host(self, headers: dict[str, str]) -> None:
        """Against DNS rebinding: a page of another site, resolved to this machine, sends its own name."""
        host = _name_of("//" + headers.get("host", ""))
        if self._config.local:
            allowed = {"localhost", "127.0.0.1", "::1", self._config.host.strip("[]").lower(), *self._config.allowed_hosts}
            if host not in allowed and not (host and is_loopback(host)):
                raise RequestError("forbidden", f"the host {host!r:.100} is not this server", hint="add it with --allow-host")
        elif self._config.allowed_hosts and host not in {*self._config.allowed_hosts, self._config.host.lower()}:
            raise RequestError("forbidden", f"the host {host!r:.100} is not this server", hint="add it with --allow-host")
        origin = headers.get("origin")
        if origin is not None and origin not in self._config.allowed_origins and not is_own(origin, headers.get("host", "")):
            raise RequestError("forbidden", "a page of another site may not ask this server", hint="add it with --allow-origin")

    def _check_key(self, headers: dict[str, str]) -> ApiKey | None:
        if not self._config.keys:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = find_key(self._config.keys, given.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise RequestError("unauthorized", "no valid API key was given", hint="send the header Authorization: Bearer KEY")
        return key

    async def _read(self, receive: Receive, headers: dict[str, str]) -> Receive:
        """Read the whole body within the limits; a receive that gives it, and tells of the client's leaving afterwards."""
        limit = self._config.caps.body_bytes
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise _too_large(int(announced), limit)
        parts: list[bytes] = []
        size, more = 0, True
        began = time.monotonic()
        while more:
            patience = self._config.body_timeout_s
            left = began + patience + size / LEAST_BYTES_PER_S - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), min(patience, left))
            except TimeoutError:
                raise RequestError("slow", f"the body did not come in time, {size:,} bytes of it did", hint="send it at once") from None
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > limit:
                raise _too_large(size, limit)
        body: bytes | None = b"".join(parts)

        async def again() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            whole, body = body, None
            return {"type": "http.request", "body": whole, "more_body": False}

        return again


class _GoneError(RequestError):
    """The client left while it was sending; nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__("slow", "the client left")


class _Answer:
    """What goes out: remembers the status, adds the request's id and `more` headers."""

    def __init__(self, send: Send, context: Context, more: Iterable[tuple[bytes, bytes]]) -> None:
        self._send, self._context, self._more = send, context, more
        self.begun = False

    async def send(self, message: Message) -> None:
        """Pass on."""
        if message["type"] == "http.response.start":
            self.begun = True
            self._context.status = message["status"]
            safe = [(b"x-request-id", self._context.request_id.encode()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", ()), *safe, *self._more]}
        await self._send(message)

    async def empty(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Answer without a body."""
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": b""})

    async def error(self, error: Exception) -> None:
        """Answer with an error, and close the connection: of the body, some may be unread."""
        data = json.dumps(body_of(error, request_id=self._context.request_id)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), (b"connection", b"close")]
        headers += [(name.lower().encode(), value.encode()) for name, value in headers_of(error).items()]
        await self.send({"type": "http.response.start", "status": status_of(error), "headers": headers})
        await self._send({"type": "http.response.body", "body": data})


def _too_large(size: int, limit: int) -> RequestError:
    return RequestError("too_large", f"the body has {size:,} bytes or more, the limit is {limit:,}", hint="send less at once")


def _headers(scope: Scope) -> dict[str, str]:
    raw: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}


def _spelled(scope: Scope) -> str:
    """The path as it was sent: an open one has one spelling."""
    raw = scope.get("raw_path")
    return scope["path"] if raw is None else raw.partition(b"?")[0].decode("latin-1")


def _name_of(url: str) -> str:
    """The host name of an URL, in lower case; empty for what is none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
