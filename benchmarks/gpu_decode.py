"""Decoding over herd's engine on a GPU: tokens a second of one stream and of many, and where a step's time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_model import by_name, launches, random_model, timed
from herd.engine.batch import Piece, ragged
from herd.engine.build import build_engine
from herd.engine.draw import RowNumbers
from herd.engine.engine import Engine
from herd.engine.gpu.device import Arriving
from herd.engine.gpu.graphs import padded_parts, padded_size
from herd.engine.gpu.weights import stacks
from herd.engine.memory import EngineConfig
from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest, Tokens
from herd.kernels.triton.attention import num_parts
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

_FIRST = 4
"""Tokens of the run that is not counted: enough to compile and to capture all that a longer one needs."""


def read_per_token(model: Transformer) -> int:
    """Bytes of weights that a token alone reads: all matrices; norms and one row of the embedding are next to nothing."""
    return sum(matrix.size_bytes for stack in stacks(model) for matrix in stack)


def requests(count: int, prompt: int, new: int, vocab: int) -> Iterator[TokenRequest]:
    """Greedy requests of distinct prompts."""
    params = TokenParams(max_tokens=new, temperature=0.0)
    for number in range(count):
        yield TokenRequest(prompt=tuple((number * 131 + 7 * at) % vocab for at in range(prompt)), params=params, reuse_prefix=False)


@contextmanager
def waiting() -> Iterator[list[float]]:
    """Seconds that the host spends in waiting for drawn ids, one number a step."""
    waits: list[float] = []
    read = Arriving.read

    def timed_read(self: Arriving) -> list[int]:
        begun = time.perf_counter()
        found = read(self)
        waits.append(time.perf_counter() - begun)
        return found

    with mock.patch.object(Arriving, "read", timed_read):
        yield waits


def generate(engine: Engine, count: int, prompt: int, new: int) -> dict[str, float]:
    """Wall time of so many requests at once: of all, and of the steps of next tokens, of which the host waits so long."""
    vocab = engine.vocab_size
    with waiting() as waits:
        begun = time.perf_counter()
        streams = [engine.submit(request) for request in requests(count, prompt, new, vocab)]
        num, first = [0] * count, [0.0] * count
        for at, stream in enumerate(streams):
            for event in stream:
                if isinstance(event, Tokens):
                    first[at] = first[at] or time.perf_counter()
                    num[at] += len(event.ids)
        ended = time.perf_counter()
    if num != [new] * count:
        raise RuntimeError(f"requests ended early: {num[:8]} tokens of {new}")
    found = {"tokens_per_s": count * new / (ended - begun), "seconds": ended - begun}
    steps = len(waits[-(new - 1) :])
    if steps:
        found["host_waits_us"] = sum(waits[-(new - 1) :]) / steps * 1e6
    if count == 1:
        found["decode_tokens_per_s"] = (new - 1) / (ended - first[0])
        found["step_us"] = (ended - first[0]) / (new - 1) * 1e6
    return found


def on_the_device(engine: Engine, count: int, position: int, blocks_each: int, repeats: int) -> dict[str, Any]:
    """Where the device's time of a step goes: the captured blocks, the head, the draw, by events; and kernel by kernel."""
    runner: Any = engine.stepper.runner
    own = [range(1 + number * blocks_each, 1 + (number + 1) * blocks_each) for number in range(count)]
    rows = range(position, position + 1)
    with torch.inference_mode():
        runner.run(ragged([Piece(tokens=[1 + number], first=position, blocks=blocks, rows=rows) for number, blocks in enumerate(own)]))
        key = padded_size(count, runner._most_rows), padded_parts(num_parts(position + 1))
        step = runner._graphs.found[key].replay
        ones, zeros = [1.0] * count, [0.0] * count
        numbers = RowNumbers(temperatures=zeros, top_k=[0] * count, top_p=ones, min_p=zeros, uniforms=zeros)
        found: dict[str, Any] = {"graph": str(key), "blocks_us": timed(step, repeats, calls=5) * 1e6}
        found["head_us"] = timed(lambda: runner._score(0, count), repeats, calls=5) * 1e6
        found["head_and_draw_us"] = timed(lambda: runner.draw_later(numbers), repeats, calls=5) * 1e6
        begun = time.perf_counter()
        step()
        found["host_replay_us"] = (time.perf_counter() - begun) * 1e6
        begun = time.perf_counter()
        runner.draw_later(numbers)
        found["host_draw_us"] = (time.perf_counter() - begun) * 1e6
        try:
            seen = launches(lambda: (step(), runner.draw_later(numbers)))
        except RuntimeError as error:
            return found | {"kernels": f"torch's profiler cannot look: {error}"}
    found["first_launches_us"] = [f"{name[:40]} {microseconds:.1f}" for name, microseconds in seen[:34]]
    return found | {"launches": len(seen), "kernels_us": sum(microseconds for _, microseconds in seen), "kernels": by_name(seen)}


