"""Strategies of tool calls whose strings look like everything that could end them: quotes, brackets, tags, special tokens."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from herd.text.messages import ToolCall

PLAIN = ("", " ", "town", 'it\'s "fine"', '"', "'", "\\", "\\n", "\n", "\r\n", "\t", "\x00", "\u2028", "é", "🦙", "ลามะ")
CLOSING = ("{", "}", '{"', '"}', "[", "]", "(", ")", '")', '"; "', '", "', "</function>", "<function=f>{}", "<function", "> </", "#")
SPELLED = ("<|eot_id|>", "<|python_tag|>", "<|eom_id|>", 'brave_search.call(query="x")', "None", "null", "True", "1e5", "$", "=", "a=1")
words = st.sampled_from([*PLAIN, *CLOSING, *SPELLED]) | st.text(max_size=6)
scalars = words | st.sampled_from([None, True, False, 0, -1, 10**15, 0.5, -1.5e-7, 1e300]) | st.integers(-(10**9), 10**9)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(words, scalars, max_size=2)

PYTHON_NAMES = ("f", "get_weather", "x1", "größe", "_", "town", "n", "name", "query", "code", "parameters", "self")


def calls_of(names: st.SearchStrategy[str], keys: st.SearchStrategy[str]) -> st.SearchStrategy[ToolCall]:
    """Calls with these names, and arguments with these keys."""

    def made(name: str, arguments: dict[str, Any]) -> ToolCall:
        return ToolCall(name=name, arguments=arguments)

    return st.builds(made, names, st.dictionaries(keys, values, max_size=3))


python_calls = calls_of(st.sampled_from(["f", "get_weather", "music.play", "größe", "_"]), st.sampled_from(PYTHON_NAMES))
"""Calls that Python can spell."""
json_calls = calls_of(st.sampled_from(["f", "get_weather", "get-weather", "music.play", "größe 2", '"', "f>"]), words)
"""Calls that JSON can spell: names and keys are any text."""
tag_calls = calls_of(st.sampled_from(["f", "get_weather", "get-weather", "music.play", "größe", "a b"]), words)
"""Calls whose names can stand in a <function=...> tag."""
