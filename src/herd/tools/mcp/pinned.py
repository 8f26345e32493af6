"""Connections to MCP servers that somebody else named: only to addresses that a policy allows, resolved once for each request.

The name is checked and pinned where the socket is opened, so that neither a redirect nor a name that resolves anew leads elsewhere.
TLS still checks the name.
"""

from __future__ import annotations

import httpx2

from herd.tools.web.address import Resolve, WebPolicy, pinned, read_url, resolve


class PinnedTransport(httpx2.AsyncBaseTransport):
    """A transport by one policy. Raises DeniedAddressError, ToolError for what may not be reached."""

    def __init__(self, policy: WebPolicy, *, resolver: Resolve = resolve) -> None:
        self._policy, self._resolver = policy, resolver
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the first of its host's addresses. The Host header, which is set already, stays."""
        address = read_url(str(request.url), self._policy)
        found = await pinned(address.host, address.port, self._policy, self._resolver)
        request.url = request.url.copy_with(host=found[0])
        request.extensions = {**request.extensions, "sni_hostname": address.host}
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._inner.aclose()
