"""Requests and events as JSON: what is read back is what was written, to the last bit, and what is unknown is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ContextOverflowError, FormatError, UsageError
from herd.engine.grammar.spec import Grammar
from herd.engine.params import TokenParams
from herd.engine.sampler import TokenLogprobs
from herd.engine.stream import Admitted, Failed, PromptLogprobs, TokenEvent, TokenRequest, Tokens
from herd.engine.wire import LENGTH, MAX_FRAME, event_from_list, event_to_list, frame, frame_size, request_from_dict, request_to_dict

ids = st.integers(0, 2**31)
floats = st.floats(allow_nan=False)
# Plain data: what it is made into is made in the test, where its types are checked.
scores = st.lists(st.tuples(ids, floats, st.lists(st.tuples(ids, floats), max_size=3)), max_size=3)
finishes = st.sampled_from([None, "stop", "length", "cancelled"])
params = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 1000),
        "temperature": st.floats(0, 100),
        "top_p": st.floats(0.01, 1),
        "logit_bias": st.lists(st.tuples(ids, st.floats(-100, 100)), max_size=3).map(tuple),
        "allowed_ids": st.none() | st.lists(ids, min_size=1, max_size=3).map(tuple),
        "stop_ids": st.frozensets(ids, max_size=3),
        "seed": st.integers(-(2**80), 2**80),
        "logprobs": st.none() | st.integers(0, 128),
    }
)
GRAMMARS = (None, Grammar.json_object(), Grammar.choice(["a", "ü"]), Grammar.tools(builtin=["brave_search"]))


def made(data: list[tuple[int, float, list[tuple[int, float]]]]) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(token_id=token_id, logprob=logprob, top=tuple(top)) for token_id, logprob, top in data)


def over_the_wire(value: object) -> object:
    data = frame(value)
    assert frame_size(data[: LENGTH.size]) == len(data) - LENGTH.size
    return json.loads(data[LENGTH.size :])


@given(index=st.integers(0, 9), new=st.lists(ids, max_size=4), data=scores, finish=finishes)
def test_events_come_back_as_they_were(index: int, new: list[int], data: Any, finish: Any) -> None:
    events: list[TokenEvent] = [
        Tokens(index=index, ids=tuple(new), logprobs=made(data), finish=finish),
        PromptLogprobs(first=index, logprobs=made(data)),
        Admitted(num_cached=index),
    ]
    for event in events:
        assert event_from_list(over_the_wire(event_to_list(event))) == event  # type: ignore[arg-type]


@given(
    fields=params,
    prompt=st.lists(ids, min_size=1, max_size=5),
    n=st.integers(1, 4),
    tenant=st.text(max_size=4),
    salt=st.binary(max_size=4),
    grammar=st.integers(0, len(GRAMMARS) - 1),
)
def test_requests_come_back_as_they_were(fields: Any, prompt: list[int], n: int, tenant: str, salt: bytes, grammar: int) -> None:
    request = TokenRequest(
        prompt=tuple(prompt), params=TokenParams(**fields), n=n, priority=-n, tenant=tenant, salt=salt, grammar=GRAMMARS[grammar]
    )
    assert request_from_dict(over_the_wire(request_to_dict(request))) == request  # type: ignore[arg-type]


def test_a_log_probability_of_minus_infinity_survives() -> None:
    event = Tokens(index=0, ids=(1,), logprobs=(TokenLogprobs(token_id=1, logprob=-math.inf),))
    assert event_from_list(over_the_wire(event_to_list(event))) == event  # type: ignore[arg-type]


def test_errors_keep_their_class_message_and_hint() -> None:
    told = event_from_list(over_the_wire(event_to_list(Failed(error=ContextOverflowError("too long", hint="shorten it")))))  # type: ignore[arg-type]
    assert isinstance(told, Failed) and type(told.error) is ContextOverflowError
    assert (told.error.message, told.error.hint) == ("too long", "shorten it")


def test_an_error_that_is_none_of_ours_is_told_as_a_bug() -> None:
    told = event_from_list(event_to_list(Failed(error=ZeroDivisionError("division by zero"))))
    assert isinstance(told, Failed) and "ZeroDivisionError" in str(told.error)


def test_unknown_fields_and_values_out_of_range_are_refused() -> None:
    data = request_to_dict(TokenRequest(prompt=(1,), params=TokenParams(max_tokens=1)))
    with pytest.raises(FormatError, match="TokenRequest has no field 'extra'"):
        request_from_dict({**data, "extra": 1})
    with pytest.raises(UsageError, match="temperature is -1"):
        request_from_dict({**data, "params": {**data["params"], "temperature": -1.0}})


def test_a_frame_over_the_limit_is_refused() -> None:
    with pytest.raises(FormatError, match="the limit is"):
        frame_size(LENGTH.pack(MAX_FRAME + 1))
