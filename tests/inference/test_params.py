"""Sampling parameters: what they refuse, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from herd.base.errors import UsageError
from herd.inference.params import SamplingParams


def test_the_defaults_are_those_of_llamas_reference() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.9, 0, 0.0)
    assert params.max_tokens is None and params.seed is None and params.stop == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", -0.5),
        ("min_p", 1.5),
        ("max_tokens", 0),
        ("max_tokens", -3),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_the_range(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        SamplingParams(**{name: value})
    assert str(value) in caught.value.message and caught.value.hint


@pytest.mark.parametrize("value", [{"temperature": 0.0}, {"top_p": 1.0}, {"top_k": 1}, {"min_p": 1.0}, {"max_tokens": 1}, {"seed": -7}])
def test_the_edges_of_the_ranges_are_allowed(value: dict[str, Any]) -> None:
    SamplingParams(**value)


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(UsageError, match="stop text is empty"):
        SamplingParams(stop=("a", ""))
