"""What responses may use beside the model: the server's tools, its vector stores, its shields. Put together when first needed."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Sequence

from herd.base.errors import ConfigError
from herd.safety.shields import Shields
from herd.stack.responses.kit import Outfitter, VectorSearch
from herd.tools.toolbox import Toolbox, ToolboxConfig, open_toolbox
from herd.tools.web.address import WebPolicy


async def _from_settings() -> Toolbox:
    return await open_toolbox(ToolboxConfig.from_settings())


def policy_of(networks: Sequence[str]) -> WebPolicy:
    """Where MCP servers that bodies name may be: the public internet, and these networks. Raises ConfigError."""
    try:
        return WebPolicy(allowed_networks=tuple(ipaddress.ip_network(network) for network in networks))
    except ValueError as error:
        raise ConfigError(f"a network of MCP servers is none: {error}", hint="write 127.0.0.0/8, ::1/128 or 10.1.2.3") from error


class Equipment:
    """One server's. `open_tools` makes the toolbox; whoever made it closes it, so `close` closes what was made here."""

    def __init__(
        self,
        *,
        open_tools: Callable[[], Awaitable[Toolbox]] = _from_settings,
        vectors: VectorSearch | None = None,
        shields: Shields | None = None,
        policy: WebPolicy | None = None,
    ) -> None:
        self._open, self._vectors, self.shields = open_tools, vectors, shields
        self._policy = policy or WebPolicy()
        self._toolbox: Toolbox | None = None
        self._opening = asyncio.Lock()

    async def outfitter(self) -> Outfitter:
        """What makes kits."""
        async with self._opening:
            if self._toolbox is None:
                self._toolbox = await self._open()
        return Outfitter(self._toolbox, self._vectors, self._policy)

    async def close(self) -> None:
        """End what runs."""
        if self._toolbox is not None:
            await self._toolbox.close()
