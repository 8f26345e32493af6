"""Streamed answers are let go window by window, never before they are judged; what is stopped leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from told_shields import Given, Told, finished, texts  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError
from herd.inference.port import Finished, Part, TokenLogprob, TokensDone
from herd.safety.llama_guard import REFUSAL
from herd.safety.shields import Shields
from herd.safety.stream import GuardedAnswer
from herd.safety.verdict import TouchPoint
from herd.text.messages import Message, ToolCall
from herd.text.reply import CallDelta, CallDone, TextDelta


class Word:
    """A judge that forbids a word, and keeps what it judged."""

    def __init__(self, word: str = "BAD") -> None:
        self.word = word
        self.judged: list[tuple[TouchPoint, str]] = []

    async def __call__(self, point: TouchPoint, text: str) -> bool:
        self.judged.append((point, text))
        return self.word not in text


def read(answer: GuardedAnswer) -> list[Part]:
    async def all_parts() -> list[Part]:
        return [part async for parts in answer for part in parts]

    return asyncio.run(all_parts())


def said(parts: list[Part], index: int = 0) -> str:
    return "".join(part.event.text for part in parts if part.index == index and isinstance(part.event, TextDelta))


def test_text_is_held_until_its_window_is_judged() -> None:
    judge = Word()
    source = Given(texts("abcd", "efgh", "ijkl", "mn"))

    async def first() -> tuple[list[Part], int]:
        async for parts in GuardedAnswer(source, judge, window=8, overlap=2):
            return parts, source.read
        raise AssertionError

    parts, taken = asyncio.run(first())
    assert (said(parts), taken) == ("abcdefgh", 2)
    assert judge.judged == [(TouchPoint.OUTPUT, "abcdefgh")]


def test_each_window_is_judged_with_the_end_of_what_went_out_and_the_whole_at_last() -> None:
    judge = Word()
    parts = read(GuardedAnswer(Given(texts("abcd", "efgh", "ijkl", "mn")), judge, window=4, overlap=2))
    assert said(parts) == "abcdefghijklmn"
    assert [text for _, text in judge.judged] == ["abcd", "cdefgh", "ghijkl", "klmn", "abcdefghijklmn"]
    assert isinstance(parts[-1].event, Finished) and parts[-1].event.text == "abcdefghijklmn"


def test_a_word_across_a_border_is_seen_in_the_overlap() -> None:
    source = Given(texts("xxxB", "ADxx", "yyyy"))
    parts = read(GuardedAnswer(source, Word(), window=4, overlap=2))
    assert said(parts) == f"xxxB\n\n{REFUSAL}"
    assert source.closed and source.read == 2


def test_what_no_window_shows_the_check_of_the_whole_does() -> None:
    async def judge(_: TouchPoint, text: str) -> bool:
        return not ("first" in text and "last" in text)

    pieces = ["first ", "then ", "more ", "last "]
    parts = read(GuardedAnswer(Given(texts(*pieces)), judge, window=5, overlap=0))
    assert "last" not in said(parts)[: -len(REFUSAL)] or said(parts).endswith(REFUSAL)
    assert said(parts).endswith(REFUSAL)
    assert said(read(GuardedAnswer(Given(texts(*pieces)), judge, window=5, overlap=0, whole=False))) == "".join(pieces)


def test_a_stopped_answer_tells_nothing_of_the_rest() -> None:
    log = TokensDone(logprobs=(TokenLogprob(token_id=1, data=b"BAD", logprob=-0.1),))
    source = Given([[Part(0, log), Part(0, TextDelta(text="BAD things"))], [Part(0, finished("BAD things"))]])
    answer = GuardedAnswer(source, Word(), window=100)
    parts = read(answer)
    assert [type(part.event) for part in parts] == [TextDelta, Finished]
    end = parts[-1].event
    assert isinstance(end, Finished)
    assert (end.text, end.token_ids, end.logprobs, end.reason) == (REFUSAL, (), (), "stop")
    assert end.message == Message.assistant(REFUSAL)
    assert end.usage.completion_tokens == 10
    assert "BAD" not in repr(parts) and answer.stopped == {0}


def test_an_answer_whose_text_comes_only_at_its_end_is_judged() -> None:
    parts = read(GuardedAnswer(Given([[Part(0, finished("BAD"))]]), Word()))
    assert said(parts) == REFUSAL and "BAD" not in repr(parts)


def test_calls_wait_until_they_are_whole_and_judged() -> None:
    call = ToolCall(name="run", arguments={"code": "BAD"})
    good = ToolCall(name="run", arguments={"code": "fine"})

    def stream(one: ToolCall) -> Given:
        end = finished("", [one])
        return Given(
            [[Part(0, CallDelta(text='{"name"'))], [Part(0, CallDelta(text=": ..."))], [Part(0, CallDone(call=one))], [Part(0, end)]]
        )

    judge = Word()
    parts = read(GuardedAnswer(stream(good), judge, window=1))
    assert [type(part.event) for part in parts] == [CallDelta, CallDelta, CallDone, Finished]
    assert judge.judged[0] == (TouchPoint.TOOL_INPUT, '{"name": "run", "parameters": {"code": "fine"}}')
    stopped = read(GuardedAnswer(stream(call), Word(), window=1))
    assert "BAD" not in repr(stopped) and said(stopped) == REFUSAL


def test_a_call_that_only_the_end_shows_is_judged_too() -> None:
    end = finished("", [ToolCall(name="run", arguments={"code": "BAD"})])
    parts = read(GuardedAnswer(Given([[Part(0, end)]]), Word()))
    assert "BAD" not in repr(parts)


def test_several_answers_are_stopped_one_by_one() -> None:
    parts = [Part(0, TextDelta(text="BAD")), Part(1, TextDelta(text="good")), Part(0, finished("BAD")), Part(1, finished("good"))]
    source = Given([[part] for part in parts])
    out = read(GuardedAnswer(source, Word(), window=2, n=2))
    assert said(out, 0) == REFUSAL and said(out, 1) == "good"
    assert source.read == 4


def test_a_judge_that_fails_lets_nothing_go() -> None:
    async def broken(_: TouchPoint, text: str) -> bool:
        raise RuntimeError("no judge")

    source = Given(texts("abcd"))
    with pytest.raises(RuntimeError):
        read(GuardedAnswer(source, broken, window=2))
    assert source.closed


@pytest.mark.parametrize(("window", "overlap"), [(0, 0), (5, -1)])
def test_windows_that_cannot_be_are_refused(window: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match="window"):
        GuardedAnswer(Given([]), Word(), window=window, overlap=overlap)


@given(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=12), st.integers(1, 20), st.integers(0, 10))
def test_what_is_fine_comes_out_as_it_went_in(pieces: list[str], window: int, overlap: int) -> None:
    judge = Word("\x00never\x00")
    parts = read(GuardedAnswer(Given(texts(*pieces)), judge, window=window, overlap=overlap))
    assert said(parts) == "".join(pieces)
    assert sum(isinstance(part.event, Finished) for part in parts) == 1


@given(
    st.lists(st.sampled_from(["a", "bc", "B", "A", "D", "BAD", "x" * 5]), min_size=1, max_size=20), st.integers(1, 12), st.integers(2, 10)
)
def test_the_forbidden_word_never_comes_out_whole(pieces: list[str], window: int, overlap: int) -> None:
    parts = read(GuardedAnswer(Given(texts(*pieces)), Word(), window=window, overlap=overlap))
    assert "BAD" not in said(parts)
    assert ("BAD" in "".join(pieces)) == said(parts).endswith(REFUSAL)


def test_shields_guard_a_stream_with_the_conversation_before_it() -> None:
    shield = Told(word="bad")
    guarded = Shields([shield]).guard(Given(texts("good ", "bad ", "end")), [Message.user("hi")], window=4, overlap=0)
    assert said(read(guarded)) == f"good \n\n{REFUSAL}"
    assert shield.seen[0].conversation == (Message.user("hi"),)
    assert shield.seen[0].point is TouchPoint.OUTPUT
