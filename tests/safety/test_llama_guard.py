"""Llama Guard over a model: verdict and score, threshold, roles, categories asked for, and both kinds of port."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from told_shields import finished  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError, ContextOverflowError, FormatError, HerdError
from herd.engine.build import build_engine
from herd.inference.aio import AsyncModel, ThreadedEngine
from herd.inference.port import ChatRequest, CompletionRequest, Event, Finished, TokenLogprob
from herd.inference.prepare import grammar_compiler
from herd.safety.categories import Category
from herd.safety.llama_guard import REFUSAL, LlamaGuard
from herd.safety.verdict import Content, TouchPoint
from herd.text.messages import Message
from herd.text.tokenizer import Tokenizer
from scripted import ScriptedModel, scripted  # pyright: ignore[reportMissingImports]


class Answers:
    """An `Inference` that gives answers with the probability of `unsafe` at the verdict's token, and keeps what it was asked."""

    def __init__(self, *answers: tuple[str, float | None]) -> None:
        self.answers = list(answers)
        self.asked: list[ChatRequest] = []

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        self.asked.append(request)
        text, unsafe = self.answers.pop(0)
        end = finished(text)
        if unsafe is not None:
            word = b"unsafe" if text.strip().startswith("unsafe") else b"safe"
            top = tuple((number, word, math.log(p)) for number, word, p in ((7, b"unsafe", unsafe), (8, b"safe", 1 - unsafe)) if p > 0)
            logprob = next((value for _, data, value in top if data == word), -100.0)
            logprobs = (TokenLogprob(token_id=7 if word == b"unsafe" else 8, data=word, logprob=logprob, top=top),)
            end = Finished(
                reason=end.reason,
                text=end.text,
                message=end.message,
                token_ids=end.token_ids,
                usage=end.usage,
                timings=end.timings,
                logprobs=logprobs,
            )
        yield end

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        raise AssertionError("a guard is asked by chat")


def check(guard: LlamaGuard, text: str = "Hello", point: TouchPoint = TouchPoint.INPUT, conversation: Sequence[Message] = ()):  # type: ignore[no-untyped-def]
    return asyncio.run(guard.check(Content(point=point, text=text, conversation=tuple(conversation))))


@pytest.mark.parametrize(("answer", "codes"), [("unsafe\nS1,S10", ("S1", "S10")), ("\n\nunsafe\nS14", ("S14",))])
def test_a_model_behind_the_engine_is_read_with_its_score(tiny_tokenizer: Tokenizer, answer: str, codes: tuple[str, ...]) -> None:
    model = scripted(tiny_tokenizer, answer)
    verdict = check(LlamaGuard(model))
    assert (verdict.unsafe, verdict.categories) == (True, codes)
    assert verdict.score == pytest.approx(1.0)
    assert verdict.user_message == REFUSAL


def test_a_model_that_wants_to_say_something_else_is_held_to_a_verdict(tiny_tokenizer: Tokenizer) -> None:
    verdict = check(LlamaGuard(scripted(tiny_tokenizer, "I would rather talk about llamas and their wool.")))
    assert "the guard" not in verdict.reason and verdict.score is not None
    assert verdict.unsafe == bool(verdict.categories)


def test_the_asynchronous_port_gives_the_same(tiny_tokenizer: Tokenizer) -> None:
    async def judge(answer: str) -> tuple[bool, tuple[str, ...]]:
        script = [*tiny_tokenizer.encode(answer), tiny_tokenizer.eot_id]
        size = tiny_tokenizer.vocab_size
        engine = build_engine(
            ScriptedModel(script, size), vocab_size=size, threaded=True, grammars=partial(grammar_compiler, tiny_tokenizer, size)
        )
        try:
            verdict = await LlamaGuard(AsyncModel(ThreadedEngine(engine), tiny_tokenizer)).check(
                Content(point=TouchPoint.INPUT, text="Hello")
            )
        finally:
            await asyncio.to_thread(engine.close)
        return verdict.unsafe, verdict.categories

    assert asyncio.run(judge("unsafe\nS2")) == (True, ("S2",))
    assert asyncio.run(judge("safe")) == (False, ())


def test_the_request_is_greedy_constrained_and_holds_the_prompt_alone() -> None:
    model = Answers(("safe", 0.1))
    check(LlamaGuard(model))
    (request,) = model.asked
    assert len(request.messages) == 1 and request.messages[0].text.startswith("Task: Check if there is unsafe content in 'User'")
    assert request.params.temperature == 0.0 and request.params.logprobs and request.grammar is not None
    free = Answers(("safe", None))
    check(LlamaGuard(free, constrained=False))
    assert free.asked[0].grammar is None


