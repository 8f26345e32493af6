"""A model in this process behind the inference port: one request at a time over a static cache.

The simplest generator that is right: prefill in chunks, one token a forward, nothing kept between requests. The engine takes its place for
many users. Knows text, tokens and the transformer; nothing of the command line or of servers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from herd.base.errors import ContextOverflowError, TokenizerError
from herd.inference.params import SamplingParams
from herd.inference.port import ChatRequest, CompletionRequest, Event, Finished, FinishReason, Timings, Usage
from herd.inference.sampler import sample
from herd.inference.stop import StopTexts
from herd.model.cache import StaticCache
from herd.model.transformer import Transformer
from herd.text.prompt import PromptFormat
from herd.text.reply import ReplyEvent, ReplyParser
from herd.text.tokenizer import Tokenizer

PREFILL_CHUNK = 512


class LocalModel:
    """A transformer and its tokenizer as an `Inference`."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, prompt_format: PromptFormat | None = None) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.vocab_size:,} ids, the model only {model.config.vocab_size:,} rows",
                hint="tokenizer and model belong to different checkpoints",
            )
        self.model = model
        self.tokenizer = tokenizer
        self.prompt_format = prompt_format or PromptFormat()

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.model.config.max_position_embeddings

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer a conversation; see `port.Inference.chat`."""
        ids = self.prompt_format.encode(self.tokenizer, request.messages, tools=request.tools, builtin_tools=request.builtin_tools)
        calls = bool(request.tools or request.builtin_tools)
        return self._run(ids, request.params, ReplyParser(calls=calls))

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """Go on with a text, after <|begin_of_text|>; ids are taken as they are."""
        prompt = request.prompt
        ids = self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else list(prompt)
        return self._run(ids, request.params, ReplyParser(calls=False))

    def _run(self, prompt: Sequence[int], params: SamplingParams, parser: ReplyParser) -> Iterator[Event]:
        """Generate, and turn ids into events. Checks the prompt before the first event is asked for."""
        self._check(prompt, params)
        return self._events(prompt, params, parser)

    def _check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        for token_id in prompt:
            self.tokenizer.token_bytes(token_id)
        if not prompt:
            raise TokenizerError("the prompt is empty", hint="give at least one token; <|begin_of_text|> begins every text")
        if len(prompt) >= self.context:
            raise ContextOverflowError(
                f"the prompt has {len(prompt):,} tokens and the model's context is {self.context:,}: no room for an answer",
                hint="shorten the prompt or begin a new conversation; nothing was cut",
            )
        for token_id in params.stop_token_ids:
            self.tokenizer.token_bytes(token_id)

    def _events(self, prompt: Sequence[int], params: SamplingParams, parser: ReplyParser) -> Iterator[Event]:
        started = time.perf_counter()
        stops = StopTexts(params.stop, include=params.include_stop)
        decoder = self.tokenizer.stream_decoder()
        ends = frozenset(params.stop_token_ids) | (frozenset[int]() if params.ignore_eos else self.tokenizer.stop_ids)
        limit = min(self.context - len(prompt), params.max_tokens or self.context)
        ids: list[int] = []
        texts: list[str] = []
        prefilled = started
        ended = False

        def shown(text: str) -> list[ReplyEvent]:
            texts.append(text)
            return parser.push(text)

        def rest() -> list[ReplyEvent]:
            """What was held back: neither a character nor a stop text goes on beyond a special token or the end."""
            events = shown(stops.push(decoder.finish()))
            return events + shown(stops.finish())

        for token_id in self._tokens(prompt, params, limit):
            if not ids:
                prefilled = time.perf_counter()
            ids.append(token_id)
            if token_id in ends:
                ended = True
                break
            name = self.tokenizer.special_name(token_id)
            yield from shown(stops.push(decoder.push(token_id))) if name is None else rest()
            if stops.stopped:
                break
            if name is not None:
                yield from parser.push_special(name)
        yield from rest()
        yield from parser.finish()
        # An answer that was cut may end in half a call, so being cut is what counts.
        cut = not ended and not stops.stopped
        reason: FinishReason = "length" if cut else "tool_calls" if parser.message.tool_calls else "stop"
        yield self._finished(reason, "".join(texts), parser, prompt, ids, (started, prefilled, time.perf_counter()))

    def _finished(
        self, reason: FinishReason, text: str, parser: ReplyParser, prompt: Sequence[int], ids: list[int], times: tuple[float, float, float]
    ) -> Finished:
        started, prefilled, ended = times
        decode_s = ended - prefilled
        rate = (len(ids) - 1) / decode_s if len(ids) > 1 and decode_s > 0 else 0.0
        return Finished(
            reason=reason,
            text=parser.message.text if parser.message.tool_calls else text,
            message=parser.message,
            token_ids=tuple(ids),
            usage=Usage(prompt_tokens=len(prompt), completion_tokens=len(ids)),
            timings=Timings(prefill_s=round(prefilled - started, 6), decode_s=round(decode_s, 6), tokens_per_s=round(rate, 2)),
        )

    def _tokens(self, prompt: Sequence[int], params: SamplingParams, limit: int) -> Iterator[int]:
        """Ids one after another, at most `limit`; the caller ends it."""
        seed = params.seed if params.seed is not None else secrets.randbits(48)
        model = self.model
        cache = StaticCache(model.config, capacity=len(prompt) + limit, dtype=model.dtype, device=model.device)
        pending = list(prompt)
        for count in range(limit):
            logits = self._forward(pending, cache)
            token_id = sample(logits, params, seed=seed, position=len(prompt) + count)
            yield token_id
            pending = [token_id]

    @torch.inference_mode()
    def _forward(self, ids: Sequence[int], cache: StaticCache) -> Tensor:
        """Logits [V] after the last of `ids`, which are appended to the cache; only the last position meets the output matrix."""
        hidden = None
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = torch.tensor([list(ids[start : start + PREFILL_CHUNK])], device=self.model.device)
            hidden = self.model.hidden(chunk, core=cache, positions_BT=cache.positions(chunk.shape[1]))
            cache.advance(chunk.shape[1])
        assert hidden is not None
        logits = self.model.logits(hidden[0, -1])
        if self.tokenizer.vocab_size < logits.shape[0]:
            logits = logits[: self.tokenizer.vocab_size]
        return logits.cpu()
