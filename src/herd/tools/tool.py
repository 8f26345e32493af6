"""The seam: what a tool is, what it is told about a call, and what it gives back.

A tool is anything with these attributes and `call`. Who calls it goes through `registry`, which checks arguments and holds limits.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from herd.base.errors import FormatError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}\Z")
"""Names of tools and groups: what every wire format can carry."""
_MAX_PATH_BYTES = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Taint:
    """What a call of the tool does to a turn: the three of the Rule of Two, of which a turn may have two without a person's yes."""

    reads_untrusted: bool = False
    """It brings in text that a stranger may have written."""
    reads_private: bool = False
    """It reads what is not public: files, mail, a database."""
    acts_outside: bool = False
    """It changes something, or sends something to somebody."""

    def __or__(self, other: Taint) -> Taint:
        return Taint(
            reads_untrusted=self.reads_untrusted or other.reads_untrusted,
            reads_private=self.reads_private or other.reads_private,
            acts_outside=self.acts_outside or other.acts_outside,
        )

    @property
    def count(self) -> int:
        """How many of the three."""
        return self.reads_untrusted + self.reads_private + self.acts_outside


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolLimits:
    """What one call may take: seconds, bytes of arguments, characters of text, bytes of attachments."""

    timeout_s: float = 30.0
    max_argument_bytes: int = 256 * 1024
    max_text_chars: int = 20_000
    max_attachment_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s <= 3600:
            raise FormatError(f"timeout_s is {self.timeout_s}", hint="give more than 0 and at most 3600 seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """A file that goes with a call or a result. Its name is a plain relative path, whoever made it."""

    name: str
    mime_type: str
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not is_plain_path(self.name):
            raise FormatError(f"the file name {self.name[:80]!r} is no plain relative path", hint="use letters, digits, '.', '-' and '/'")

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the bytes in base64."""
        return {"name": self.name, "mime_type": self.mime_type, "data": base64.b64encode(self.data).decode("ascii")}


def is_plain_path(name: str) -> bool:
    """Whether a name is a relative path that stays below its folder and can stand in any file system and terminal."""
    parts = name.split("/")
    return (
        0 < len(name.encode("utf-8", "surrogatepass")) <= _MAX_PATH_BYTES
        and name.isprintable()
        and "\\" not in name
        and not any(part in ("", ".", "..") for part in parts)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolContext:
    """What a tool is told beside its arguments. `session_id` is the server's own name for a conversation, never the model's."""

    session_id: str = "default"
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Keys that came with the request, by name; they go before the tool's own."""
    files: tuple[Attachment, ...] = ()
    """Files of the conversation, which the code interpreter puts into its working folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    """What a call gave. `text` is what the model reads; `data` is the same for programs, where there is more to say than text."""

    text: str
    ok: bool = True
    data: Any = None
    attachments: tuple[Attachment, ...] = ()
    error_code: str | None = None
    truncated: bool = False
    elapsed_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON, in the Llama Stack's words and with herd's own beside them. `error_code` is a word where the Stack has a number."""
        return {
            "content": self.text,
            "error_code": self.error_code,
            "error_message": None if self.ok else self.text,
            "metadata": {"data": self.data, "truncated": self.truncated, "elapsed_s": round(self.elapsed_s, 4)},
            "attachments": [attachment.to_dict() for attachment in self.attachments],
        }


def failure(code: str, message: str, *, data: Any = None) -> ToolResult:
    """The result of a call that failed, with a sentence that the model can act on."""
    return ToolResult(text=message, ok=False, error_code=code, data=data)


@runtime_checkable
class Tool(Protocol):
    """A tool. `parameters` is a JSON Schema of an object; `limits` and `taint` are held by who calls it."""

    @property
    def name(self) -> str:
        """The name that a model calls it by."""
        ...

    @property
    def description(self) -> str:
        """What it does, for the model."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON Schema of its arguments."""
        ...

    @property
    def taint(self) -> Taint:
        """What a call does to the turn."""
        ...

    @property
    def limits(self) -> ToolLimits:
        """What a call may take."""
        ...

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Run with arguments that fit `parameters`. Raises HerdError for what a model can be told; anything else is a bug."""
        ...


@runtime_checkable
class Retriever(Protocol):
    """What finds passages for `knowledge_search`. Vector stores come from elsewhere; the file index here is one too."""

    async def retrieve(self, query: str, *, limit: int, context: ToolContext) -> list[Passage]:
        """The best passages, best first."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A piece of a document with where it stands, so that it can be cited."""

    text: str
    source: str
    score: float
    title: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"text": self.text, "source": self.source, "score": round(self.score, 4), "title": self.title}
