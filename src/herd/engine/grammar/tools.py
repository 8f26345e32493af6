"""Write calls of tools as Llama 3.1 and 3.2 write them, alone or as the alternative to free text. Source: Meta's prompt format documents.

    json         {"type": "function", "name": NAME, "parameters": {...}}, the type optional, several joined by "; "
    function     <function=NAME>{...}</function>, several in a row
    python_list  [NAME(key=value, ...), ...]
    built-in     python tag, then brave_search.call(query="...") or raw code for the code interpreter

The parser of calls reads all of these wherever they may stand, whichever was asked for; so free text keeps clear of whatever would read as
a call, and code of whatever would read as another tool's. A call is then what the model was let to write, and text is text.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import Any, cast

from herd.base.errors import FormatError
from herd.engine.grammar.keywords import Flat, implied_types
from herd.engine.grammar.lark import LarkWriter, either, literal, maybe, repeated
from herd.engine.grammar.scalars import JSON_SPACED, PYTHON
from herd.engine.grammar.schema import SchemaReader
from herd.engine.grammar.spec import BUILTIN_NAMES, CODE_INTERPRETER, Grammar, GrammarLimits
from herd.engine.grammar.values import ValueWriter

_SPACE = r"[\s\x1c-\x1f]*"
_NAMED_CALL = rf"({'|'.join(BUILTIN_NAMES)})\.call\("
_CALL_LIKE = rf"/{_SPACE}(\{{{_SPACE}\"|\[{_SPACE}[A-Za-z_][\w.]*{_SPACE}\(|\[{_SPACE}\{{{_SPACE}\"|{_NAMED_CALL})(?s:.*)/"
"""Texts whose beginning the parser holds back, because a call may begin so."""
_TAG = "<function="
_QUERY = r'"([^\"\\\x00-\x1F\x7F]|\\[\"\\bfnrt]|\\u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))+"'

Tool = Mapping[str, Any]


def write_tools(grammar: Grammar, lark: LarkWriter, limits: GrammarLimits, python_tag_id: int | None) -> tuple[str, bool]:
    """The body of the `start` rule, and whether patterns of the caller are in it."""
    return _ToolWriter(grammar, lark, limits, python_tag_id).start()


class _ToolWriter:
    def __init__(self, grammar: Grammar, lark: LarkWriter, limits: GrammarLimits, python_tag_id: int | None) -> None:
        self._grammar, self._lark, self._limits = grammar, lark, limits
        self._tag = None if python_tag_id is None else f"<[{python_tag_id}]>"
        tools: list[Tool] = json.loads(grammar.text)
        self._tools = [tool for tool in tools if grammar.name in (None, tool["name"])]
        self._builtin = [name for name in grammar.builtin if grammar.name in (None, name)]
        self._foreign = False

    def start(self) -> tuple[str, bool]:
        free = self._grammar.mode == "auto"
        calls = self._custom_calls(free) if self._tools else []
        if self._builtin or (self._tools and self._grammar.style == "json" and self._tag is not None):
            calls.append(self._tagged(free))
        start = either([*([maybe(self._text())] if free else []), *calls])
        return start or "", self._foreign

    def _text(self) -> str:
        """Free text that the parser takes as text. In the function style its tag ends the text by itself, in others it may not occur."""
        clear = f"/(?s:.*)/ & ~{_CALL_LIKE}"
        return self._lark.terminal(clear if self._grammar.style == "function" and self._tools else rf"{clear} & ~/(?s:.*){_TAG}(?s:.*)/")

    def _custom_calls(self, free: bool) -> list[str]:
        if self._grammar.style == "json":
            return [self._json_calls()]
        if self._grammar.style == "python_list":
            return [self._python_calls()]
        return [self._function_calls(free)]

    def _several(self, first: str, later: str) -> str:
        """One call, and as many more as are allowed."""
        more = self._grammar.max_calls - 1
        return f"{first} " + repeated(later, 0, more) if more else first

    def _json_calls(self) -> str:
        heads = [
            (rf"\{{(\"type\": ?\"function\", ?)?\"name\": ?{_quoted(tool)}, ?\"parameters\": ?", self._arguments(tool))
            for tool in self._tools
        ]
        first = either(f'{self._lark.pattern(head)} {body} "}}"' for head, body in heads) or ""
        later = either(f'{self._lark.pattern("; ?" + head)} {body} "}}"' for head, body in heads) or ""
        return self._several(self._lark.rule(first), self._lark.rule(later))

    def _arguments(self, tool: Tool) -> str:
        """The arguments of a call as a JSON object."""
        reader = SchemaReader(tool["parameters"], self._limits, what=f"the parameters of {tool['name']}")
        writer = ValueWriter(reader, self._lark, JSON_SPACED, self._limits, max_string=self._grammar.max_string)
        body = either(writer.object(flat, 1) for flat in self._objects(tool, reader))
        self._foreign |= writer.scalars.foreign
        return self._lark.rule(self._needed(tool, body))

    def _objects(self, tool: Tool, reader: SchemaReader) -> list[Flat]:
        """The flat schemas of a tool's parameters that are objects."""
        flats = [flat for flat in reader.flatten(tool["parameters"]) if "object" in (implied_types(flat) or ["object"])]
        if any("enum" in flat for flat in flats):
            raise reader.refuse("they are fixed values", "write a schema of type object with properties")
        if tool["name"] in BUILTIN_NAMES[:-1] and any("query" not in flat.get("required", []) for flat in flats):
            raise reader.refuse("a tool of this name takes a query", "require the parameter `query`, or rename the tool")
        return flats

    def _needed(self, tool: Tool, body: str | None) -> str:
        if body is None:
            raise FormatError(f"no arguments satisfy the parameters of {tool['name']}", hint="its schema contradicts itself or never ends")
        return body

    def _function_calls(self, free: bool) -> str:
        bodies = [f"{literal(tool['name'] + '>')} {self._arguments(tool)} {literal('</function>')}" for tool in self._tools]
        body = self._lark.rule(either(bodies) or "")
        calls = self._several(body, f"{literal(_TAG)} {body}")
        if not free:
            return f"{literal(_TAG)} {calls}"
        return f"{self._lark.lazy(rf'/(?s:.*){_TAG}/ & ~{_CALL_LIKE}')} {calls}"

    def _python_calls(self) -> str:
        names = [(tool["name"], self._keywords(tool)) for tool in self._tools]
        first = either(f"{literal(f'[{name}(')} {body}" for name, body in names) or ""
        later = either(f"{self._lark.terminal(f'/, ?/ {literal(name + chr(40))}')} {body}" for name, body in names) or ""
        return f'{self._several(self._lark.rule(first), self._lark.rule(later))} "]"'

    def _keywords(self, tool: Tool) -> str:
        """The arguments of a call as `key=value, ...)`, the closing parenthesis with them."""
        reader = SchemaReader(tool["parameters"], self._limits, what=f"the parameters of {tool['name']}")
        _check_python_name(tool["name"], f"the tool name {tool['name']!r}", dotted=True)
        writer = ValueWriter(reader, self._lark, PYTHON, self._limits, max_string=self._grammar.max_string)
        flats = self._objects(tool, reader)
        for flat in flats:
            for name in [*flat.get("properties", {}), *flat.get("required", [])]:
                _check_python_name(name, f"the parameter {name!r} of {tool['name']}")
            if flat.get("additionalProperties", False) is not False or flat.get("patternProperties"):
                raise reader.refuse("a Python call has no place for free names", "set additionalProperties to false, or use the json style")
        closed = [{**flat, "additionalProperties": False} for flat in flats]
        bodies = [writer.fields(flat, 2, lambda name: literal(f"{name}=")) for flat in closed]
        self._foreign |= writer.scalars.foreign
        return self._lark.rule(f'{self._needed(tool, either(bodies))} ")"')

    def _tagged(self, free: bool) -> str:
        """The python tag and what may follow it."""
        if self._tag is None:
            raise FormatError(
                "this tokenizer has no python tag, so built-in tools cannot be called", hint="give python_tag_id, or no built-in tools"
            )
        bodies = [
            f'{literal(f"{name}.call(query=")} {self._lark.pattern(_QUERY)} ")"' for name in self._builtin if name != CODE_INTERPRETER
        ]
        if CODE_INTERPRETER in self._builtin:
            bodies.append(self._code())
        if self._tools and self._grammar.style == "json":
            bodies.append(self._json_calls())
        before = f"{maybe(self._text())} " if free else ""
        return f"{before}{self._tag} {self._lark.rule(either(bodies) or '')}"

    def _code(self) -> str:
        """Code for the interpreter: any text that the parser takes for no other call."""
        return self._lark.terminal(rf"/(?s:.+)/ & ~/{_SPACE}([\[{{]|{_TAG}|{_NAMED_CALL})(?s:.*)/")


def _quoted(tool: Tool) -> str:
    return '\\"' + cast("str", tool["name"]).replace(".", "\\.").replace("-", "\\-") + '\\"'


def _check_python_name(name: str, what: str, *, dotted: bool = False) -> None:
    parts: Sequence[str] = name.split(".") if dotted else [name]
    if not (name[:1].isascii() or not dotted) or not all(
        part.isidentifier() and not iskeyword(part) and unicodedata.normalize("NFKC", part) == part for part in parts
    ):
        raise FormatError(f"{what} is not a Python name", hint="rename it, or use the json style of tool calls")
