"""From the description of a grammar to the text that llguidance compiles: one function, by kind."""

from __future__ import annotations

import json
from typing import Any

from herd.base.errors import FormatError
from herd.engine.grammar.foreign import lark_text, regex_body
from herd.engine.grammar.lark import LarkWriter, literal
from herd.engine.grammar.scalars import json_dialect
from herd.engine.grammar.schema import SchemaReader
from herd.engine.grammar.spec import Grammar, GrammarLimits
from herd.engine.grammar.tools import write_tools
from herd.engine.grammar.values import ValueWriter


def write_grammar(grammar: Grammar, limits: GrammarLimits, *, python_tag_id: int | None = None, forcing: bool = True) -> str:
    """The grammar in Lark.

    Args:
        grammar: what to write.
        limits: what it may cost.
        python_tag_id: the id before calls of built-in tools.
        forcing: force text without alternative in the tokenizer's own pieces; not done where patterns of the caller are in the grammar.

    Raises:
        FormatError: the schema contradicts itself, cannot be enforced, or is over a limit.
    """
    if len(grammar.text) > limits.max_chars:
        raise FormatError(
            f"the {grammar.kind.replace('_', ' ')} has {len(grammar.text):,} characters (limit {limits.max_chars:,})",
            hint="use a smaller one",
        )
    try:
        return _write(grammar, limits, python_tag_id, forcing)
    except RecursionError as error:
        raise FormatError("the schema nests too deeply to be read", hint="flatten it") from error


def _write(grammar: Grammar, limits: GrammarLimits, python_tag_id: int | None, forcing: bool) -> str:
    lark = LarkWriter()
    if grammar.kind == "lark":
        return lark_text(grammar.text, limits)
    if grammar.kind == "regex":
        return lark.text(regex_body(grammar.text, limits), forcing=False)
    if grammar.kind == "choice":
        return lark.text(lark.terminal(" | ".join(literal(option) for option in json.loads(grammar.text))), forcing=forcing)
    if grammar.kind == "tools":
        start, foreign = write_tools(grammar, lark, limits, python_tag_id)
        return lark.text(start, forcing=forcing and not foreign)
    return _value(grammar, lark, limits, forcing)


def _value(grammar: Grammar, lark: LarkWriter, limits: GrammarLimits, forcing: bool) -> str:
    schema: Any = {"type": "object"} if grammar.kind == "json_object" else json.loads(grammar.text)
    writer = ValueWriter(SchemaReader(schema, limits), lark, json_dialect(grammar.whitespace), limits, max_string=grammar.max_string)
    start = writer.value(schema)
    if start is None:
        raise FormatError("no value satisfies the schema", hint="it contradicts itself, or demands values nested without end")
    return lark.text(start, forcing=forcing and not writer.scalars.foreign)
