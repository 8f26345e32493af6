"""Logs as JSON, spans at a collector, and tools in another style: one server with all of it, as an operator starts it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from live_server import CommandServer, wait_for

from herd.base.errors import ConfigError
from herd.stack import tracing

proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
TRACE_ID, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"enum": ["sky", "sea"]}}}}}


class Collector:
    """Takes spans over OTLP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = proto.ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans if scope.scope.name == "herd" else ()  # the web framework makes some of its own
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def facts(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {one.key: plain(one.value) for one in span.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def ended(collector: Collector) -> tuple[CommandServer, dict[str, Any]]:
    """A server that answered one request and was stopped, with the answer."""
    variables = {"HERD_LOG_FORMAT": "json", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    server = CommandServer("--tool-style", "function", model=None, **variables).wait_ready()
    try:
        with server.client(headers={"traceparent": f"00-{TRACE_ID}-{PARENT}-01", "x-request-id": "mine-1"}) as client:
            body = {
                "messages": [{"role": "user", "content": "Look!"}],
                "tools": [TOOL],
                "tool_choice": "required",
                "return_token_ids": True,
            }
            answer = client.post("/v1/chat/completions", json=body | {"parallel_tool_calls": False, "max_tokens": 200})
            assert answer.status_code == 200, answer.text
            assert client.get("/nowhere").status_code == 404
    finally:
        assert server.stop() == 0
    return server, answer.json()


def test_the_tools_are_called_in_the_style_that_was_asked_for(ended: tuple[CommandServer, dict[str, Any]]) -> None:
    from live_server import tokenizer

    [choice] = ended[1]["choices"]
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "look"
    assert json.loads(call["function"]["arguments"]).get("at", "sky") in ("sky", "sea")
    assert tokenizer().decode(choice["token_ids"]).startswith("<function=look>")


def test_the_log_is_json_with_fields_and_without_content(ended: tuple[CommandServer, dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in ended[0].log.splitlines() if line.startswith("{")]
    access = [line for line in lines if line["logger"] == "herd.stack.access"]
    assert [(line["method"], line["route"], line["status"]) for line in access] == [
        ("POST", "/v1/chat/completions", 200),
        ("GET", "other", 404),
    ]
    assert access[0]["id"] == "mine-1" and access[0]["ms"] > 0
    assert "Look!" not in ended[0].log


def test_a_request_is_a_span_below_its_callers_with_what_the_engine_did(
    ended: tuple[CommandServer, dict[str, Any]], collector: Collector
) -> None:
    wanted = {"POST /v1/chat/completions", "GET other", "generate tiny", "first_token", "decode"}
    wait_for(lambda: wanted <= {span.name for span in collector.spans}, what="the spans")
    named = {span.name: span for span in collector.spans}
    assert set(named) == wanted
    request, answer = named["POST /v1/chat/completions"], named["generate tiny"]
    assert request.trace_id.hex() == TRACE_ID and request.parent_span_id.hex() == PARENT
    assert facts(request) == {
        "http.request.method": "POST",
        "herd.request.id": "mine-1",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
    }
    usage = ended[1]["usage"]
    assert answer.parent_span_id == request.span_id
    assert facts(answer)["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert facts(answer)["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert facts(answer)["gen_ai.response.finish_reasons"] == ["tool_calls"]
    first, decode = named["first_token"], named["decode"]
    assert first.parent_span_id == decode.parent_span_id == answer.span_id
    begins = [answer.start_time_unix_nano, first.start_time_unix_nano]
    assert begins[0] == begins[1] < first.end_time_unix_nano == decode.start_time_unix_nano <= decode.end_time_unix_nano
    assert answer.end_time_unix_nano == decode.end_time_unix_nano <= request.end_time_unix_nano


def test_spans_are_made_where_the_variables_ask_for_them_and_nowhere_else() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1"}
    assert not tracing.wanted({})
    assert tracing.wanted(endpoint) and tracing.wanted({"OTEL_TRACES_EXPORTER": "console"})
    assert not tracing.wanted(endpoint | {"OTEL_SDK_DISABLED": "true"}) and not tracing.wanted(endpoint | {"OTEL_TRACES_EXPORTER": "none"})


def test_an_exporter_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="OTEL_TRACES_EXPORTER='zipkin'") as refusal:
        tracing.configure({"OTEL_TRACES_EXPORTER": "zipkin"})
    assert refusal.value.hint == "use otlp, console or none"
