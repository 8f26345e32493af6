"""Many streams at once, half of them left midway, then many requests: the benchmark's own checks, with fewer of each by default."""

from __future__ import annotations

import asyncio

from benchmarks.serve_streams import Herd, measure
from live_server import FULL, model_folder  # pyright: ignore[reportMissingImports]


def test_many_streams_and_memory() -> None:
    """None lost or mixed up, no block left, and no memory that grows with requests."""
    herd = Herd(str(model_folder()), "--context", "256", "--max-sequences", "64", "--ttft-target", "3600", "--threads", "1")
    try:
        found = asyncio.run(
            measure(herd, streams=1000 if FULL else 120, max_tokens=12, checks=100 if FULL else 12, requests=20_000 if FULL else 400)
        )
    finally:
        code = herd.stop()
    print(found)
    assert code == 0
    assert found["left"] == found["streams"] // 2
    # The allocator's own granularity is most of what a few hundred requests show.
    assert found["server_growth"] < 0.05 and found["engine_growth"] < 0.05
