"""One step: the loss is the mean over the counted tokens of the whole batch, however it is cut, and documents do not see each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_run import LENGTH, PAD, VOCAB, as_batch, small_model, small_rows, small_stage  # pyright: ignore[reportMissingImports]
from torch import Tensor

from herd.data.rows import Document, pack
from herd.model.transformer import Transformer
from herd.train.optimizer import build_adamw
from herd.train.step import Batch, StepResult, batch_loss_sum, some_rows, train_step

BATCH = as_batch(small_rows(60, seed=5), 0, 12)


def step_with_gradients(
    model: Transformer, batch: Batch, *, micro_batch_size: int, grad_clip: float = 0.0, compute_dtype: str = "float32"
) -> tuple[StepResult, dict[str, Tensor]]:
    """A step of `train_step`, and the gradients that its optimiser saw."""
    stage = small_stage(batch_size=len(batch[0]), micro_batch_size=micro_batch_size, grad_clip=grad_clip, compute_dtype=compute_dtype)
    optimizer = build_adamw(model, stage)
    seen: dict[str, Tensor] = {}

    def look(*_: object) -> None:
        seen.update({name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None})

    optimizer.register_step_pre_hook(look)
    result = train_step(model, optimizer, batch, stage, lr=1e-3)
    return result, seen


def norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))


def document_losses(model: Transformer, batch: Batch) -> list[float]:
    """The summed loss of every document of every row, each run through the model alone and scored by torch, at positions from 0."""
    losses: list[float] = []
    for tokens, documents, counts in zip(*batch, strict=True):
        for number in range(documents.max() + 1):
            ids = torch.from_numpy(tokens[documents == number]).long()
            counted = torch.from_numpy(counts[documents == number])[1:]
            logits = model(ids[None, :-1])[0]
            losses.append(F.cross_entropy(logits[counted], ids[1:][counted], reduction="sum").item())
    return losses


def test_the_loss_is_that_of_every_document_alone_over_the_number_of_counted_tokens() -> None:
    model = small_model()
    with torch.no_grad():
        losses = document_losses(model, BATCH)
    assert len(losses) > 20
    result, _ = step_with_gradients(model, BATCH, micro_batch_size=12)
    assert result.num_counted == int(BATCH[2].sum())
    assert result.loss == pytest.approx(sum(losses) / result.num_counted, rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 6])
def test_every_micro_batch_size_gives_the_same_loss_and_gradients(micro_batch_size: int) -> None:
    # Rows hold unequal numbers of counted tokens, so a mean over micro batches of their means would show.
    assert len(set(BATCH[2].sum(1).tolist())) > 3
    expected, whole = step_with_gradients(small_model(), BATCH, micro_batch_size=12)
    result, gradients = step_with_gradients(small_model(), BATCH, micro_batch_size=micro_batch_size)
    assert result.num_counted == expected.num_counted
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert gradients.keys() == whole.keys() == dict(small_model().named_parameters()).keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def row_of(*documents: list[int]) -> Batch:
    """One row with these documents in this order, padded."""
    tokens = np.full((1, LENGTH + 1), PAD, dtype=np.int32)
    numbers = np.full((1, LENGTH + 1), -1, dtype=np.int16)
    counts = np.zeros((1, LENGTH + 1), dtype=np.bool_)
    end = 0
    for number, ids in enumerate(documents):
        start, end = end, end + len(ids)
        tokens[0, start:end], numbers[0, start:end], counts[0, start + 1 : end] = ids, number, True
    return tokens, numbers, counts


@torch.no_grad()
def test_a_documents_loss_does_not_depend_on_its_neighbours_or_its_place() -> None:
    model = small_model()
    rng = np.random.default_rng(0)
    ids = rng.integers(0, PAD, 8).tolist()
    others = [rng.integers(0, PAD, 7).tolist() for _ in range(4)]
    alone = batch_loss_sum(model, row_of(ids), torch.float32)
    for before, after in ([others[0]], []), ([], [others[1]]), (others[:2], []), ([others[2]], [others[3]]):
        tokens, numbers, counts = row_of(*before, ids, *after)
        counts = counts & (numbers == len(before))
        torch.testing.assert_close(batch_loss_sum(model, (tokens, numbers, counts), torch.float32), alone, rtol=1e-5, atol=1e-4)
    # Without the document numbers the neighbour does show: the mask is what hides it.
    tokens, numbers, counts = row_of(others[0], ids)
    leaky = batch_loss_sum(model, (tokens, np.zeros_like(numbers), counts & (numbers == 1)), torch.float32)
    assert abs(leaky.item() - alone.item()) > 0.01


def test_neighbours_get_no_gradient_from_a_document() -> None:
    model = small_model(tied=False)
    tokens, numbers, counts = row_of([1, 2, 3, 4, 5], [11, 12, 13, 14, 15], [21, 22, 23, 24, 25])
    batch_loss_sum(model, (tokens, numbers, counts & (numbers == 1)), torch.float32).backward()
    gradient = model.model.embed_tokens.weight.grad
    assert gradient is not None
    # The last token of a document is only ever a target.
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [11, 12, 13, 14]


def test_padding_and_uncounted_answers_change_nothing() -> None:
    tokens, documents, counts = (part.copy() for part in BATCH)
    assert bool((documents == -1).any())
    expected, gradients = step_with_gradients(small_model(), (tokens, documents, counts), micro_batch_size=12)
    tokens[documents == -1] = 7
    again, same = step_with_gradients(small_model(), (tokens, documents, counts), micro_batch_size=12)
    assert again == expected
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)


def test_the_norm_reported_is_that_before_clipping_and_the_update_sees_the_clipped_gradient() -> None:
    free, gradients = step_with_gradients(small_model(), BATCH, micro_batch_size=4)
    assert free.grad_norm == pytest.approx(norm(gradients), rel=1e-5)
    limit = free.grad_norm / 3
    clipped, smaller = step_with_gradients(small_model(), BATCH, micro_batch_size=4, grad_clip=limit)
    assert clipped.grad_norm == free.grad_norm
    assert norm(smaller) == pytest.approx(limit, rel=1e-4)
    for name, gradient in smaller.items():
        torch.testing.assert_close(gradient * 3, gradients[name], rtol=1e-4, atol=1e-7)


def test_a_norm_below_the_limit_is_left_alone() -> None:
    free, gradients = step_with_gradients(small_model(), BATCH, micro_batch_size=4)
    _, same = step_with_gradients(small_model(), BATCH, micro_batch_size=4, grad_clip=free.grad_norm * 2)
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)


def test_the_step_takes_the_rate_it_is_given_and_leaves_no_gradient() -> None:
    model, stage = small_model(), small_stage(batch_size=12, micro_batch_size=12, weight_decay=0.0)
    optimizer = build_adamw(model, stage)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_step(model, optimizer, BATCH, stage, lr=1e-4)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-4]
    # Adam's first update is the rate for every weight with a gradient.
    largest = max(float((parameter.detach() - before[name]).abs().max()) for name, parameter in model.named_parameters())
    assert largest == pytest.approx(1e-4, rel=1e-2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_without_a_counted_token_has_no_loss_and_no_gradient() -> None:
    tokens, documents, counts = BATCH
    result, gradients = step_with_gradients(small_model(), (tokens, documents, np.zeros_like(counts)), micro_batch_size=4)
    assert (result.loss, result.num_counted, result.grad_norm) == (0.0, 0, 0.0)
    assert not any(bool(gradient.any()) for gradient in gradients.values())


def test_bfloat16_compute_is_near_float32_and_masters_and_gradients_stay_float32() -> None:
    model = small_model()
    exact, wide = step_with_gradients(small_model(), BATCH, micro_batch_size=4)
    result, narrow = step_with_gradients(model, BATCH, micro_batch_size=4, compute_dtype="bfloat16")
    assert result.loss != exact.loss
    assert result.loss == pytest.approx(exact.loss, rel=5e-3)
    assert result.grad_norm == pytest.approx(exact.grad_norm, rel=3e-2)
    assert {gradient.dtype for gradient in narrow.values()} == {torch.float32} == {parameter.dtype for parameter in model.parameters()}
    difference = norm({name: narrow[name] - wide[name] for name in wide})
    assert difference / norm(wide) < 0.05


def test_some_rows_are_the_same_rows_of_every_part() -> None:
    for part, whole in zip(some_rows(BATCH, 3, 2), BATCH, strict=True):
        np.testing.assert_array_equal(part, whole[3:5])
    assert all(len(part) == 2 for part in some_rows(BATCH, 10, 8))


def test_an_untrained_model_has_the_loss_of_guessing_and_steps_on_one_batch_lower_it() -> None:
    model, stage = small_model(), small_stage(batch_size=12, micro_batch_size=12)
    optimizer = build_adamw(model, stage)
    losses = [train_step(model, optimizer, BATCH, stage, lr=3e-3).loss for _ in range(20)]
    assert losses[0] == pytest.approx(math.log(VOCAB), rel=0.1)
    assert losses[-1] < losses[0] - 0.5


@torch.no_grad()
def test_the_loss_of_a_dialogue_is_that_of_its_answers() -> None:
    ids, answer = list(range(10)), [False] * 3 + [True] * 2 + [False] * 3 + [True] * 2
    rows = pack([Document(ids=ids, counts=answer)], LENGTH, pad_id=PAD)
    model = small_model()
    logits = model(torch.tensor([ids]))[0]
    expected = F.cross_entropy(logits[[2, 3, 7, 8]], torch.tensor([3, 4, 8, 9]), reduction="sum")
    torch.testing.assert_close(batch_loss_sum(model, as_batch(rows), torch.float32), expected, rtol=1e-5, atol=1e-5)
