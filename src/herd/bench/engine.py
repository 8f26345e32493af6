"""Measuring the engine in this process: how fast one request is answered, and how many tokens many requests give together."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from herd.base.errors import ContextOverflowError
from herd.base.progress import track_steps
from herd.bench.rates import matmul_rate, read_rate
from herd.bench.report import Load, Spread
from herd.bench.workload import Item, Mix, make_items, prompt_ids
from herd.engine.engine import Engine
from herd.engine.params import TokenParams
from herd.engine.stream import Admitted, Failed, TokenEvent, TokenRequest, Tokens
from herd.model.config import ModelConfig


def _request(item: Item, vocab_size: int, mix: Mix, *, reuse: bool) -> TokenRequest:
    """Greedy, and never ended by a token: every run writes as many."""
    params = TokenParams(max_tokens=item.num_answer, temperature=0.0)
    return TokenRequest(prompt=prompt_ids(item, vocab_size, mix=mix), params=params, reuse_prefix=reuse)


def run_load(engine: Engine, items: Sequence[Item], *, vocab_size: int, mix: Mix, reuse: bool, concurrency: int | None = None) -> Load:
    """Send requests to a threaded engine when their time has come, at most `concurrency` at once, and wait for all.

    Raises ContextOverflowError before anything runs if one is longer than the context.
    """
    for item in items:
        if item.num_prompt + item.num_answer > engine.context:
            raise ContextOverflowError(
                f"a request has {item.num_prompt:,} + {item.num_answer:,} tokens, the context is {engine.context:,}",
                hint="lower --prompt-tokens or --new-tokens",
            )
    inbox = _Inbox()
    engine.after_events = inbox.pass_on
    records = [_Record() for _ in items]
    started = time.perf_counter()
    sent = ended = 0
    with track_steps("requests", total=len(items)) as advance:
        while ended < len(items):
            now = time.perf_counter() - started
            while sent < len(items) and items[sent].at_s <= now and (concurrency is None or sent - ended < concurrency):
                number = sent
                records[number].sent = time.perf_counter()
                engine.submit(
                    _request(items[number], vocab_size, mix, reuse=reuse),
                    lambda event, number=number: inbox.add(number, event),
                )
                sent += 1
            due = max(0.0, items[sent].at_s - now) if sent < len(items) and (concurrency is None or sent - ended < concurrency) else None
            try:
                steps = inbox.steps.get(timeout=due)
            except queue.Empty:
                continue
            before = ended
            for at, came in steps:
                for number, event in came:
                    ended += records[number].take(event, at)
            if ended > before:
                advance(ended, "")
    return _load(items, records, max(record.last for record in records) - started)


class _Inbox:
    """Events of steps with the time of each. The reader wakes where a request ended: at every step it would take a core from the engine."""

    def __init__(self) -> None:
        self.steps: queue.SimpleQueue[list[tuple[float, list[tuple[int, TokenEvent]]]]] = queue.SimpleQueue()
        self._held: list[tuple[float, list[tuple[int, TokenEvent]]]] = []
        self._came: list[tuple[int, TokenEvent]] = []
        self._ended = False

    def add(self, number: int, event: TokenEvent) -> None:
        """An event of the step at hand."""
        self._came.append((number, event))
        self._ended |= isinstance(event, Failed) or (isinstance(event, Tokens) and event.finish is not None)

    def pass_on(self) -> None:
        """The step is over."""
        if self._came:
            self._held.append((time.perf_counter(), self._came))
            self._came = []
        if self._ended:
            self.steps.put(self._held)
            self._held, self._ended = [], False


@dataclass(slots=True)
class _Record:
    """One request as it went."""

    sent: float = 0.0
    first: float = 0.0
    last: float = 0.0
    num_tokens: int = 0
    num_cached: int = 0

    def take(self, event: TokenEvent, at: float) -> bool:
        """Book an event; says whether it was the last."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Admitted):
            self.num_cached = event.num_cached
        if isinstance(event, Tokens):
            self.first = self.first or at
            self.last = at
            self.num_tokens += len(event.ids)
            return event.finish is not None
        return False


