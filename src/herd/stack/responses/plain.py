"""A response that needs no tool of the server's: one answer of the model, told token by token.

Where text has to fit a schema and functions are on offer, the model is asked twice: whether it calls one, and, as soon as it begins a text
instead, for the text by the schema.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Any

from herd.inference.port import ChatRequest, Finished, TokensDone
from herd.stack.answers import chat_logprob
from herd.stack.deltas import Delta, Deltas
from herd.stack.jobs import Job
from herd.stack.responses.asking import wants_logprobs
from herd.stack.responses.output import Output
from herd.stack.responses.work import Asking, Ending, Telling
from herd.stack.service import Service


def first_request(asking: Asking) -> ChatRequest:
    """What the model is asked first."""
    return asking.request if asking.request.calls else replace(asking.request, grammar=asking.grammar)


class Plain:
    """Answers by one job, which may have begun already."""

    def __init__(self, service: Service, job: Job | None = None) -> None:
        self._service, self._job = service, job

    def close(self) -> None:
        """End what has begun and was not answered by."""
        if self._job is not None:
            self._job.close()

    async def __call__(self, asking: Asking, telling: Telling) -> Ending:
        """Answer."""
        context = asking.context
        job, self._job = self._job, None
        if job is None:
            job = await self._service.answer(first_request(asking), context, asking.body.model)
        silent = frozenset(self._service.tokenizer.stop_ids)
        finished = await _Teller(asking, telling, silent).tell(job, hold_text=asking.grammar is not None and asking.request.calls)
        if finished is None:
            request = replace(asking.request, tools=(), tool_choice="auto", tool_name=None, grammar=asking.grammar)
            finished = await _Teller(asking, telling, silent).tell(
                await self._service.answer(request, context, asking.body.model), hold_text=False
            )
        assert finished is not None
        telling.usages.append(finished.usage)
        if finished.reason == "content_filter":
            return Ending(state="incomplete", reason="content_filter")
        return Ending(state="incomplete", reason="max_output_tokens") if finished.reason == "length" else Ending(state="completed")


class _Teller:
    """Events of one answer as those of the output."""

    def __init__(self, asking: Asking, telling: Telling, silent: frozenset[int]) -> None:
        self._output: Output = telling.output
        self._silent = silent
        self._logprobs: list[dict[str, Any]] = []
        self._wanted = wants_logprobs(asking.body)
        self._texts: list[str] = []
        self._call = -1
        self._refused = False

    async def tell(self, job: Job, *, hold_text: bool) -> Finished | None:
        """Tell an answer to its end, or, with `hold_text`, until it begins a text: None then."""
        deltas = Deltas(sure=job.sure)
        finished: Finished | None = None
        try:
            async with aclosing(job.parts()) as ticks:
                async for parts in ticks:
                    for part in parts:
                        if isinstance(part.event, TokensDone) and self._wanted:
                            found = [one for one in part.event.logprobs if one.token_id not in self._silent]
                            self._logprobs += [chat_logprob(one) for one in found]
                        for delta in deltas.of(part.event):
                            if hold_text and "content" in delta:
                                if delta["content"].strip():
                                    return None
                            else:
                                self._take(delta)
                        if isinstance(part.event, Finished):
                            finished = part.event
                            if finished.reason == "content_filter":
                                self._refuse()
                    self._flush()
        finally:
            job.close()
        if finished is not None and hold_text and self._call < 0:
            return None
        self._finish()
        return finished

    def _take(self, delta: Delta) -> None:
        if "content" in delta:
            self._texts.append(delta["content"])
            return
        self._flush()
        for piece in delta["tool_calls"]:
            if piece["index"] != self._call:
                self._call = piece["index"]
                self._output.call(piece["function"]["name"], piece["id"])
            if piece["function"]["arguments"]:
                self._output.arguments(piece["function"]["arguments"])

    def _refuse(self) -> None:
        """A shield ended the answer: the last text is what it says instead."""
        told = self._texts.pop().strip() if self._texts else ""
        self._flush()
        self._output.refusal(told)
        self._refused = True

    def _flush(self) -> None:
        """Texts that come together are one delta."""
        if self._texts:
            self._output.text("".join(self._texts), self._logprobs)
            self._texts, self._logprobs = [], []

    def _finish(self) -> None:
        self._flush()
        if self._call < 0 and not self._refused:
            self._output.said_nothing()
            self._output.logprobs(self._logprobs)
