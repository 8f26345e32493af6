"""Answers that share a row with their prompt: packing loses nothing, and no answer sees another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_rows import columns_of, small_judged  # pyright: ignore[reportMissingImports]
from small_run import PAD, small_model  # pyright: ignore[reportMissingImports]

from herd.data.answers import Judged, pack_answers
from herd.data.columns import ColumnMixture
from herd.train.batch import as_columns, some_rows, to_tensors
from herd.train.objectives.branches import KL_ONLY, answer_tokens, find_answers, ranked_pairs
from herd.train.objectives.forward import branch_positions, hidden_states
from herd.train.objectives.reference import reference_logprobs


@given(st.integers(0, 12), st.integers(0, 10_000), st.integers(1, 4), st.integers(12, 60))
def test_packing_keeps_every_prompt_whole_or_counts_it(number: int, seed: int, num_answers: int, length: int) -> None:
    judged = small_judged(number, seed=seed, grades=tuple(range(num_answers)))
    rows = pack_answers(judged, length, pad_id=PAD)
    kept = [item for item in judged if item.length <= length + 1]
    assert (rows.num_prompts, rows.num_dropped) == (number, number - len(kept))
    found: list[tuple[tuple[int, ...], ...]] = []
    for row in range(len(rows)):
        column = {name: values[row] for name, values in rows.columns.items()}
        for document in range(column["documents"].max() + 1):
            inside = column["documents"] == document
            assert inside.any()
            branches = column["branches"][inside]
            assert bool((np.diff(branches) >= 0).all())
            parts = [tuple(column["tokens"][inside][branches == branch].tolist()) for branch in range(branches.max() + 1)]
            found.append(tuple(parts))
        outside = column["documents"] == -1
        assert not column["counts"][outside].any() and not column["answer"][outside].any() and not column["branches"][outside].any()
    expected = [(tuple(item.prompt), *(tuple(answer.ids) for answer in item.answers)) for item in kept]
    assert sorted(found) == sorted(expected)


def alone(item: Judged, number: int) -> list[int]:
    return [*item.prompt, *item.answers[number].ids]


@torch.no_grad()
def test_every_answer_has_the_hidden_states_of_a_row_of_its_own() -> None:
    model = small_model()
    judged = small_judged(5, seed=3, grades=(1, 2, 3))
    columns = columns_of(judged)
    hidden = hidden_states(model, to_tensors(columns, model.device), torch.float32, length=columns["tokens"].shape[1])
    answers = find_answers(columns)
    assert len(answers) == 15
    for number in range(len(answers)):
        row = int(answers.last[number]) // columns["tokens"].shape[1]
        document = columns["documents"].ravel()[answers.last[number]]
        own = (columns["documents"][row] == document) & (columns["branches"][row] == 0) | (answers.ids[row] == number)
        ids = torch.from_numpy(columns["tokens"][row][own]).long()
        torch.testing.assert_close(hidden[row][torch.from_numpy(own)], model.hidden(ids[None])[0], rtol=1e-4, atol=1e-5)


def test_positions_of_an_answer_go_on_where_the_prompt_ended() -> None:
    documents = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, -1]])
    branches = torch.tensor([[0, 0, 1, 1, 2, 3, 0, 1, 1, 2, 0]])
    assert branch_positions(documents, branches).tolist() == [[0, 1, 2, 3, 2, 2, 0, 1, 2, 1, 0]]


@torch.no_grad()
def test_log_probabilities_of_answers_are_those_of_separate_sequences() -> None:
    model = small_model()
    judged = small_judged(6, seed=8)
    columns = columns_of(judged)
    answers = find_answers(columns)
    tokens, (content,) = answer_tokens(model, columns, answers, torch.float32, "counts")
    expected = {}
    for item in judged:
        for number, answer in enumerate(item.answers):
            ids = torch.tensor([alone(item, number)])
            logprobs = model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            mask = torch.tensor(([False] * len(item.prompt) + list(answer.counts))[1:])
            expected[tuple(ids[0].tolist())] = float(logprobs[mask].sum())
    sums, lengths = tokens.sums(content), tokens.lengths(content)
    found = {}
    for number in range(len(answers)):
        row = int(answers.last[number]) // columns["tokens"].shape[1]
        document = columns["documents"].ravel()[answers.last[number]]
        own = (columns["documents"][row] == document) & (columns["branches"][row] == 0) | (answers.ids[row] == number)
        found[tuple(columns["tokens"][row][own].tolist())] = float(sums[number])
        assert int(lengths[number]) == int(columns["counts"][row][answers.ids[row] == number].sum())
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_stored_reference_is_the_models_own_log_probabilities() -> None:
    model = small_model()
    columns = columns_of(small_judged(6, seed=8))
    seen: list[int] = []
    reference = reference_logprobs(model, columns, micro_batch_size=2, advance=lambda done, _: seen.append(done))
    assert seen == sorted({min(2 * part, len(reference)) for part in range(1, len(seen) + 1)}) and seen[-1] == len(reference)
    tokens, (stored,) = answer_tokens(model, {**columns, "reference": reference}, find_answers(columns), torch.float32, "reference")
    torch.testing.assert_close(tokens.logprobs, stored)
    assert bool((reference[:, 1:][columns["branches"][:, 1:] == 0] == 0).all())


def test_pairs_are_every_two_answers_of_one_prompt_with_different_grades() -> None:
    judged = [
        *small_judged(1, seed=1, grades=(1, 3, 2)),  # edited > chosen > rejected: three pairs
        *small_judged(1, seed=2, grades=(2, 2)),
        *small_judged(1, seed=3, grades=(1, 2)),
        *small_judged(1, seed=4, grades=(1, KL_ONLY)),
    ]
    answers = find_answers(columns_of(judged, length=100))
    pairs = ranked_pairs(answers)
    assert (answers.prompts[pairs[:, 0]] == answers.prompts[pairs[:, 1]]).all()
    assert sorted(answers.grades[pairs].tolist()) == [[2, 1], [2, 1], [3, 1], [3, 2]]


def test_a_mixture_of_columns_has_the_order_of_the_mixture_of_rows() -> None:
    tables = {"a": columns_of(small_judged(9, seed=1)), "b": columns_of(small_judged(5, seed=2))}
    mixture = ColumnMixture(tables, {"a": 1.0, "b": 2.0}, seed=3, num_samples=40)
    batch = mixture.batch(5, 7)
    assert batch.keys() == tables["a"].keys() and len(mixture) == 40
    plain = mixture.order.batch(5, 7)
    for name, expected in zip(("tokens", "documents", "counts"), plain, strict=True):
        np.testing.assert_array_equal(batch[name], expected)
    row = batch["branches"][3]
    assert any(np.array_equal(row, other) for table in tables.values() for other in table["branches"])
    assert mixture.epochs(40).keys() == {"a", "b"}


def test_both_forms_of_a_batch_are_cut_alike() -> None:
    columns = columns_of(small_judged(5, seed=1))
    three = (columns["tokens"], columns["documents"], columns["counts"])
    short, long = some_rows(three, 1, 2), some_rows(as_columns(three), 1, 2)
    for part, name in zip(short, ("tokens", "documents", "counts"), strict=True):
        np.testing.assert_array_equal(part, long[name])
