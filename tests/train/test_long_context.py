"""Growing the context: lengths and batches, the gate between them, needles in token ids, and the rotations switched on."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import PAD, small_model, small_stage  # pyright: ignore[reportMissingImports]

from herd.base.config_io import apply_overrides, from_toml, to_toml
from herd.base.errors import ConfigError, GateError
from herd.model.config import RopeScaling
from herd.model.rope import rope_frequencies
from herd.model.transformer import Transformer
from herd.train.context_config import LongContextConfig
from herd.train.long_context import LengthGate, NeedleScore, check_passed, with_config
from herd.train.needles import Needle, depths, found_by_depth, hide, is_found, share_found


def config(**changes: Any) -> LongContextConfig:
    fields: dict[str, Any] = {
        "stage": small_stage(sequence_length=32, batch_size=16, micro_batch_size=4, num_steps=20),
        "lengths": (64, 128, 512),
    }
    return LongContextConfig(**(fields | changes))


def test_every_length_has_the_same_tokens_a_step_and_no_more_in_memory_than_it_must() -> None:
    shapes = [(name, stage.sequence_length, stage.batch_size, stage.micro_batch_size) for name, stage in config().stages()]
    assert shapes == [("long-64", 64, 8, 2), ("long-128", 128, 4, 1), ("long-512", 512, 1, 1)]
    assert {stage.batch_size * stage.sequence_length for _, stage in config().stages()} == {512}
    assert config(lengths=(100,)).at(100).batch_size == 5, "as many whole rows as the tokens give"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "a long-context stage has no lengths"),
        ({"lengths": (64, 64)}, "lengths has 64 after 64"),
        ({"lengths": (1,)}, "a row of 1 is not within the 512 tokens of a step"),
        ({"lengths": (1024,)}, "a row of 1024 is not within the 512 tokens of a step"),
        ({"min_steps": 21}, "min_steps is 21, it must lie between 1 and stage.num_steps (20)"),
        ({"recovery": -0.1}, "recovery is -0.1"),
        ({"needle_pass": 1.1}, "needle_pass is 1.1"),
        ({"num_needles": -1}, "num_needles is -1"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        config(**changes)
    assert caught.value.hint


def test_a_config_goes_through_toml_and_is_reached_by_overrides() -> None:
    ours = config()
    assert from_toml(LongContextConfig, to_toml(ours)) == ours
    changed = apply_overrides(ours, ["lengths=64,256", "stage.lr=1e-4", "rope_scaling.factor=32"])
    assert changed.lengths == (64, 256) and changed.stage.lr == 1e-4 and changed.rope_scaling == RopeScaling(factor=32.0)


def test_the_rotations_are_switched_on_and_the_weights_stay() -> None:
    model = small_model()
    longer = config(rope_scaling=RopeScaling(factor=8.0, original_max_position_embeddings=16)).extended(model.config)
    assert (longer.max_position_embeddings, longer.rope_scaling is not None) == (512, True)
    other = with_config(model, longer)
    assert other.config == longer and other.training == model.training
    for (name, left), (_, right) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert left.data_ptr() == right.data_ptr() and right.requires_grad, name
    assert not torch.equal(rope_frequencies(model.config), rope_frequencies(other.config))
    tokens = torch.arange(40)[None] % 90
    assert not torch.allclose(model(tokens), other(tokens))
    kept = config(rope_scaling=None).extended(model.config)
    assert kept.rope_scaling is None and torch.equal(with_config(model, kept)(tokens), model(tokens))


@given(
    hay=st.lists(st.integers(10, 19), min_size=1, max_size=30),
    length=st.integers(12, 200),
    depth=st.floats(0, 1),
)
def test_a_needle_has_its_length_its_fact_at_its_depth_and_its_answer_at_the_end(hay: list[int], length: int, depth: float) -> None:
    needle = hide(hay, [1, 2, 3], [4, 5], [6, 7], length=length, depth=depth, bos=0)
    assert len(needle.ids) == length and needle.ids[0] == 0
    assert needle.ids[needle.answer_start :] == (6, 7) and needle.ids[needle.answer_start - 2 : needle.answer_start] == (4, 5)
    place = needle.ids.index(1)
    assert needle.ids[place : place + 3] == (1, 2, 3)
    assert place - 1 == round(depth * (length - 8))
    assert sorted(set(needle.ids[1:place] + needle.ids[place + 3 : -4])) == sorted(set((hay * length)[: length - 8]))


def test_a_needle_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="a needle of 8 tokens does not fit into 7"):
        hide([9], [1, 2, 3], [4, 5], [6, 7], length=7, depth=0.5, bos=0)
    assert depths(5) == [0.0, 0.25, 0.5, 0.75, 1.0] and depths(1) == [0.0]


def finder(reach: int) -> Transformer:
    """A model that writes what followed the twin of the last two tokens, if that is within reach."""
    model = small_model()

    def hidden(tokens: torch.Tensor) -> torch.Tensor:
        ids = tokens[0].tolist()
        out = torch.zeros(1, len(ids), 100)
        for place in range(1, len(ids)):
            for earlier in range(place - 1, max(0, place - reach), -1):
                if ids[earlier] == ids[place] and ids[earlier - 1] == ids[place - 1]:
                    out[0, place, ids[earlier + 1]] = 1.0
                    break
        return out

    model.hidden = hidden  # type: ignore[method-assign]
    model.logits = lambda hidden: hidden  # type: ignore[method-assign]
    return model


def needles(length: int = 80) -> list[Needle]:
    # The question repeats the fact's beginning, so that the fact can be continued.
    return [hide(list(range(10, 60)), [1, 2, 6, 7], [1, 2], [6, 7], length=length, depth=depth, bos=0) for depth in depths(5)]


def test_found_is_what_greedy_decoding_would_write() -> None:
    found = {needle.depth: is_found(finder(50), needle) for needle in needles()}
    assert found == {0.0: False, 0.25: False, 0.5: True, 0.75: True, 1.0: True}


def test_an_untrained_model_finds_nothing_and_no_needles_are_all_found() -> None:
    model = small_model()
    assert share_found(model, needles()) < 0.5 and share_found(model, []) == 1.0
    assert set(found_by_depth(model, needles())) == set(depths(5))


def gate(**changes: Any) -> LengthGate:
    return LengthGate(config=config(recovery=0.01, **changes), before={"en": 2.0, "de": 3.0}, needles=needles())


def test_the_gate_opens_when_short_text_has_recovered_and_needles_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shares = small_model(), iter([0.8, 1.0, 1.0, 1.0])
    monkeypatch.setattr("herd.train.long_context.share_found", lambda *_: next(shares))
    ours = gate(min_steps=10)
    good = {"en": 2.01, "de": 2.9}
    assert not ours(model, 10, good) and ours.problems == ["80% of 5 needles are found, below 100%"]
    assert not ours(model, 10, {"en": 2.05, "de": 2.9}) and ours.problems == ["en has 2.0500 bits per byte, over 2.0200"]
    assert not ours(model, 9, good) and ours.problems == [], "not before its least steps"
    assert ours(model, 10, good) and NeedleScore(ours, length=64, every=5)(model, 10) == {"64": 1.0}
    assert model.training


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is warned of, also where another test has made herd's log its own."""
    logger = logging.getLogger("herd")
    before = logger.propagate
    logger.propagate = True
    with caplog.at_level(logging.WARNING, logger="herd"):
        yield caplog
    logger.propagate = before


def test_a_length_that_is_never_learned_stops_the_run_or_is_told(warnings: pytest.LogCaptureFixture) -> None:
    stuck = gate()
    stuck.problems = stuck.judge(small_model(), {"en": 2.5, "de": 2.9})
    with pytest.raises(GateError, match=r"the context of 64 tokens is not learned after 20 steps: en has 2\.5000") as caught:
        check_passed(stuck, length=64, finished=False)
    assert caught.value.exit_code == 5 and "on_stuck=go_on" in str(caught.value.hint)
    check_passed(stuck, length=64, finished=True)
    stuck.config = replace(stuck.config, on_stuck="go_on")
    check_passed(stuck, length=64, finished=False)
    assert "so the next length follows" in warnings.text


def test_padding_is_no_token_of_a_needle() -> None:
    assert all(PAD not in needle.ids for needle in needles())
