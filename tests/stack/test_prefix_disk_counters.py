"""The engine's process keeps prefixes on disk from one start to the next, and tells what it read and wrote."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from herd.base.paths import bundled_model
from herd.engine.memory import EngineConfig
from herd.engine.params import TokenParams
from herd.engine.stream import Admitted, TokenEvent, TokenRequest, Tokens
from herd.stack.engine_process import EngineProcess, EngineSpec
from herd.stack.metrics import EngineCollector

REQUEST = TokenRequest(prompt=tuple(range(300, 500)), params=TokenParams(max_tokens=4, temperature=0.0))


def told_of(process: EngineProcess) -> str:
    """What Prometheus would be told of the engine."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(process, "cria"))
    return generate_latest(registry).decode()


async def ask(spec: EngineSpec, counter: str) -> tuple[list[TokenEvent], str]:
    """The events of the request on a new process, and the metrics once the counter has moved."""
    process = EngineProcess(spec)
    await process.start()
    try:
        events: list[TokenEvent] = []
        ended = asyncio.Event()

        def emit(event: TokenEvent) -> None:
            events.append(event)
            if isinstance(event, Tokens) and event.finish is not None:
                ended.set()

        await process.submit(REQUEST, emit)
        await asyncio.wait_for(ended.wait(), 60)
        for _ in range(100):
            if process.counters.get(counter):
                break
            await asyncio.sleep(0.1)
        return events, told_of(process)
    finally:
        await process.stop()


def written(events: list[TokenEvent]) -> tuple[list[int], str | None]:
    """The ids and how they ended; how many travelled together is the moment's."""
    tokens = [event for event in events if isinstance(event, Tokens)]
    assert len(tokens) == len(events) and all(event.finish is None for event in tokens[:-1])
    return [token_id for event in tokens for token_id in event.ids], tokens[-1].finish


def test_a_new_process_goes_on_from_what_the_one_before_wrote(tmp_path: Path) -> None:
    spec = EngineSpec(model=str(bundled_model()), engine=EngineConfig(context=512, prefix_dir=str(tmp_path)))
    first, wrote = asyncio.run(ask(spec, "prefix_disk_blocks_written"))
    second, read = asyncio.run(ask(spec, "prefix_disk_blocks_read"))
    assert (first[0], second[0]) == (Admitted(num_cached=0), Admitted(num_cached=192))
    assert written(first[1:]) == written(second[1:])
    assert 'herd_prefix_disk_blocks_written_total{model_name="cria"} 12.0' in wrote
    assert 'herd_prefix_disk_blocks_read_total{model_name="cria"} 12.0' in read


def test_without_a_folder_there_are_no_such_metrics() -> None:
    assert "prefix_disk" not in told_of(EngineProcess(EngineSpec(model="cria")))