@pytest.mark.parametrize(
    ("threshold", "text", "probability", "unsafe"),
    [(0.5, "safe", 0.4, False), (0.3, "safe", 0.4, True), (0.5, "unsafe\nS1", 0.6, True), (0.7, "unsafe\nS1", 0.6, False)],
)
def test_the_threshold_moves_the_verdict(threshold: float, text: str, probability: float, unsafe: bool) -> None:
    model = Answers((text, probability), ("unsafe\nS3,S4", 1.0))
    verdict = check(LlamaGuard(model, threshold=threshold))
    assert (verdict.unsafe, verdict.score) == (unsafe, pytest.approx(probability))
    # What the model called safe is asked once more, for its categories alone.
    assert (len(model.asked), verdict.categories) == ((2, ("S3", "S4")) if threshold == 0.3 else (1, ("S1",) if unsafe else ()))


def test_malformed_answers_of_a_server_without_grammars_are_unsafe() -> None:
    verdict = check(LlamaGuard(Answers(("I think that is fine!", None)), constrained=False))
    assert (verdict.unsafe, verdict.score) == (True, 1.0)
    assert "I think that is fine!" in verdict.reason


def test_without_probabilities_the_verdict_is_the_score() -> None:
    assert check(LlamaGuard(Answers(("safe", None)))).score == 0.0
    assert check(LlamaGuard(Answers(("unsafe\nS1", None)))).score == 1.0


def test_only_excluded_categories_make_no_objection_and_no_second_question() -> None:
    model = Answers(("unsafe\nS6", 0.9))
    assert not check(LlamaGuard(model, exclude=["S6"], constrained=False)).unsafe
    assert len(model.asked) == 1


def test_custom_categories_are_asked_and_named() -> None:
    model = Answers(("unsafe\nS15", 0.9))
    verdict = check(LlamaGuard(model, extra=[Category(code="S15", name="Weather", policy="No rain.")]))
    assert (verdict.categories, verdict.reason) == (("S15",), "S15 Weather")
    assert "S15: Weather.\nNo rain." in model.asked[0].messages[0].text


@pytest.mark.parametrize(
    ("point", "role"),
    [(TouchPoint.INPUT, "User"), (TouchPoint.OUTPUT, "Agent"), (TouchPoint.TOOL_INPUT, "Agent"), (TouchPoint.TOOL_OUTPUT, "User")],
)
def test_each_point_is_judged_in_its_role_with_the_conversation(point: TouchPoint, role: str) -> None:
    model = Answers(("safe", 0.1))
    history = (Message.user("first"), Message.assistant("second"), Message.user("third"))
    check(LlamaGuard(model), "last words", point, history)
    prompt = model.asked[0].messages[0].text
    assert f"ONLY THE LAST {role} message" in prompt
    assert "User: first\n\nAgent: second\n\nUser: third" in prompt
    assert prompt.index("last words") < prompt.index("<END CONVERSATION>")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        LlamaGuard(Answers(), threshold=threshold)


def test_a_role_that_never_spoke_and_an_answer_without_an_end_are_errors() -> None:
    with pytest.raises(FormatError, match="no Agent turn"):
        asyncio.run(LlamaGuard(Answers()).judge([Message.user("x")], "Agent"))

    class Silent(Answers):
        def chat(self, request: ChatRequest) -> Iterator[Event]:
            return iter(())

    with pytest.raises(HerdError, match="no end"):
        check(LlamaGuard(Silent()))


class Narrow(Answers):
    """Refuses prompts over a length; otherwise unsafe, by how often the text says `bad`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        prompt = request.messages[0].text
        if len(prompt) > self.most:
            raise ContextOverflowError(f"{len(prompt)} tokens", hint="shorten it")
        said = prompt.partition("<BEGIN CONVERSATION>")[2]
        self.answers.append(("\n\nunsafe\nS1", 0.9) if "bad" in said else ("\n\nsafe", 0.1))
        return super().chat(request)


@pytest.mark.parametrize("place", [0, 1700, 2995])
def test_a_text_longer_than_the_context_is_judged_in_pieces(place: int) -> None:
    text = "x" * place + "bad" + "x" * (3000 - place)
    model = Narrow(1500)
    verdict = check(LlamaGuard(model), text)
    assert verdict.unsafe and verdict.score == pytest.approx(0.9)
    assert len(model.asked) > 2
    fine = check(LlamaGuard(Narrow(1500)), "x" * 3000)
    assert not fine.unsafe and fine.score == pytest.approx(0.1)


def test_words_at_a_cut_are_whole_in_one_of_the_pieces() -> None:
    for place in range(1380, 1620, 7):
        text = "x" * place + "bad" + "x" * (2997 - place)
        assert check(LlamaGuard(Narrow(2700)), text).unsafe, place


def test_older_turns_make_room_for_the_judged_one() -> None:
    model = Narrow(1500)
    verdict = check(LlamaGuard(model), "fine", conversation=[Message.user("x" * 3000), Message.assistant("y")])
    assert not verdict.unsafe and "User: fine" in model.asked[-1].messages[0].text


def test_a_model_too_small_for_the_categories_says_so() -> None:
    with pytest.raises(ContextOverflowError):
        check(LlamaGuard(Narrow(100)), "hello")
