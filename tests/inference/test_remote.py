"""Remote servers that behave badly, and how they are asked: played by a transport, so that every failure comes when it is wanted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import ConfigError, ContextOverflowError, HerdError, NotFoundError, UsageError
from herd.inference.params import SamplingParams
from herd.inference.port import Caller, ChatRequest, CompletionRequest, Event, Finished, Part
from herd.inference.providers import ProviderConfig, RemoteModelConfig
from herd.inference.remote import AsyncRemoteModel, RemoteModel
from herd.inference.remote_errors import RemoteBusyError, RemoteDownError, RemoteError
from herd.inference.remote_reader import MAX_LINE, RemoteReader
from herd.text.messages import Message, ToolCall, ToolDefinition
from herd.text.reply import CallDelta, CallDone, TextDelta

HELLO = ChatRequest(messages=(Message.user("Hello"),))
Answer = Callable[[httpx.Request], httpx.Response]


def provider(**fields: Any) -> ProviderConfig:
    return ProviderConfig(**{"name": "lab", "base_url": "http://lab.test/v1", "models": (RemoteModelConfig(id="m"),), **fields})


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta or {}, "finish_reason": finish}], **more}


def stream(*chunks: dict[str, Any], done: bool = True) -> httpx.Response:
    text = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks) + ("data: [DONE]\n\n" if done else "")
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})


def events(answer: Answer | httpx.Response, asked: ChatRequest | CompletionRequest = HELLO, **fields: Any) -> list[Event]:
    """All events over a server that is played."""
    play = answer if callable(answer) else lambda _: answer
    client = httpx.Client(transport=httpx.MockTransport(play))
    with RemoteModel(provider(**fields), "m", client=client) as model:
        return list(model.chat(asked) if isinstance(asked, ChatRequest) else model.complete(asked))


def body_of(asked: ChatRequest | CompletionRequest, **fields: Any) -> dict[str, Any]:
    """What the server is sent."""
    seen: list[dict[str, Any]] = []

    def play(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return stream(chunk({"content": "ok"}, "stop"), {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})

    events(play, asked, **fields)
    return seen[0]


def last(found: list[Event]) -> Finished:
    assert isinstance(found[-1], Finished)
    return found[-1]


def test_a_plain_answer_with_its_usage_after_the_end() -> None:
    used = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
    found = events(
        stream(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Hi"}),
            chunk({"content": "!"}, "stop"),
            {"choices": [], "usage": used},
        )
    )
    assert found[:-1] == [TextDelta(text="Hi"), TextDelta(text="!")]
    told = last(found)
    assert (told.text, told.reason, told.usage.prompt_tokens, told.usage.completion_tokens, told.usage.cached_tokens) == (
        "Hi!",
        "stop",
        7,
        2,
        3,
    )


@pytest.mark.parametrize(
    ("told", "reason"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos", "stop"), ("function_call", "tool_calls")],
)
def test_reasons_are_the_ports(told: str, reason: str) -> None:
    assert last(events(stream(chunk({"content": "x"}, told)))).reason == reason


def test_calls_are_told_as_they_are_written_and_again_when_whole() -> None:
    def call(index: int, arguments: str, **head: Any) -> dict[str, Any]:
        name = {"name": head.pop("name")} if "name" in head else {}
        return chunk({"tool_calls": [{"index": index, **head, "function": {**name, "arguments": arguments}}]})

    found = events(
        stream(
            call(0, "", id="call_a", type="function", name="f"), call(0, '{"x":'), call(0, " 1}"),
            call(1, "{}", id="call_b", type="function", name="g"), chunk(None, "tool_calls"),
        )
    )  # fmt: skip
    written = "".join(event.text for event in found if isinstance(event, CallDelta))
    assert written == '{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}'
    calls = [event.call for event in found if isinstance(event, CallDone)]
    assert calls == [ToolCall(name="f", arguments={"x": 1}, id="call_a"), ToolCall(name="g", arguments={}, id="call_b")]
    assert last(found).message.tool_calls == tuple(calls) and last(found).reason == "tool_calls"


def test_two_calls_at_one_place_are_two_calls() -> None:
    pieces = [{"index": 0, "id": f"call_{name}", "function": {"name": name, "arguments": "{}"}} for name in ("f", "g")]
    found = events(stream(*(chunk({"tool_calls": [piece]}) for piece in pieces), chunk(None, "stop")))
    assert [call.name for call in last(found).message.tool_calls] == ["f", "g"] and last(found).reason == "tool_calls"


@pytest.mark.parametrize("arguments", ['{"x": ', "[1]", "x", "\x00"])
def test_a_call_whose_arguments_are_no_object_is_text(arguments: str) -> None:
    piece = {"index": 0, "id": "a", "function": {"name": "f", "arguments": arguments}}
    found = events(stream(chunk({"tool_calls": [piece]}), chunk(None, "length")))
    told = last(found)
    assert told.message.tool_calls == () and told.reason == "length"
    assert told.text == '{"name": "f", "parameters": ' + arguments
    assert "".join(event.text for event in found if isinstance(event, TextDelta)) == told.text


@pytest.mark.parametrize(
    ("status", "body", "kind", "match"),
    [
        (400, {"error": {"message": "n is too large", "code": "x"}}, UsageError, "refused the request.*n is too large"),
        (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, ContextOverflowError, "too long"),
        (401, {"error": {"message": "bad key sk-secret"}}, RemoteError, "refused the key"),
        (404, {"detail": "no such model"}, NotFoundError, "no such model"),
        (302, {}, RemoteError, "not followed"),
        (429, {"error": "slow down"}, RemoteBusyError, "slow down"),
        (500, {"error": {"message": "boom"}}, RemoteError, r"failed \(500\): boom"),
        (503, None, RemoteDownError, "not ready"),
    ],
)
def test_statuses_are_the_ports_errors(status: int, body: Any, kind: type[HerdError], match: str) -> None:
    headers = {"retry-after": "7", "location": "http://elsewhere.test/"}
    answer = httpx.Response(status, content=b"<html>" if body is None else json.dumps(body), headers=headers)
    with pytest.raises(kind, match=match) as caught:
        events(answer)
    assert caught.value.hint and "sk-secret" not in str(caught.value)
    if isinstance(caught.value, RemoteBusyError):
        assert caught.value.retry_after_s == 7


def test_an_error_within_the_stream_ends_it() -> None:
    with pytest.raises(RemoteError, match="the engine died"):
        events(stream(chunk({"content": "x"}), {"error": {"message": "the engine died"}}))


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    with pytest.raises(RemoteError, match="1 of 1 answers have no end"):
        events(stream(chunk({"content": "half"}), done=False))


def test_an_end_without_done_is_an_end() -> None:
    assert last(events(stream(chunk({"content": "x"}, "stop"), done=False))).text == "x"


@pytest.mark.parametrize(
    "line", ["data: {", "data: []", 'data: {"choices": 1}', 'data: {"choices": [1]}', 'data: {"choices": [{"delta": 5}]}']
)
def test_what_is_none_of_the_format_is_told_as_such(line: str) -> None:
    with pytest.raises(RemoteError, match="sent"):
        events(httpx.Response(200, text=line + "\n\n"))


def test_an_event_without_an_end_is_not_kept() -> None:
    with pytest.raises(RemoteError, match="an event of over"):
        events(httpx.Response(200, content=b"data: " + b"x" * (MAX_LINE + 100)))


KEYS = ("choices", "delta", "content", "tool_calls", "index", "function", "usage", "finish_reason", "logprobs")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(data=JSON)
def test_no_chunk_raises_anything_else_than_a_herd_error(data: Any) -> None:
    reader = RemoteReader("lab", 2)
    try:
        parts: list[Part] = reader.line(b"data: " + json.dumps(data).encode())
    except HerdError:
        return
    assert all(0 <= part.index < 2 for part in parts)


def test_connecting_is_tried_again_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.inference.remote_requests.FIRST_PAUSE_S", 0.0)
    tries: list[str] = []

    def refuses(request: httpx.Request) -> httpx.Response:
        tries.append("connect")
        if len(tries) < 3:
            raise httpx.ConnectError("no route", request=request)
        return stream(chunk({"content": "x"}, "stop"))

    assert last(events(refuses)).text == "x" and len(tries) == 3
    with pytest.raises(RemoteDownError, match="cannot be reached"):
        tries.clear()
        events(refuses, connect_retries=1)
    assert len(tries) == 2

    def breaks(request: httpx.Request) -> httpx.Response:
        tries.append("sent")
        raise httpx.ReadTimeout("late", request=request)

    tries.clear()
    with pytest.raises(RemoteDownError, match="did not answer within 120 s"):
        events(breaks)
    assert tries == ["sent"], "a request that may have been answered is not sent twice"


def test_the_key_comes_from_its_variable_and_stands_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def play(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return stream(chunk({"content": "x"}, "stop"))

    monkeypatch.setenv("LAB_KEY", "sk-canary")
    events(play, api_key_env="LAB_KEY")
    events(play)
    assert seen == ["Bearer sk-canary", None]
    monkeypatch.delenv("LAB_KEY")
    with pytest.raises(ConfigError, match="wants the variable LAB_KEY, which is not set"):
        events(play, api_key_env="LAB_KEY")
    assert "sk-canary" not in repr(provider(api_key_env="LAB_KEY"))


def test_sampling_is_said_in_full_and_what_is_omitted_is_not() -> None:
    asked = ChatRequest(messages=HELLO.messages, params=SamplingParams(max_tokens=5, seed=3, stop=("x",)))
    body = body_of(asked)
    assert {name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed", "stop")} == {
        "temperature": 0.6,
        "top_p": 0.9,
        "max_tokens": 5,
        "seed": 3,
        "stop": ["x"],
    }
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True} and "n" not in body
    body = body_of(asked, omit=("temperature", "top_p", "stream_options"), max_tokens_field="max_completion_tokens")
    assert not {"temperature", "top_p", "stream_options", "max_tokens"} & set(body) and body["max_completion_tokens"] == 5


def test_calls_without_ids_are_given_matching_ones() -> None:
    calls = [ToolCall(name="f", arguments={}), ToolCall(name="g", arguments={"x": 1})]
    asked = ChatRequest(
        messages=(*HELLO.messages, Message.assistant("", calls, ends_turn=False), Message.tool("1", name="f"), Message.tool("2", name="g"))
    )
    messages = body_of(asked)["messages"]
    ids = [call["id"] for call in messages[1]["tool_calls"]]
    assert len(set(ids)) == 2 and [message["tool_call_id"] for message in messages[2:]] == ids
    assert messages[1]["content"] is None and all("name" not in message for message in messages[2:])


def test_tools_and_choices_are_openais() -> None:
    tool = ToolDefinition(name="f")
    body = body_of(ChatRequest(messages=HELLO.messages, tools=(tool,), tool_name="f", parallel_tool_calls=False))
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}} and body["parallel_tool_calls"] is False
    assert body["tools"] == [tool.to_dict()]


def test_who_asks_is_nobodys_business_but_tenants_are_kept_apart() -> None:
    asked = ChatRequest(messages=HELLO.messages, caller=Caller(tenant="anna", salt=b"anna\0"))
    assert "cache_salt" not in body_of(asked)
    salt = body_of(asked, dialect="vllm")["cache_salt"]
    assert "anna" not in json.dumps(body_of(asked, dialect="vllm")) and len(salt) == 64


def test_vectors_come_in_the_order_of_the_texts() -> None:
    rows = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, json={"data": rows, "usage": {"prompt_tokens": 4}})))
    with RemoteModel(provider(), "m", client=client) as model:
        told = model.embed(["a", "b"])
        assert told.vectors == ((1.0,), (2.0,)) and told.num_tokens == 4
        with pytest.raises(RemoteError, match="2 vectors for 3 texts"):
            model.embed(["a", "b", "c"])


def test_closing_an_async_stream_lets_go_of_its_connection() -> None:
    left: list[str] = []

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                yield b"data: " + json.dumps(chunk({"content": "x"})).encode() + b"\n\n"
                await asyncio.sleep(0)

        async def aclose(self) -> None:
            left.append("closed")

    async def main() -> int:
        client = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless())))
        model = AsyncRemoteModel(provider(), "m", client=client)
        answer = await model.chat(HELLO)
        count = 0
        async for parts in answer:
            count += len(parts)
            if count > 1000:
                answer.close()
        await asyncio.sleep(0.05)
        await client.aclose()
        return count

    assert asyncio.run(main()) > 1000 and left == ["closed"]


def test_an_async_refusal_is_raised_before_anything_is_answered() -> None:
    async def main() -> None:
        client = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(429, headers={"retry-after": "2"})))
        model = AsyncRemoteModel(provider(), "m", client=client)
        with pytest.raises(RemoteBusyError):
            await model.chat(HELLO)
        await client.aclose()

    asyncio.run(main())


TOML = """
model = "cria"

