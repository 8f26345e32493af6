"""Llama Guard 3 over a model behind the port: the prompt, a verdict held by a grammar, its probability, a threshold.

Any model that writes Llama Guard's format will do: Meta's own checkpoints unchanged, or a server that has one. With a threshold of 0.5 the
verdict is the model's; another one moves it, and then the categories of what the model would have called safe are asked for by a second
question that leaves `unsafe` alone open. What is longer than the model's context is judged in pieces, and the worst verdict is the whole's.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import cast

from herd.base.errors import ConfigError, ContextOverflowError, HerdError
from herd.engine.grammar.spec import Grammar
from herd.inference.params import SamplingParams
from herd.inference.port import AsyncInference, Caller, ChatRequest, Finished, Inference
from herd.safety.categories import DEFAULT_CATEGORIES, NAMES, Category, choose_categories
from herd.safety.guard_prompt import GuardRole, guard_prompt, turns_of
from herd.safety.guard_verdict import MAX_TOKENS, GuardAnswer, read_verdict, verdict_grammar, verdict_score
from herd.safety.verdict import ALL_POINTS, Content, TouchPoint, Verdict
from herd.text.messages import Message

REFUSAL = "I can't answer that. Can I help with something else?"
"""What the reference system says in place of what its guard stopped."""
_LOGPROBS = 20
_OVERLAP = 200
"""Characters that both halves of a text in pieces show."""
_SHORTEST = 100
"""A text of fewer characters is not halved: the categories alone are too long for the model."""
_AGENT_POINTS = frozenset({TouchPoint.OUTPUT, TouchPoint.TOOL_INPUT})


class LlamaGuard:
    """A guard model as a shield.

    Args:
        model: what answers: an `Inference` or an `AsyncInference`.
        threshold: a text is unsafe from this probability on.
        categories: what counts as unsafe.
        extra: custom categories beside them.
        exclude: codes that do not count.
        agent: what the agent is called in the prompt; the code of July 2024 says Assistant.
        name: of the shield.
        points: where it stands.
        constrained: hold the answer by a grammar; false for servers that know none.
        caller: as whom the model is asked.

    Raises:
        ConfigError: a threshold outside 0 to 1, categories that cannot be.
    """

    def __init__(
        self,
        model: Inference | AsyncInference,
        *,
        threshold: float = 0.5,
        categories: Sequence[Category] = DEFAULT_CATEGORIES,
        extra: Sequence[Category] = (),
        exclude: Collection[str] = (),
        agent: str = "Agent",
        name: str = "llama-guard",
        points: frozenset[TouchPoint] = ALL_POINTS,
        constrained: bool = True,
        caller: Caller | None = None,
    ) -> None:
        check_threshold(threshold)
        self.model, self.threshold, self.agent = model, threshold, agent
        self.categories = choose_categories(categories, extra=extra, exclude=exclude)
        self.exclude = frozenset(exclude)
        self.name, self.points = name, points
        self._constrained, self._caller = constrained, caller or Caller()

    async def check(self, content: Content) -> Verdict:
        """Judge a content: as the agent's words at outputs and calls, as the user's elsewhere."""
        role: GuardRole = "Agent" if content.point in _AGENT_POINTS else "User"
        last = Message.assistant(content.text) if role == "Agent" else Message.user(content.text)
        return await self.judge([*content.conversation, last], role)

    async def judge(self, messages: Sequence[Message], role: GuardRole) -> Verdict:
        """Judge the last turn of `role` in a conversation. Raises FormatError if there is none, and what the model raises."""
        return await self._judge_turns(turns_of(messages, role))

    async def _judge_turns(self, turns: list[tuple[GuardRole, str]]) -> Verdict:
        """Where the model's context is too small: without the oldest turns, and at last the judged turn in overlapping halves."""
        try:
            return await self._judge(turns)
        except ContextOverflowError:
            if len(turns) > 1:
                return await self._judge_turns(turns[1:])
            ((role, text),) = turns
            if len(text) < _SHORTEST:
                raise
            middle = len(text) // 2
            overlap = min(_OVERLAP, middle // 2)
            halves = [text[: middle + overlap], text[middle - overlap :]]
            verdicts = [await self._judge_turns([(role, half)]) for half in halves]
            return max(verdicts, key=lambda verdict: (verdict.unsafe, verdict.score or 0.0))

    async def _judge(self, turns: Sequence[tuple[GuardRole, str]]) -> Verdict:
        prompt = guard_prompt(turns, categories=self.categories, agent=self.agent)
        finished = await self._ask(prompt, verdict_grammar(self.categories))
        answer = read_verdict(finished.text, self.categories, exclude=self.exclude)
        if answer.malformed:
            return self._verdict(answer, score=1.0)
        score = verdict_score(finished.logprobs)
        if score is None:
            score = 1.0 if answer.unsafe else 0.0
        if score < self.threshold:
            return self._verdict(GuardAnswer(unsafe=False), score)
        if not answer.unsafe and not _named_excluded(finished.text, self.exclude):
            answer = await self._categories(prompt)
        return self._verdict(answer, score)

    async def _categories(self, prompt: str) -> GuardAnswer:
        """What the model would name, were it to call the text unsafe."""
        if not self._constrained:
            return GuardAnswer(unsafe=True)
        finished = await self._ask(prompt, verdict_grammar(self.categories, unsafe_only=True))
        return replace(read_verdict(finished.text, self.categories), unsafe=True, malformed="")

    async def _ask(self, prompt: str, grammar: Grammar) -> Finished:
        request = ChatRequest(
            messages=(Message.user(prompt),),
            grammar=grammar if self._constrained else None,
            params=SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logprobs=_LOGPROBS),
            caller=self._caller,
        )
        if inspect.iscoroutinefunction(self.model.chat):
            answer = await self.model.chat(request)
            try:
                async for parts in answer:
                    for part in parts:
                        if isinstance(part.event, Finished):
                            return part.event
            finally:
                answer.close()
        else:
            for event in await asyncio.to_thread(_all_events, cast("Inference", self.model), request):
                if isinstance(event, Finished):
                    return event
        raise HerdError("the guard's answer has no end", hint="the model behind the guard was stopped; ask again")

    def _verdict(self, answer: GuardAnswer, score: float) -> Verdict:
        names = [f"{code} {self._name_of(code)}" for code in answer.categories]
        reason = answer.malformed or (", ".join(names) or "no category named" if answer.unsafe else "")
        return Verdict(
            shield=self.name,
            unsafe=answer.unsafe,
            score=score,
            categories=answer.categories,
            reason=reason,
            user_message=REFUSAL if answer.unsafe else "",
        )

    def _name_of(self, code: str) -> str:
        return next((category.name for category in self.categories if category.code == code), NAMES.get(code, code))


def _named_excluded(text: str, exclude: Collection[str]) -> bool:
    """Whether the guard objected, but only to what does not count."""
    return bool(exclude) and text.strip().startswith("unsafe")


def _all_events(model: Inference, request: ChatRequest) -> list[object]:
    return list(model.chat(request))


def check_threshold(threshold: float) -> None:
    """Raises ConfigError for a threshold that is no probability."""
    if isinstance(threshold, bool) or not 0.0 <= threshold <= 1.0:
        raise ConfigError(
            f"the threshold is {threshold!r}, it must be 0 to 1", hint="a higher one stops less; 0.5 is the model's own verdict"
        )
