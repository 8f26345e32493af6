"""What responses may use beside the model: the server's tools, put together when first needed, its vector stores, its shields."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from herd.safety.shields import Shields
from herd.safety.verdict import Content, TouchPoint, Verdict
from herd.stack.responses.kit import Outfitter, VectorSearch
from herd.stack.shielding import Shielding
from herd.tools.toolbox import Toolbox
from herd.tools.web.address import WebPolicy


async def _no_tools() -> Toolbox:
    return Toolbox()


class Equipment:
    """One server's.

    Args:
        open_tools: gives the toolbox; whoever made it closes it.
        vectors: searches in vector stores; None: there are none.
        policy: where MCP servers that bodies name may be.
        shielding: the server's shields. What comes in and what goes out is judged where the model is asked; here, calls and their results.
    """

    def __init__(
        self,
        open_tools: Callable[[], Awaitable[Toolbox]] = _no_tools,
        *,
        vectors: VectorSearch | None = None,
        policy: WebPolicy | None = None,
        shielding: Shielding | None = None,
    ) -> None:
        self._open, self._vectors, self._policy = open_tools, vectors, policy or WebPolicy()
        self.shields = None if shielding is None else of_tools(shielding.shields)

    async def outfitter(self) -> Outfitter:
        """What makes kits."""
        return Outfitter(await self._open(), self._vectors, self._policy)


class _AtTools:
    """A shield that stands at the touch points of tools alone."""

    def __init__(self, inner: object) -> None:
        self._inner: Any = inner
        self.name: str = self._inner.name
        self.points = frozenset(self._inner.points) & {TouchPoint.TOOL_INPUT, TouchPoint.TOOL_OUTPUT}

    async def check(self, content: Content) -> Verdict:
        """What it says."""
        return await self._inner.check(content)


def of_tools(shields: Shields) -> Shields | None:
    """Those of the shields that judge calls and results; None where none does."""
    found = [_AtTools(shield) for shield in shields.shields if _AtTools(shield).points]
    return Shields(found) if found else None
