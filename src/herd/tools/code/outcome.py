"""What a piece of code did, and the text that the model reads of it.

The text is Llama 3.1's: a line `completed`, `failed` or `timeout`, then `[stdout]...[/stdout]` and `[stderr]...[/stderr]`, tags on lines of
their own as Meta's agent wrote them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from herd.tools.tool import Attachment

Status = Literal["completed", "failed", "timeout"]

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ENDED = {
    "timeout": "the code ran too long and did not stop when told; the interpreter was ended and its variables are gone",
    "memory": "the code took more memory than it may; the interpreter was ended and its variables are gone",
    "disk": "the code wrote more than it may; the interpreter was ended and its variables are gone",
    "protocol": "the code disturbed the interpreter; it was ended and its variables are gone",
    "cancelled": "the code was cancelled; the interpreter was ended and its variables are gone",
    "ended": "the interpreter ended (a crash, or os._exit); its variables are gone",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeError:
    """An exception of the code: type, message and the trace through the code's own lines."""

    name: str
    message: str
    traceback: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a piece of code did. `ended` says why the interpreter is gone, where it is."""

    status: Status
    stdout: str = ""
    stderr: str = ""
    stdout_lost_bytes: int = 0
    stderr_lost_bytes: int = 0
    result: str | None = None
    result_cut: bool = False
    error: CodeError | None = None
    ended: str | None = None
    attachments: tuple[Attachment, ...] = ()
    left_out: tuple[str, ...] = ()
    elapsed_s: float = 0.0

    @property
    def truncated(self) -> bool:
        """Whether anything that the code gave is missing."""
        return bool(self.stdout_lost_bytes or self.stderr_lost_bytes or self.result_cut or self.left_out)

    def text(self) -> str:
        """What the model reads."""
        out = _plain(self.stdout)
        if self.result is not None:
            out += ("\n" if out and not out.endswith("\n") else "") + _plain(self.result) + (" ...\n" if self.result_cut else "\n")
        parts = [self.status, *_section("stdout", out, self.stdout_lost_bytes)]
        err = _plain(self.stderr) + (_plain(self.error.traceback) if self.error else "")
        parts += _section("stderr", err, self.stderr_lost_bytes)
        if self.status == "timeout" and self.ended is None:
            parts.append("[the code ran too long and was stopped; variables are kept]")
        if self.ended is not None:
            parts.append(f"[{_ENDED.get(self.ended, _ENDED['ended'])}]")
        if self.attachments:
            parts.append("[files: " + ", ".join(file.name for file in self.attachments) + "]")
        if self.left_out:
            parts.append("[left out: " + "; ".join(self.left_out)[:2000] + "]")
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the bytes of attachments."""
        return {
            "status": self.status,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "result": self.result,
            "error": None
            if self.error is None
            else {"name": self.error.name, "message": self.error.message, "traceback": self.error.traceback},
            "ended": self.ended,
            "files": [{"name": file.name, "mime_type": file.mime_type, "size_bytes": len(file.data)} for file in self.attachments],
            "left_out": list(self.left_out),
            "truncated": self.truncated,
            "elapsed_s": round(self.elapsed_s, 4),
        }


def _section(name: str, text: str, lost: int) -> list[str]:
    if lost:
        text = f"{text.rstrip()}\n[... {lost} bytes more left out ...]\n"
    return [f"[{name}]", text.rstrip("\n"), f"[/{name}]"] if text.strip() else []


def _plain(text: str) -> str:
    """Text without terminal escapes and control characters, which would reach the terminal of whoever reads along."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))