[[providers]]
name = "lab"
base_url = "https://llm.example.org/v1"
api_key_env = "LAB_API_KEY"
models = ["plain"]

[[providers]]
name = "other"
base_url = "http://127.0.0.1:8000/v1"
dialect = "vllm"
timeout_s = 5

[[providers.models]]
id = "meta-llama/Llama-3.1-70B-Instruct"
aliases = ["big"]
context = 131072
"""


@pytest.fixture
def toml(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], tuple[ProviderConfig, ...]]]:
    from herd.inference.providers import load_providers

    def read(text: str) -> tuple[ProviderConfig, ...]:
        (tmp_path / "herd.toml").write_text(text)
        return load_providers()

    monkeypatch.chdir(tmp_path)
    yield read


def test_providers_are_read_beside_the_settings(toml: Callable[[str], tuple[ProviderConfig, ...]]) -> None:
    from herd.base import settings as herd_settings

    lab, other = toml(TOML)
    assert (lab.name, lab.models, lab.dialect) == ("lab", (RemoteModelConfig(id="plain"),), "openai")
    assert other.timeout_s == 5.0 and other.models[0].aliases == ("big",) and other.models[0].context == 131072
    assert herd_settings.value("model") == "cria"


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('name = "lab"', 'name = "herd"', "the provider's name 'herd' is none"),
        ('name = "other"', 'name = "lab"', "two providers are named 'lab'"),
        ('name = "lab"', "", "has no name"),
        ('models = ["plain"]', "models = []", "has no models"),
        ('models = ["plain"]', "models = [1]", "a model is 1"),
        ('dialect = "vllm"', 'dialct = "vllm"', "unknown key 'dialct'"),
        ('dialect = "vllm"', 'dialect = "x"', "dialect of provider 'other' is 'x'"),
        ("timeout_s = 5", 'timeout_s = "5"', "timeout_s is '5'"),
        ("timeout_s = 5", "timeout_s = -1", "timeouts of provider 'other' are -1 s"),
        ("https://llm.example.org/v1", "ftp://llm.example.org", "base_url of provider 'lab'"),
        ("https://llm.example.org/v1", "https://user:pw@llm.example.org", "base_url of provider 'lab'"),
        ('"LAB_API_KEY"', '"sk-123-abc"', "api_key_env of provider 'lab' is no variable's name"),
        ('aliases = ["big"]', "aliases = [1]", "aliases is"),
        ('aliases = ["big"]', 'type = "image"', "type of model 'meta-llama/Llama-3.1-70B-Instruct' is 'image'"),
    ],
)
def test_what_may_not_stand_in_the_file_is_refused_with_its_place(
    toml: Callable[[str], tuple[ProviderConfig, ...]], old: str, new: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        toml(TOML.replace(old, new))
    assert caught.value.hint
