"""Python functions as tools: the parameters from the signature, what they mean from the docstring, the labels from the decorator.

A function that says nothing about itself counts as one that brings in strangers' text and acts outside (`config.UNKNOWN_TAINT`), so that it
is not run twice after a crash, and not beside private data without a person's yes.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints, overload

from herd.agents.config import UNKNOWN_TAINT, ApprovalMode
from herd.base.errors import FormatError
from herd.tools.errors import ToolArgumentsError
from herd.tools.tool import NAME, Taint, ToolContext, ToolLimits, ToolResult

_Function = TypeVar("_Function", bound=Callable[..., Any])
_LABELS = "__herd_tool__"
_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?):\s*$")
_PARAMETER = re.compile(r"^(\s+)\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


@overload
def tool(function: _Function, /) -> _Function: ...


@overload
def tool(
    *,
    name: str | None = None,
    reads_untrusted: bool = False,
    reads_private: bool = False,
    acts_outside: bool = False,
    approval: ApprovalMode = "auto",
    timeout_s: float = 30.0,
) -> Callable[[_Function], _Function]: ...


def tool(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    reads_untrusted: bool = False,
    reads_private: bool = False,
    acts_outside: bool = False,
    approval: ApprovalMode = "auto",
    timeout_s: float = 30.0,
) -> Any:
    """Say of a function what a call of it does, for the Rule of Two; it stays the function that it is.

    Args:
        function: the function, where the decorator stands without parentheses: it then has none of the labels.
        name: what the model calls it by; the function's own name if left out.
        reads_untrusted: it brings in text that a stranger may have written.
        reads_private: it reads what is not public.
        acts_outside: it changes or sends something.
        approval: whether it runs by itself (`auto`) or a person is asked first (`ask`).
        timeout_s: seconds that a call may take.
    """
    labels = Taint(reads_untrusted=reads_untrusted, reads_private=reads_private, acts_outside=acts_outside)
    said = {"name": name, "taint": labels, "approval": approval, "limits": ToolLimits(timeout_s=timeout_s)}

    def mark(marked: Any) -> Any:
        setattr(marked, _LABELS, said)
        return marked

    return mark if function is None else mark(function)


class FunctionTool:
    """A Python function, plain or async, as a `Tool`.

    Raises:
        FormatError: a name that is none, a parameter without a type, `*args` or `**kwargs`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        said: Mapping[str, Any] = getattr(function, _LABELS, {})
        self.function = function
        self.name: str = said.get("name") or getattr(function, "__name__", type(function).__name__)
        if not NAME.match(self.name):
            raise FormatError(f"the function's name {self.name!r} is no name of a tool", hint='name it: @herd.tool(name="...")')
        self.taint: Taint = said.get("taint", UNKNOWN_TAINT)
        self.approval: ApprovalMode = said.get("approval", "auto")
        self.limits: ToolLimits = said.get("limits", ToolLimits())
        self.description, meanings = read_docstring(inspect.getdoc(function) or "")
        self._context_name, self._model = _model_of(self.name, function, meanings)
        self.parameters: Mapping[str, Any] = _schema_of(self._model)

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Run it; a plain function on a thread."""
        from pydantic import ValidationError

        try:
            checked = self._model.model_validate(arguments)
        except ValidationError as error:
            told = "; ".join(f"{'/'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:5])
            raise ToolArgumentsError(
                f"the arguments of {self.name} do not fit: {told}", hint="call the tool again with arguments that fit"
            ) from None
        values = {name: getattr(checked, name) for name in type(checked).model_fields}
        if self._context_name is not None:
            values[self._context_name] = context
        if inspect.iscoroutinefunction(self.function):
            return as_result(await self.function(**values))
        given = await asyncio.to_thread(partial(self.function, **values))
        return as_result(await given if inspect.isawaitable(given) else given)


def as_result(value: Any) -> ToolResult:
    """What a function gave, as a result: a text as it is, anything else as JSON."""
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, str):
        return ToolResult(text=value)
    plain = (
        value.model_dump(mode="json")
        if hasattr(value, "model_dump")
        else asdict(value)
        if is_dataclass(value) and not isinstance(value, type)
        else value
    )
    return ToolResult(text="done" if plain is None else json.dumps(plain, ensure_ascii=False, default=str), data=plain)


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring in Google's style says of the function, and of each parameter."""
    description: list[str] = []
    meanings: dict[str, str] = {}
    section, last = "", ""
    for line in text.splitlines():
        if found := _SECTION.match(line):
            section = found.group(1)
        elif not section:
            description.append(line)
        elif section in ("Args", "Arguments", "Parameters"):
            if named := _PARAMETER.match(line):
                last = named.group(2)
                meanings[last] = named.group(3).strip()
            elif last and line.strip():
                meanings[last] = f"{meanings[last]} {line.strip()}".strip()
    return "\n".join(description).strip(), meanings


def _model_of(name: str, function: Callable[..., Any], meanings: Mapping[str, str]) -> tuple[str | None, Any]:
    """A pydantic model of the parameters, and the name of the one that takes the `ToolContext`, if any."""
    from pydantic import ConfigDict, Field, create_model

    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise FormatError(f"the types of {name} cannot be read: {error}", hint="import what its annotations name") from error
    context_name: str | None = None
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise FormatError(f"the parameter {parameter.name!r} of {name} has no name of its own", hint="write plain parameters")
        if parameter.name not in hints:
            raise FormatError(f"the parameter {parameter.name!r} of {name} has no type", hint=f"write {parameter.name}: str, or what it is")
        kind = hints[parameter.name]
        if kind is ToolContext:
            context_name = parameter.name
            continue
        notes = [note for note in get_args(kind)[1:] if isinstance(note, str)] if get_origin(kind) is Annotated else []
        meaning = notes[0] if notes else meanings.get(parameter.name)
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[parameter.name] = (kind, Field(default, description=meaning))
    return context_name, create_model(name.replace(".", "_"), __config__=ConfigDict(extra="forbid"), **fields)


def _schema_of(model: Any) -> dict[str, Any]:
    schema = dict(model.model_json_schema())
    for key in ("title", "description"):
        schema.pop(key, None)
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
    return schema
