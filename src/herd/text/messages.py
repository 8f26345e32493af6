"""Messages as typed parts: what a conversation is made of before any format renders it.

A message has a role and parts: text, or calls of tools. `Message.from_dict` reads the shape that OpenAI's clients write, strictly;
`to_dict` writes it. Knows no prompt format and no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from herd.base.errors import FormatError, did_you_mean

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

CODE_INTERPRETER = "code_interpreter"
BUILTIN_TOOLS = ("brave_search", "wolfram_alpha", "photogen", CODE_INTERPRETER)
"""Tools that Llama 3.1 knows by name: they need no definition in the prompt. photogen is in Meta's code, not in its documentation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPart:
    """Plain text."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call that the model asks for. Code for the interpreter is a call of `code_interpreter` with the argument `code`.

    `id` names the call where a protocol needs it to match a result; the prompt format does not carry it.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's shape: the arguments are JSON text."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        return {"id": self.id or "", "type": "function", "function": function}


Part = TextPart | ToolCall


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message. `ends_turn` false: the assistant waits for a tool's result (<|eom_id|> instead of <|eot_id|>).

    `tool_call_id` and `name` say, on a tool message, which call it answers.
    """

    role: Role
    parts: tuple[Part, ...]
    ends_turn: bool = True
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise FormatError(
                f"unknown role {self.role!r}", hint=did_you_mean(str(self.role), ROLES, otherwise="roles: " + ", ".join(ROLES))
            )
        if self.role != "assistant" and any(isinstance(part, ToolCall) for part in self.parts):
            raise FormatError(f"a {self.role} message holds a tool call", hint="only assistant messages call tools")

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls, in order."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))

    @classmethod
    def system(cls, text: str) -> Message:
        """Instructions for the whole conversation."""
        return cls(role="system", parts=(TextPart(text=text),))

    @classmethod
    def user(cls, text: str) -> Message:
        """What a person says."""
        return cls(role="user", parts=(TextPart(text=text),))

    @classmethod
    def assistant(cls, text: str = "", tool_calls: Iterable[ToolCall] = (), *, ends_turn: bool = True) -> Message:
        """What the model says or calls."""
        return cls(role="assistant", parts=(*((TextPart(text=text),) if text else ()), *tool_calls), ends_turn=ends_turn)

    @classmethod
    def tool(cls, text: str, *, name: str | None = None, tool_call_id: str | None = None) -> Message:
        """What a tool gave back; role `ipython` in the prompt."""
        return cls(role="tool", parts=(TextPart(text=text),), name=name, tool_call_id=tool_call_id)

    @classmethod
    def from_dict(cls, data: Any) -> Message:
        """Read OpenAI's message shape; `ipython` means `tool`, `developer` means `system`. Raises FormatError, naming the field."""
        data = _mapping(data, "message")
        role = {"ipython": "tool", "developer": "system"}.get(str(data.get("role")), data.get("role"))
        if role not in ROLES:
            raise FormatError(f"unknown role {role!r}", hint=did_you_mean(str(role), ROLES, otherwise="roles: " + ", ".join(ROLES)))
        calls = tuple(_call(call) for call in _list(data.get("tool_calls"), "tool_calls"))
        text = _content(data.get("content"), required=not calls)
        parts: tuple[Part, ...] = (TextPart(text=text), *calls) if text or not calls else calls
        return cls(role=role, parts=parts, tool_call_id=_optional(data, "tool_call_id"), name=_optional(data, "name"))

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's message shape."""
        data: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.tool_calls:
            data["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        for key in ("tool_call_id", "name"):
            if getattr(self, key) is not None:
                data[key] = getattr(self, key)
        return data


def _mapping(data: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise FormatError(
            f"a {what} is {type(data).__name__}, it must be an object", hint='write {"role": "user", "content": "..."} and the like'
        )
    return cast("Mapping[str, Any]", data)


def _optional(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise FormatError(f"message field {key!r} is {type(value).__name__}, it must be a string", hint="leave it out or give a string")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise FormatError(f"{what} is {type(value).__name__}, it must be a list", hint=f"write {what}: [...]")
    return cast("list[Any]", value)


def _content(value: Any, *, required: bool) -> str:
    """A string, or a list of text parts. Raises FormatError for pictures and the like, which a text model cannot read."""
    if isinstance(value, str):
        return value
    if value is None and not required:
        return ""
    if not isinstance(value, list):
        raise FormatError(f"message content is {type(value).__name__}, it must be text", hint="give a string or a list of text parts")
    texts: list[str] = []
    for part in cast("list[Any]", value):
        fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        if fields.get("type") not in ("text", "input_text", "output_text") or not isinstance(fields.get("text"), str):
            raise FormatError(f"content part of type {fields.get('type')!r} is not text", hint="Llama 3.1 reads text only")
        texts.append(fields["text"])
    return "".join(texts)


def _call(data: Any) -> ToolCall:
    fields = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    function: Any = fields.get("function")
    name: Any = cast("dict[str, Any]", function).get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise FormatError(
            "a tool call has no function name", hint='write {"type": "function", "function": {"name": ..., "arguments": ...}}'
        )
    function = cast("dict[str, Any]", function)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise FormatError(f"the arguments of {name!r} are not JSON: {error}", hint="arguments are a JSON object as text") from error
    if not isinstance(arguments, dict):
        raise FormatError(f"the arguments of {name!r} are {type(arguments).__name__}", hint="arguments are a JSON object")
    return ToolCall(name=name, arguments=cast("dict[str, Any]", arguments), id=_optional(fields, "id") or None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolDefinition:
    """A tool that the caller defines: its name, what it does and a JSON schema of its parameters (type object)."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "a").replace("-", "a").replace(".", "a").isalnum():
            raise FormatError(f"a tool is named {self.name!r}", hint="names are made of letters, digits, underscores, dots and hyphens")
        properties: Any = self.parameters.get("properties", {})
        if not isinstance(properties, Mapping):
            raise FormatError(
                f"the parameters of tool {self.name!r} have no properties", hint="parameters are a JSON schema of type object"
            )
        for name, schema in cast("Mapping[str, Any]", properties).items():
            if not isinstance(schema, Mapping):
                raise FormatError(
                    f"parameter {name!r} of tool {self.name!r} is {schema!r}", hint='write a schema: {"type": ..., "description": ...}'
                )
        required: Any = self.parameters.get("required", ())
        if not isinstance(required, (list, tuple)) or not all(isinstance(name, str) for name in cast("Sequence[Any]", required)):
            raise FormatError(f"`required` of tool {self.name!r} is {required!r}", hint="it is a list of parameter names")

    @property
    def properties(self) -> Mapping[str, Mapping[str, Any]]:
        """The parameters by name."""
        return cast("Mapping[str, Mapping[str, Any]]", self.parameters.get("properties", {}))

    @property
    def required(self) -> Sequence[str]:
        """The names of the parameters that must be given."""
        return cast("Sequence[str]", self.parameters.get("required", ()))

    @classmethod
    def from_dict(cls, data: Any) -> ToolDefinition:
        """Read OpenAI's {"type": "function", "function": {...}}, or its inner object. Raises FormatError."""
        data = _mapping(data, "tool definition")
        inner: Any = data.get("function", data)
        if not isinstance(inner, Mapping) or not isinstance(cast("Mapping[str, Any]", inner).get("name"), str):
            raise FormatError(
                "a tool definition has no name", hint='write {"type": "function", "function": {"name": ..., "parameters": {...}}}'
            )
        inner = cast("Mapping[str, Any]", inner)
        parameters: Any = inner.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise FormatError(
                f"the parameters of tool {inner['name']!r} are not an object", hint="parameters are a JSON schema of type object"
            )
        return cls(name=inner["name"], description=str(inner.get("description") or ""), parameters=cast("Mapping[str, Any]", parameters))

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's shape."""
        return {"type": "function", "function": {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}}


def as_messages(messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Messages, given as such or as dicts. Raises FormatError."""
    return [message if isinstance(message, Message) else Message.from_dict(message) for message in messages]


def as_tools(tools: Iterable[ToolDefinition | Mapping[str, Any]]) -> list[ToolDefinition]:
    """Tool definitions, given as such or as dicts. Raises FormatError."""
    return [tool if isinstance(tool, ToolDefinition) else ToolDefinition.from_dict(tool) for tool in tools]
