"""`LLM.embed`: texts and ids as vectors of length 1, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from herd.base.errors import ContextOverflowError, TokenizerError, UsageError
from herd.inference.llm import LLM

TEXTS = ["The herd", "", "El rebaño está en la montaña."]


def test_the_mean_is_of_all_states_of_the_text_behind_begin_of_text(tiny_llm: LLM) -> None:
    found = tiny_llm.embed(TEXTS, normalize=False)
    assert found.shape == (3, tiny_llm.model.config.hidden_size) and found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([tiny_llm.tokenizer.encode(text, bos=True)])
        with torch.inference_mode():
            states = tiny_llm.model.hidden(ids)[0].double()
        np.testing.assert_allclose(vector, states.mean(dim=0).numpy(), atol=2e-5)


def test_vectors_have_length_1_and_are_those_of_each_text_alone(tiny_llm: LLM) -> None:
    for pooling in ("mean", "last"):
        together = tiny_llm.embed(TEXTS, pooling)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
        assert all((tiny_llm.embed(text, pooling)[0] == vector).all() for text, vector in zip(TEXTS, together, strict=True))


def test_ids_are_taken_as_they_are_and_no_text_gives_no_row(tiny_llm: LLM) -> None:
    ids = tiny_llm.tokenizer.encode("The herd", bos=True)
    assert (tiny_llm.embed([ids]) == tiny_llm.embed("The herd")).all()
    assert tiny_llm.embed([]).shape == (0, tiny_llm.model.config.hidden_size)


def test_what_cannot_be_embedded_is_refused(tiny_llm: LLM, unchecked_types: None) -> None:
    with pytest.raises(UsageError, match="pooling is 'max'"):
        tiny_llm.embed("a", "max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ContextOverflowError):
        tiny_llm.embed("herd " * 1000)
    with pytest.raises(TokenizerError):
        tiny_llm.embed([[10**6]])
    with pytest.raises(UsageError, match="list of token ids"):
        tiny_llm.embed([1, 2])  # pyright: ignore[reportArgumentType]