def decode(
    config: ModelConfig, kind: str, *, prompt: int, new: int, streams: int, repeats: int, tell: Callable[..., None]
) -> dict[str, Any]:
    """One stream and many, over the engine. Graphs are captured by a first run that is not counted."""
    model = random_model(config, kind, "cuda")
    size = read_per_token(model)
    per_sequence = -(-(prompt + new) // 16) + 1
    sizes = EngineConfig(
        context=prompt + new,
        token_budget=max(streams, 2048),
        max_sequences=streams,
        score_rows=streams,
        num_blocks=1 + streams * per_sequence,
    )
    engine = build_engine(model, sizes)
    generate(engine, 1, prompt, _FIRST)
    runs = [generate(engine, 1, prompt, new) for _ in range(repeats)]
    found: dict[str, Any] = {"bytes_per_token": size}
    found |= {name: statistics.median(run[name] for run in runs) for name in ("decode_tokens_per_s", "step_us", "host_waits_us")}
    tell(f"{kind} decode", found)
    found["on_the_device"] = on_the_device(engine, 1, prompt + new - 2, per_sequence, repeats)
    tell(f"{kind} decode, on the device", found["on_the_device"])
    if streams > 1:
        generate(engine, streams, prompt, _FIRST)
        runs = [generate(engine, streams, prompt, new) for _ in range(min(2, repeats))]
        found["streams"] = streams
        found["streams_tokens_per_s"] = statistics.median(run["tokens_per_s"] for run in runs)
        found["streams_host_waits_us"] = statistics.median(run["host_waits_us"] for run in runs)
        tell(f"{kind} streams", {name: found[name] for name in ("streams", "streams_tokens_per_s", "streams_host_waits_us")})
        found["streams_on_the_device"] = on_the_device(engine, streams, prompt + new - 2, per_sequence, repeats)
        tell(f"{kind} streams, on the device", found["streams_on_the_device"])
    found["steps_ahead_taken_and_lost"] = [engine.stepper.ahead.num_taken, engine.stepper.ahead.num_lost]
    engine.close()
    return found


def shares(found: dict[str, Any], measured: dict[str, float], config: ModelConfig, prompt: int, new: int) -> dict[str, float]:
    """Of the bandwidth and of the matrix products that this call measured: what decoding alone reads, and what all streams compute."""
    kv = config.kv_bytes_per_token(2) * (prompt + new // 2)
    read = (found["bytes_per_token"] + kv) * found["decode_tokens_per_s"] / measured["read_bytes_per_s"]
    made = {"share_of_read_bandwidth": read}
    if "streams_tokens_per_s" in found:
        computed = found["streams_tokens_per_s"] * (prompt + new) / new  # a prompt's token costs what a new one does
        made["share_of_bf16_matmul"] = 2 * config.num_parameters * computed / measured["bf16_flops"]
    return made
