"""What can go wrong around tools, for people; what a model reads of it is a `ToolResult`, never an exception."""

from __future__ import annotations

from herd.base.errors import HerdError


class ToolError(HerdError):
    """A tool that refuses a call, or cannot answer it: the message is written for the model as well as for people."""

    code = "tool"


class ToolArgumentsError(ToolError):
    """Arguments that do not fit the tool's parameters."""

    code = "tool_arguments"


class JailError(HerdError):
    """No jail works on this machine, so that code cannot be run: it is never run outside one."""

    code = "jail"


class DeniedAddressError(ToolError):
    """A URL that leads to an address which tools may not reach."""

    code = "denied_address"


class ConsentError(ToolError):
    """A remote tool whose description nobody agreed to, or that changed since."""

    code = "consent"
