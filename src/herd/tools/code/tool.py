"""`code_interpreter`, the tool that Llama 3.1 knows by name: its one argument is Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.tools.code.session import CodeSessions
from herd.tools.tool import Taint, ToolContext, ToolLimits, ToolResult

_QUEUE_S = 60.0
_MAX_CODE_BYTES = 1024 * 1024


class CodeInterpreterTool:
    """Runs Python in the session's own interpreter, in a jail without network."""

    name = "code_interpreter"
    description = (
        "Runs Python code in a sandbox without network access and returns what it prints, the value of its last line, figures and files. "
        "Variables and files are kept between calls."
    )
    taint = Taint()

    def __init__(self, sessions: CodeSessions) -> None:
        self._sessions = sessions
        limits = sessions.spec.limits
        self.parameters: Mapping[str, Any] = {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The Python code to run."}},
            "required": ["code"],
            "additionalProperties": False,
        }
        self.limits = ToolLimits(
            # Waiting for a processor counts, since the caller waits too.
            timeout_s=limits.run_s + _QUEUE_S,
            max_argument_bytes=_MAX_CODE_BYTES,
            max_attachment_bytes=limits.attachment_bytes,
        )

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Run `code`. A failure of the code is a result like any other, with `ok` false."""
        outcome = await self._sessions.run(context.session_id, arguments["code"], files=context.files)
        return ToolResult(
            text=outcome.text(),
            ok=outcome.status == "completed",
            error_code=None if outcome.status == "completed" else f"code_{outcome.status}",
            data=outcome.to_dict(),
            attachments=outcome.attachments,
            truncated=outcome.truncated,
        )
