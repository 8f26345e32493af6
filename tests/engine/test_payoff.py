"""When guessing pays: fewer guesses as they fail, pauses that grow, and a new beginning after each."""

from __future__ import annotations

from herd.engine.payoff import Payoff


def test_guesses_that_fail_become_fewer_and_then_pause() -> None:
    payoff, counts = Payoff(), list[int]()
    while not payoff.is_paused:
        counts.append(payoff.worth(4))
        payoff.observe(counts[-1], 0)
    assert counts[0] == 4 and counts == sorted(counts, reverse=True) and counts[-1] < 4 and len(counts) < 8
    payoff.advance(15)
    assert payoff.is_paused
    payoff.advance(1)
    assert not payoff.is_paused and payoff.worth(4) == 4


def test_each_pause_is_twice_as_long_up_to_a_limit() -> None:
    payoff, pauses = Payoff(), list[int]()
    for _ in range(7):
        while not payoff.is_paused:
            payoff.observe(4, 0)
        pauses.append(0)
        while payoff.is_paused:
            payoff.advance(1)
            pauses[-1] += 1
    assert pauses == [16, 32, 64, 128, 256, 256, 256]


def test_guesses_that_come_true_go_on_and_none_made_is_no_failure() -> None:
    payoff = Payoff()
    for _ in range(100):
        payoff.observe(4, 2)
        payoff.observe(0, 0)
    assert not payoff.is_paused and payoff.worth(4) == 4 and (payoff.num_guessed, payoff.num_accepted) == (400, 200)
    assert payoff.worth(1) == 1
