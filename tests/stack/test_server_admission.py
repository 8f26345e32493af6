"""Which requests are taken: by what is expected of the first token, with a clock that only the test moves."""

from __future__ import annotations

import pytest

from herd.stack.admission import Admission
from herd.stack.errors import RequestError, headers_of, status_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock, *, target: float = 2.0, waiting: int = 100, running: int = 4, rate: float = 1000.0) -> Admission:
    """One that has seen the engine read `rate` tokens a second."""
    made = Admission(ttft_target_s=target, max_waiting=waiting, clock=clock)
    made.learn({"max_sequences": running}, {"step_tokens": 0, "step_s": 0.0})
    made.learn({"max_sequences": running}, {"step_tokens": int(rate), "step_s": 1.0})
    return made


def refusal(made: Admission, num_prompt: int, num_sequences: int = 1) -> RequestError:
    with pytest.raises(RequestError) as caught:
        made.take(num_prompt, num_sequences)
    assert status_of(caught.value) == 429
    return caught.value


def test_prompts_that_wait_to_be_read_count() -> None:
    made = admission(Clock())
    first = made.take(1500, 1)
    assert made.expected_s(500) == pytest.approx(2.0)
    made.take(500, 1)
    error = refusal(made, 3000)
    # 5,000 tokens at 1,000 a second are 5 s; 2 s are promised.
    assert error.retry_after_s == pytest.approx(3.0) and headers_of(error)["Retry-After"] == "3"
    made.first_token(first)
    assert made.expected_s(0) == pytest.approx(0.5)


def test_retry_after_is_whole_seconds_rounded_up() -> None:
    made = admission(Clock())
    made.take(2000, 1)
    assert headers_of(refusal(made, 200))["Retry-After"] == "1"
    assert headers_of(refusal(made, 1100))["Retry-After"] == "2"


def test_a_long_prompt_alone_is_taken() -> None:
    assert admission(Clock()).take(100_000, 1).open


def test_sequences_before_this_one_count_by_the_rate_at_which_they_end() -> None:
    clock = Clock()
    made = admission(clock, running=2)
    made.learn({"max_sequences": 2}, {})
    tickets = [made.take(1, 1) for _ in range(4)]
    for ticket in tickets:
        made.first_token(ticket)
        made.end(ticket)
    clock.now += 4.0
    made.learn({"max_sequences": 2}, {})
    running = [made.take(1, 1) for _ in range(3)]
    for ticket in running:
        made.first_token(ticket)
    # One has to end before, and one a second does; a fourth would wait for two.
    assert made.expected_s(1) == pytest.approx(2.0)
    made.take(1, 1)
    error = refusal(made, 1)
    assert error.retry_after_s == pytest.approx(1.0)


def test_until_something_is_measured_all_are_taken_up_to_the_bound() -> None:
    made = Admission(ttft_target_s=0.001, max_waiting=3, clock=Clock())
    tickets = [made.take(10**6, 100) for _ in range(3)]
    assert headers_of(refusal(made, 1))["Retry-After"] == "1" and made.num_refused == 1
    made.end(tickets[0])
    made.take(1, 1)


def test_what_ends_is_counted_once_and_nothing_is_left() -> None:
    made = admission(Clock())
    tickets = [made.take(10, 3) for _ in range(5)]
    for ticket in tickets * 2:
        made.end(ticket)
        made.first_token(ticket)
    assert (made.num_requests, made.num_sequences, made.num_unread) == (0, 0, 0)


def test_an_engine_that_began_anew_is_no_negative_rate() -> None:
    made = admission(Clock())
    made.learn({"max_sequences": 4}, {"step_tokens": 5, "step_s": 0.1})
    made.learn({"max_sequences": 4}, {})
    made.take(1, 1)
    assert made.expected_s(999) == pytest.approx(1.0)
