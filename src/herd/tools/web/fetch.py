"""One URL over HTTP, safely: the address that was checked is the one connected to, each redirect is checked anew, size and time are held.

Connections are made by httpcore through a backend of ours, so that TLS still checks the name while the socket goes to the pinned address.
No proxy of the environment, no cookies, no credentials, no caches.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpcore

from herd.tools.errors import DeniedAddressError, ToolError
from herd.tools.web.address import Resolve, WebAddress, WebPolicy, join, pinned, read_url, resolve
from herd.tools.web.inflate import ENCODINGS, Inflater
from herd.version import __version__

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchLimits:
    """What one fetch may take."""

    timeout_s: float = 20.0
    max_sent_bytes: int = 4 * 1024 * 1024
    """As sent; what is over is not read, and said."""
    max_bytes: int = 16 * 1024 * 1024
    """Unpacked; beyond it the fetch fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """A response: the URL that gave it in the end, and its body, unpacked."""

    url: str
    status: int
    content_type: str
    body: bytes
    truncated: bool = False


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to nothing but addresses that the policy allows, whatever a name resolves to by then."""

    def __init__(self, policy: WebPolicy, resolver: Resolve) -> None:
        self._policy, self._resolver = policy, resolver
        self._inner: Any = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to one of the host's addresses."""
        failed: Exception | None = None
        for address in await pinned(host, port, self._policy, self._resolver):
            try:
                return await self._inner.connect_tcp(address, port, timeout=timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError(f"no address of {host}")

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None) -> Any:
        """Never: no URL that is read leads to one."""
        raise DeniedAddressError("sockets of this machine are not fetched from")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class Fetcher:
    """Fetches by one policy. Its connections are not kept: the next fetch resolves and checks anew."""

    def __init__(
        self,
        policy: WebPolicy | None = None,
        limits: FetchLimits | None = None,
        *,
        resolver: Resolve = resolve,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.policy, self.limits = policy or WebPolicy(), limits or FetchLimits()
        self._resolver, self._ssl = resolver, ssl_context

    async def get(self, url: str) -> Fetched:
        """GET a URL. Raises ToolError, DeniedAddressError or TooLargeError with what a model can be told."""
        address = read_url(url, self.policy)
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                for _ in range(_MAX_REDIRECTS + 1):
                    answer = await self._ask(address)
                    if isinstance(answer, Fetched):
                        return answer
                    address = answer
        except TimeoutError as error:
            raise ToolError(f"{address.host} did not answer within {self.limits.timeout_s:g} seconds", hint="try another source") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ssl.SSLError) as error:
            raise ToolError(f"{address.host} cannot be reached, or speaks no HTTP", hint="try another source") from error
        raise ToolError(f"the page leads on more than {_MAX_REDIRECTS} times", hint="try another source")

    async def _ask(self, address: WebAddress) -> Fetched | WebAddress:
        headers: dict[bytes | str, bytes | str] = {
            "Host": address.authority,
            "User-Agent": f"herd/{__version__} (fetch tool)",
            "Accept": "text/html,text/plain,application/json;q=0.9,*/*;q=0.5",
            "Accept-Encoding": "gzip, deflate",
            "Connection": "close",
        }
        target = httpcore.URL(scheme=address.scheme, host=address.host, port=address.port, target=address.target)
        backend = PinnedBackend(self.policy, self._resolver)
        async with httpcore.AsyncConnectionPool(network_backend=backend, ssl_context=self._ssl, max_keepalive_connections=0) as pool:
            timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self.limits.timeout_s)
            async with pool.stream("GET", target, headers=headers, extensions={"timeout": timeouts}) as response:
                found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                if response.status in _REDIRECTS and "location" in found:
                    return join(address, found["location"], self.policy)
                body, truncated = await self._body(response, found)
        return Fetched(url=str(address), status=response.status, content_type=found.get("content-type", ""), body=body, truncated=truncated)

    async def _body(self, response: httpcore.Response, headers: Mapping[str, str]) -> tuple[bytes, bool]:
        encoding = headers.get("content-encoding", "identity").strip().lower() or "identity"
        if encoding not in ENCODINGS:
            raise ToolError(f"the page is packed as {encoding[:20]!r}, which was not asked for", hint="try another source")
        inflater = Inflater(encoding, self.limits.max_bytes)
        body, sent = bytearray(), 0
        async for piece in response.aiter_stream():
            room = self.limits.max_sent_bytes - sent
            sent += len(piece)
            body += inflater.feed(piece[:room])
            if sent > self.limits.max_sent_bytes:
                return bytes(body), True
        return bytes(body), False
