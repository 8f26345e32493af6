"""What an answer may look like: the description of a grammar, before any tokenizer. Plain texts and dicts, never messages.

A `Grammar` is hashable and small: its schema, pattern or tool list is kept as JSON text in the caller's order, since properties are written
in that order. `compiler` makes it a `CompiledGrammar`, `state` holds one sequence's place in it. Every grammar made here
makes progress: white space, digits and nesting are bounded, strings where asked, and from every place an end can be reached.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from herd.base.errors import FormatError, did_you_mean

GrammarKind = Literal["json_schema", "json_object", "regex", "lark", "choice", "tools"]
KINDS: tuple[GrammarKind, ...] = ("json_schema", "json_object", "regex", "lark", "choice", "tools")
ToolStyle = Literal["json", "function", "python_list"]
STYLES: tuple[ToolStyle, ...] = ("json", "function", "python_list")
ToolMode = Literal["auto", "required"]
BUILTIN_NAMES = ("brave_search", "wolfram_alpha", "photogen", "code_interpreter")
"""Tools that Llama 3.1 calls after its python tag; the last one takes raw code."""
CODE_INTERPRETER = "code_interpreter"
MAX_WHITESPACE = 16
MAX_CALLS = 64
MAX_NAME = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class GrammarLimits:
    """What a grammar may cost. What goes beyond is refused with a FormatError; nothing is cut.

    Attributes:
        max_chars: characters of a schema, a choice or a list of tools as JSON.
        max_foreign_chars: characters of a regex, a `pattern` or a Lark grammar, which the library reads itself.
        max_nodes: subschemas visited, references followed and options multiplied out.
        max_depth: brackets within brackets that an answer may open (the parser of calls reads 64).
        max_digits: digits of a number's whole part and of its fraction, where the schema does not bound them.
        max_space_run: white space characters in a row, anywhere in an answer, while anything else could follow.
        compile_s: seconds a caller waits for a grammar.
        max_lexer_states: states that the text automaton of one grammar may grow, about 0.7 kB each; then it begins anew.
        step_items: parser items that one mask may cost.
        cache_entries: compiled grammars kept.
        cache_bytes: their estimated size together, without what their automata grow to.
    """

    max_chars: int = 2**18
    max_foreign_chars: int = 2**15
    max_nodes: int = 20_000
    max_depth: int = 32
    max_digits: int = 15
    max_space_run: int = 128
    compile_s: float = 10.0
    max_lexer_states: int = 16_000
    step_items: int = 20_000
    cache_entries: int = 64
    cache_bytes: int = 64 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """One grammar. Made by the class methods below, which check what they are given.

    Attributes:
        kind: what `text` is.
        text: the schema, the options or the tools as JSON; the pattern; the Lark grammar. Empty for `json_object`.
        whitespace: white space characters allowed at each place where JSON allows them; 0 is compact.
        max_string: characters of a string at most, where the schema says no less.
        style: how calls of the caller's tools are written.
        mode: `auto` is free text or calls, `required` is calls alone.
        name: the one tool that has to be called.
        builtin: Llama's own tools that may be called, `code_interpreter` among them.
        max_calls: calls in one answer; 1 is no parallel calls.
    """

    kind: GrammarKind
    text: str = ""
    whitespace: int = 0
    max_string: int | None = None
    style: ToolStyle = "json"
    mode: ToolMode = "auto"
    name: str | None = None
    builtin: tuple[str, ...] = ()
    max_calls: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FormatError(
                f"unknown kind of grammar {self.kind!r}", hint=did_you_mean(str(self.kind), KINDS, otherwise=", ".join(KINDS))
            )
        if self.style not in STYLES:
            raise FormatError(f"unknown style {self.style!r} of tool calls", hint="styles: " + ", ".join(STYLES))
        if self.mode not in ("auto", "required"):
            raise FormatError(f"unknown mode {self.mode!r} of tool calls", hint="modes: auto, required; give `name` for one certain tool")
        _check_range("whitespace", self.whitespace, 0, MAX_WHITESPACE)
        _check_range("max_calls", self.max_calls, 1, MAX_CALLS)
        if self.max_string is not None:
            _check_range("max_string", self.max_string, 0, 2**20)
        unknown = [name for name in self.builtin if name not in BUILTIN_NAMES]
        if unknown:
            raise FormatError(f"{unknown[0]!r} is no built-in tool", hint="built-in tools: " + ", ".join(BUILTIN_NAMES))

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool, *, whitespace: int = 0, max_string: int | None = None) -> Grammar:
        """JSON that a JSON schema accepts. Objects with properties hold no others unless `additionalProperties` says so."""
        return cls(kind="json_schema", text=_json(schema, "schema"), whitespace=whitespace, max_string=max_string)

    @classmethod
    def json_object(cls, *, whitespace: int = 0, max_string: int | None = None) -> Grammar:
        """Any JSON object."""
        return cls(kind="json_object", whitespace=whitespace, max_string=max_string)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches from end to end: Rust's syntax, without look-around and back references."""
        return cls(kind="regex", text=_text(pattern, "pattern"))

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Text of a context-free grammar in Lark's syntax, whose first rule is `start`; or in llama.cpp's (`root ::= ...`)."""
        return cls(kind="lark", text=_text(text, "grammar"))

    @classmethod
    def choice(cls, options: Sequence[str]) -> Grammar:
        """One of some texts."""
        if (
            isinstance(options, str)
            or not options
            or not all(isinstance(option, str) and option for option in cast("Sequence[Any]", options))
        ):
            raise FormatError(f"the options are {options!r:.200}", hint="give a list of texts, none of them empty")
        return cls(kind="choice", text=_json(list(options), "list of options"))

    @classmethod
    def tools(
        cls,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        style: ToolStyle = "json",
        mode: ToolMode = "auto",
        name: str | None = None,
        builtin: Sequence[str] = (),
        max_calls: int = 1,
        max_string: int | None = None,
    ) -> Grammar:
        """Calls of tools as Llama 3.1 writes them.

        Args:
            tools: each a dict with `name` and `parameters`, a JSON schema; other keys are left alone.
            style: `json`, `function` (<function=NAME>{...}</function>) or `python_list` ([NAME(key=value)]).
            mode: `auto`: free text, or calls; text never reads as a call. `required`: calls.
            name: this tool has to be called, whatever the mode says.
            builtin: Llama's own tools on offer, called after the python tag.
            max_calls: 1 for a single call; more for parallel ones, which the built-in format cannot carry.
            max_string: characters of a string argument at most.
        """
        kept = [{"name": _tool_name(tool), "parameters": tool.get("parameters") or {"type": "object", "properties": {}}} for tool in tools]
        names = [tool["name"] for tool in kept]
        twice = next((known for index, known in enumerate(names) if known in names[:index]), None)
        if twice is not None:
            raise FormatError(f"two tools are named {twice!r}", hint="a call names its tool: give each its own name")
        if not names and not builtin:
            raise FormatError("there are no tools to call", hint="give tools or built-in tools, or no grammar at all")
        if name is not None and name not in (*names, *builtin):
            raise FormatError(
                f"there is no tool {name!r} to call",
                hint=did_you_mean(name, (*names, *builtin), otherwise="tools: " + ", ".join((*names, *builtin))),
            )
        return cls(
            kind="tools",
            text=_json(kept, "list of tools"),
            style=style,
            mode="required" if name is not None else mode,
            name=name,
            builtin=tuple(builtin),
            max_calls=max_calls,
            max_string=max_string,
        )


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if isinstance(cast("object", value), bool) or not isinstance(cast("object", value), int) or not low <= value <= high:
        raise FormatError(f"{name} is {value!r}, it must be {low} to {high:,}", hint=f"set {name} within that range")


def _json(value: Any, what: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        return text
    except (TypeError, ValueError, RecursionError) as error:  # a lone surrogate is a ValueError too: no answer can hold it
        raise FormatError(
            f"the {what} is not JSON: {str(error)[:200]}", hint="use objects, lists, strings, finite numbers, true, false, null"
        ) from error


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise FormatError(f"the {what} is {value!r:.100}", hint="give a text that is not empty")
    return value.encode("utf-8", "replace").decode()


def _tool_name(tool: object) -> str:
    name = cast("Mapping[str, Any]", tool).get("name") if isinstance(tool, Mapping) else None
    if not isinstance(name, str) or len(name) > MAX_NAME or not name.replace("_", "a").replace("-", "a").replace(".", "a").isalnum():
        raise FormatError(
            f"a tool is named {name!r:.200}", hint=f"names are at most {MAX_NAME} letters, digits, underscores, dots and hyphens"
        )
    return name
