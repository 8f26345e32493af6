"""What can never run is refused before it is queued, with the figures and a way out; sizes that would stall are refused at the start."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine

from herd.base.errors import ConfigError, ContextOverflowError, DoesNotFitError, TokenizerError, UsageError
from herd.engine.limits import Limits, check_fits
from herd.engine.prefix import MAX_TOKEN_ID

SIZES: dict[str, Any] = {"token_budget": 64, "max_sequences": 8, "max_context": 100, "chunk_alignment": 16}


def limits(**changes: Any) -> Limits:
    return Limits(**{**SIZES, **changes})


@pytest.mark.parametrize("name", ["token_budget", "max_sequences", "max_context", "chunk_alignment"])
def test_no_size_is_below_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0, it must be at least 1") as caught:
        limits(**{name: 0})
    assert caught.value.hint


@pytest.mark.parametrize("reserve", [-0.1, 1.1, float("nan")])
def test_the_reserve_is_a_share(reserve: float) -> None:
    with pytest.raises(ConfigError, match="it must be 0 to 1"):
        limits(reserve=reserve)


def test_the_budget_has_room_for_every_sequence_and_a_chunk() -> None:
    limits(token_budget=7 + 16)
    with pytest.raises(ConfigError, match="token_budget is 22, 8 sequences and chunks of 16 need 23") as caught:
        limits(token_budget=7 + 15)
    assert "set token_budget to 23 or more" in str(caught.value.hint)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(TokenizerError, match="the prompt is empty"):
        limits().check_prompt(())


@pytest.mark.parametrize("token_id", [-1, MAX_TOKEN_ID + 1])
def test_an_id_that_no_tokenizer_has_is_refused_before_it_can_stop_a_step(token_id: int) -> None:
    with pytest.raises(TokenizerError, match=f"holds the id {token_id}"):
        limits().check_prompt((1, token_id, 2))


def test_a_prompt_that_fills_the_context_is_refused_and_nothing_is_cut() -> None:
    assert limits().new_tokens(99, 5) == 1
    with pytest.raises(ContextOverflowError, match="the prompt has 100 tokens and the context is 100") as caught:
        limits().new_tokens(100, 5)
    assert "nothing was cut" in str(caught.value.hint)


def test_no_new_tokens_are_no_request() -> None:
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        limits().new_tokens(10, 0)


def test_what_could_not_run_alone_is_refused_with_both_figures() -> None:
    check_fits(10, 7, num_blocks=4, block_size=4)
    with pytest.raises(DoesNotFitError, match="10 prompt tokens and 8 new ones need 5 cache blocks of 4, there are 4") as caught:
        check_fits(10, 8, num_blocks=4, block_size=4)
    assert "lower max_tokens to 7 or less" in str(caught.value.hint)


def test_where_the_prompt_alone_is_too_long_fewer_new_tokens_are_not_advised() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        check_fits(18, 1, num_blocks=4, block_size=4)
    assert str(caught.value.hint).startswith("shorten the prompt")


def test_the_advice_of_a_refusal_is_right() -> None:
    engine = FakeEngine(num_blocks=1 + 4, block_size=4)
    with pytest.raises(DoesNotFitError) as caught:
        engine.submit([1] * 10, 30)
    room = int(str(caught.value.hint).removeprefix("lower max_tokens to ").split()[0])
    engine.submit([1] * 10, room)
    with pytest.raises(DoesNotFitError):
        engine.submit([1] * 10, room + 1)
    engine.run()


def test_a_refused_group_leaves_nothing_behind() -> None:
    engine = FakeEngine(num_blocks=1 + 4, block_size=4)
    for prompt, error in (([1] * 17, DoesNotFitError), ([1] * 64, ContextOverflowError), ([], TokenizerError)):
        with pytest.raises(error):
            engine.submit(prompt, n=3)
        assert engine.scheduler.num_waiting == 0 and not engine.step().items


def test_asking_whether_it_fits_queues_nothing() -> None:
    engine = FakeEngine(num_blocks=1 + 4, block_size=4)
    engine.scheduler.check_fits(10, 7)
    with pytest.raises(DoesNotFitError):
        engine.scheduler.check_fits(10, 8)
    assert engine.scheduler.num_waiting == 0


def test_more_tokens_than_the_context_leaves_are_lowered_to_it() -> None:
    engine = FakeEngine(max_context=12, block_size=4)
    (sequence,) = engine.submit([1, 2, 3], 1000)
    assert sequence.max_new_tokens == 9
    engine.run()
    assert sequence.finish_reason == "stop" or len(sequence.output) == 9