def _load(items: Sequence[Item], records: Sequence[_Record], seconds: float) -> Load:
    between = [(record.last - record.first) / (record.num_tokens - 1) for record in records if record.num_tokens > 1]
    return Load(
        num_requests=len(items),
        num_failed=0,
        seconds=seconds,
        prompt_tokens=sum(item.num_prompt for item in items),
        cached_tokens=sum(record.num_cached for record in records),
        answer_tokens=sum(record.num_tokens for record in records),
        first_token=Spread.of([record.first - record.sent for record in records]),
        between_tokens=Spread.of(between) if between else None,
        whole=Spread.of([record.last - record.sent for record in records]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """One request at a time, or `batch` at once, several times over.

    `read_share`: bytes that a token needs read, over what this machine reads in the time it took; `matmul_share`: operations of reading the
    prompt, over what it computes in that time.
    """

    batch: int
    num_prompt: int
    num_answer: int
    first_token: Spread
    between_tokens: Spread
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    read_gb_per_s: float
    read_share: float
    matmul_tflop_per_s: float
    matmul_share: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "batch": self.batch,
            "prompt_tokens": self.num_prompt,
            "new_tokens": self.num_answer,
            "ttft_s": self.first_token.to_dict(),
            "itl_s": self.between_tokens.to_dict(),
            "prefill_tokens_per_s": round(self.prompt_tokens_per_s, 2),
            "decode_tokens_per_s": round(self.output_tokens_per_s, 2),
            "machine_read_gb_per_s": round(self.read_gb_per_s, 2),
            "decode_share_of_read_rate": round(self.read_share, 4),
            "machine_matmul_tflop_per_s": round(self.matmul_tflop_per_s, 4),
            "prefill_share_of_matmul_rate": round(self.matmul_share, 4),
        }


def read_bytes_per_token(config: ModelConfig, dtype: torch.dtype, context: int, cache_bytes: int) -> int:
    """Bytes that the next token of one sequence needs: every weight but the input embedding's other rows, and its keys and values."""
    weights = config.num_parameters - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)
    return weights * dtype.itemsize + config.kv_bytes_per_token(cache_bytes) * context


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is measured: a threaded engine, the model's shape, where and how it computes, and the ids below which tokens are text."""

    engine: Engine
    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    num_text_ids: int


def measure_latency(subject: Subject, *, batch: int, num_prompt: int, num_answer: int, repeats: int) -> Latency:
    """Measure `repeats` rounds of `batch` requests at once. A first round warms up and is not counted."""
    engine, config, dtype = subject.engine, subject.config, subject.dtype
    firsts: list[float] = []
    betweens: list[float] = []
    for round_number in range(repeats + 1):
        items = make_items(batch, num_prompt=num_prompt, num_answer=num_answer, seed=round_number)
        found = run_load(engine, items, vocab_size=subject.num_text_ids, mix="fixed", reuse=False)
        if round_number and found.first_token is not None and found.between_tokens is not None:
            firsts.append(found.first_token.mean)
            betweens.append(found.between_tokens.mean)
    first, between = Spread.of(firsts), Spread.of(betweens)
    size = read_bytes_per_token(config, dtype, 0, dtype.itemsize)
    per_sequence = config.kv_bytes_per_token(dtype.itemsize) * (num_prompt + num_answer // 2)
    read, products = read_rate(size), matmul_rate(dtype, subject.device)
    head = 2 * config.vocab_size * config.hidden_size  # of a prompt, only the last token is scored
    operations = batch * ((config.forward_flops_per_token(num_prompt // 2) - head) * num_prompt + head)
    return Latency(
        batch=batch,
        num_prompt=num_prompt,
        num_answer=num_answer,
        first_token=first,
        between_tokens=between,
        prompt_tokens_per_s=batch * num_prompt / first.p50,
        output_tokens_per_s=batch / between.p50,
        read_gb_per_s=read / 1e9,
        read_share=(size + batch * per_sequence) / read / between.p50,
        matmul_tflop_per_s=products / 1e12,
        matmul_share=operations / products / first.p50,
    )
