"""Spans of a turn have the names of OpenTelemetry's conventions for generative AI, one in another, and hold no text."""

from __future__ import annotations

import asyncio

import pytest

from herd.agents.config import AgentConfig
from herd.agents.loop import run_turn
from herd.agents.runtime import Runtime
from herd.agents.toolset import Toolset
from herd.agents.turn import Turn
from herd.text.messages import Message
from scripted_agent import Noted, Say, Scripted, call  # pyright: ignore[reportMissingImports]


def test_a_turn_is_a_span_with_its_steps_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", lambda name, version: provider.get_tracer(name, version))

    async def main() -> None:
        config = AgentConfig(name="Ada", model="cria", shields=())
        runtime = Runtime(inference=Scripted([Say("", (call("look"),)), Say("a secret answer")]), tools=Toolset([Noted()]))
        async for _ in run_turn(runtime, config, Turn(inputs=(Message.user("a secret question"),))):
            pass

    asyncio.run(main())
    spans = {span.name: span for span in kept.get_finished_spans()}
    assert set(spans) == {"invoke_agent Ada", "chat cria", "execute_tool look"}
    root = spans["invoke_agent Ada"]
    assert all(span.parent is not None and span.parent.span_id == root.context.span_id for name, span in spans.items() if span is not root)
    assert (
        spans["chat cria"].attributes["gen_ai.operation.name"] == "chat"
        and spans["chat cria"].attributes["gen_ai.usage.output_tokens"] == 3
    )
    assert spans["execute_tool look"].attributes["gen_ai.tool.name"] == "look"
    assert "secret" not in str([dict(span.attributes) for span in spans.values()])
