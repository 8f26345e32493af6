"""The seam: arguments checked, limits held, failures told in words that hold nothing of the inside."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import FormatError, NotFoundError, UsageError
from herd.tools.arguments import check_arguments, check_schema
from herd.tools.errors import ToolArgumentsError, ToolError
from herd.tools.registry import Registry, ToolGroup, cut_text
from herd.tools.tool import Attachment, Taint, Tool, ToolContext, ToolLimits, ToolResult, is_plain_path

SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "times": {"type": "integer", "minimum": 1}},
    "required": ["text"],
    "additionalProperties": False,
}


class Echo:
    """A tool that does what a test tells it."""

    description = "Says it again."
    parameters: Mapping[str, Any] = SCHEMA
    taint = Taint()

    def __init__(self, name: str = "echo", *, error: BaseException | None = None, sleep_s: float = 0, **limits: Any) -> None:
        self.name, self.error, self.sleep_s = name, error, sleep_s
        self.limits = ToolLimits(**limits)
        self.seen: list[Mapping[str, Any]] = []
        self.attachments: tuple[Attachment, ...] = ()

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        self.seen.append(arguments)
        await asyncio.sleep(self.sleep_s)
        if self.error is not None:
            raise self.error
        return ToolResult(text=arguments["text"] * arguments.get("times", 1), attachments=self.attachments)


def registry(*tools: Echo) -> Registry:
    return Registry([ToolGroup(name="test", description="For tests", tools=tools)])


def call(tool: Echo, arguments: Any, name: str | None = None) -> ToolResult:
    return asyncio.run(registry(tool).call(name or tool.name, arguments))


def test_a_tool_is_called_with_its_arguments() -> None:
    result = call(Echo(), {"text": "ab", "times": 2})
    assert (result.ok, result.text, result.error_code) == (True, "abab", None)
    assert result.elapsed_s > 0
    assert isinstance(Echo(), Tool)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, '"text" is a required property'),
        ({"text": 3}, "text: 3 is not of type"),
        ({"text": "a", "times": 0}, "times: 0 is less than the minimum of 1"),
        ({"text": "a", "times": True}, "is not of type"),
        ({"text": "a", "other": 1}, "'other' was unexpected"),
        ("text", "no JSON object"),
        (None, "no JSON object"),
        ({"text": float("nan")}, "JSON has no word for"),
        ({"text": "\ud800"}, "lone surrogate"),
        ({"text": object()}, "hold a object"),
        ({1: "a"}, "key that is no string"),
    ],
)
def test_arguments_that_do_not_fit_are_told_and_never_reach_the_tool(arguments: Any, says: str) -> None:
    tool = Echo()
    result = call(tool, arguments)
    assert (result.ok, result.error_code) == (False, "tool_arguments")
    assert says in result.text
    assert tool.seen == []


def test_arguments_too_large_or_too_deep_are_refused() -> None:
    assert "bytes of at most 100" in call(Echo(max_argument_bytes=100), {"text": "a" * 200}).text
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    assert "nest deeper" in call(Echo(), {"text": deep}).text


def test_an_unknown_tool_is_answered_with_the_nearest() -> None:
    result = call(Echo(), {"text": "a"}, name="eco")
    assert (result.ok, result.error_code) == (False, "not_found")
    assert "echo" in result.text


def test_a_slow_tool_is_stopped_in_time() -> None:
    started = time.monotonic()
    result = call(Echo(sleep_s=30, timeout_s=0.05), {"text": "a"})
    assert (result.ok, result.error_code) == (False, "timeout")
    assert "0.05 seconds" in result.text and time.monotonic() - started < 10


def test_cancelling_a_call_cancels_the_tool() -> None:
    async def main() -> None:
        task = asyncio.create_task(registry(Echo(sleep_s=30)).call("echo", {"text": "a"}))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_failure_of_the_tool_tells_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    result = call(Echo(error=RuntimeError("secret-path /etc/herd 0x7fff")), {"text": "a"})
    assert (result.ok, result.error_code) == (False, "tool_failed")
    assert "secret-path" not in json.dumps(result.to_dict())
    assert "secret-path" in caplog.text
    told = call(Echo(error=ToolError("the page is empty", hint="try another")), {"text": "a"})
    assert (told.error_code, told.text) == ("tool", "the page is empty; try another")


def test_a_timeout_inside_the_tool_is_not_taken_for_the_limit() -> None:
    assert call(Echo(error=TimeoutError()), {"text": "a"}).error_code == "tool_failed"


def test_a_long_result_is_cut_and_says_so() -> None:
    result = call(Echo(max_text_chars=100), {"text": "ab", "times": 1000})
    assert result.truncated
    assert "1900 of 2000 characters left out" in result.text
    assert result.text.startswith("abab") and result.text.endswith("abab")


def test_attachments_over_the_limit_are_left_out_and_named() -> None:
    tool = Echo(max_attachment_bytes=10)
    tool.attachments = tuple(
        Attachment(name=name, mime_type="text/plain", data=b"x" * size) for name, size in (("a", 8), ("b", 8), ("c", 2))
    )
    result = call(tool, {"text": "ok"})
    assert [file.name for file in result.attachments] == ["a", "c"]
    assert result.truncated and "1 attachment(s) left out" in result.text and "b" in result.text


@given(st.text(max_size=300), st.integers(0, 100))
def test_cut_text_keeps_both_ends(text: str, limit: int) -> None:
    cut, was_cut = cut_text(text, limit)
    assert was_cut == (len(text) > limit)
    assert cut == text if not was_cut else cut.startswith(text[: limit * 3 // 4])


@given(st.text(max_size=40))
def test_a_plain_path_stays_below_its_folder(name: str) -> None:
    import posixpath

    if is_plain_path(name):
        assert posixpath.normpath(posixpath.join("/base", name)).startswith("/base/")
        assert not any(ord(character) < 32 for character in name)


@pytest.mark.parametrize("name", ["", "/a", "a/../b", "..", "a//b", "./a", "a\\b", "a\x1b[0m", "a\nb", "x" * 300, "\ud800"])
def test_names_that_are_no_plain_paths_are_refused(name: str) -> None:
    with pytest.raises(FormatError):
        Attachment(name=name, mime_type="text/plain", data=b"")


def test_groups_do_not_shadow_one_another() -> None:
    tools = registry(Echo())
    with pytest.raises(UsageError, match="'echo' of 'evil' is in 'test' already"):
        tools.register(ToolGroup(name="evil", description="", tools=(Echo(),)))
    with pytest.raises(UsageError, match="there is a tool group 'test' already"):
        tools.register(ToolGroup(name="test", description="", tools=()))
    assert tools.group_of("echo") == "test"
    tools.unregister("test")
    with pytest.raises(NotFoundError):
        tools.find("echo")
    assert tools.tools() == ()


@pytest.mark.parametrize("name", ["", "a b", "1a", "a;b", "x" * 200, "a\n"])
def test_a_tool_has_a_name_that_every_format_can_carry(name: str) -> None:
    with pytest.raises(FormatError):
        ToolGroup(name="g", description="", tools=(Echo(name),))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "object", "properties": {"a": {"type": "nonsense"}}},
        {"type": "object", "properties": {"a": {"pattern": "("}}},
        {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema"}}},
        {"type": "object", "properties": {"a": object()}},
        {"type": "object", "description": "x" * 300_000},
    ],
)
def test_a_schema_that_is_none_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        check_schema("t", schema)


def test_a_schema_cannot_make_us_fetch() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        with pytest.raises(FormatError):
            check_schema("t", {"type": "object", "properties": {"a": {"$ref": f"http://127.0.0.1:{listener.getsockname()[1]}/x"}}})
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_hostile_pattern_takes_no_time() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    started = time.monotonic()
    with pytest.raises(ToolArgumentsError):
        check_arguments("t", schema, {"a": "a" * 50_000 + "b"}, max_bytes=10**6)
    assert time.monotonic() - started < 30


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON_VALUES))
def test_what_passes_is_plain_json_and_nothing_else_is_raised(arguments: dict[str, Any]) -> None:
    try:
        checked = check_arguments("t", {"type": "object"}, arguments, max_bytes=10**6)
    except ToolArgumentsError:
        return
    assert json.loads(json.dumps(checked, allow_nan=False)) == arguments


def test_taints_add_up() -> None:
    taint = Taint(reads_untrusted=True) | Taint(acts_outside=True)
    assert taint == Taint(reads_untrusted=True, acts_outside=True)
    assert taint.count == 2
