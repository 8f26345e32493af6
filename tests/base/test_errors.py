"""The error tree: codes and exit codes are what programs rely on, hints are what people do next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import (
    CheckpointError,
    ConfigError,
    ContextOverflowError,
    DoesNotFitError,
    DownloadError,
    FormatError,
    GateError,
    HerdError,
    NotFoundError,
    TokenizerError,
    UsageError,
    did_you_mean,
    nearest,
)
from herd.train.trainer import DivergedError

TREE: dict[type[HerdError], tuple[str, int, type[Exception]]] = {
    HerdError: ("error", 1, Exception),
    UsageError: ("usage", 2, HerdError),
    ConfigError: ("config", 1, HerdError),
    NotFoundError: ("not_found", 3, HerdError),
    DoesNotFitError: ("does_not_fit", 4, HerdError),
    ContextOverflowError: ("context_overflow", 4, DoesNotFitError),
    GateError: ("gate", 5, HerdError),
    CheckpointError: ("checkpoint", 1, HerdError),
    TokenizerError: ("tokenizer", 1, HerdError),
    FormatError: ("format", 1, HerdError),
    DownloadError: ("download", 1, HerdError),
    DivergedError: ("diverged", 1, HerdError),
}


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_has_its_code_its_exit_code_and_its_place(kind: type[HerdError]) -> None:
    code, exit_code, parent = TREE[kind]
    assert (kind.code, kind.exit_code) == (code, exit_code)
    assert kind.__bases__ == (parent,)
    assert (kind.__doc__ or "").strip()


def test_no_two_errors_share_a_code() -> None:
    assert len({kind.code for kind in TREE}) == len(TREE)


def test_an_error_carries_its_message_and_hint_as_text_and_as_json() -> None:
    error = NotFoundError("no model is named 'lama'", hint="did you mean 'llama'?")
    assert str(error) == error.message == "no model is named 'lama'"
    assert error.to_dict() == {"code": "not_found", "message": "no model is named 'lama'", "hint": "did you mean 'llama'?"}
    assert HerdError("broken").to_dict() == {"code": "error", "message": "broken", "hint": None}


def test_the_nearest_name_is_found_and_a_far_one_is_not() -> None:
    assert nearest("pretrian", ["pretrain", "sft"]) == "pretrain"
    assert nearest("zzz", ["pretrain", "sft"]) is None
    assert nearest("anything", []) is None


def test_a_hint_names_the_nearest_or_falls_back_on_the_list() -> None:
    assert did_you_mean("tny", ["tiny", "cria"], otherwise="recipes: tiny, cria") == "did you mean 'tiny'?"
    assert did_you_mean("zzzzzz", ["tiny", "cria"], otherwise="recipes: tiny, cria") == "recipes: tiny, cria"
    assert did_you_mean("zzzzzz", ["tiny"]) is None


@given(st.text(min_size=1), st.lists(st.text()))
def test_a_known_name_is_its_own_nearest(name: str, others: list[str]) -> None:
    assert nearest(name, [*others, name]) == name
