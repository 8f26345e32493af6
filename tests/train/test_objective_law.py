"""The law, for every objective: sums over units divided by their number in the whole batch, however it is cut, ordered or padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from objective_rows import LOSSES, every_objective  # pyright: ignore[reportMissingImports]
from small_run import small_stage  # pyright: ignore[reportMissingImports]
from torch import Tensor

from herd.model.transformer import Transformer
from herd.train.batch import Columns, some_rows
from herd.train.objectives.objective import Objective, mean_loss
from herd.train.step import StepResult, train_step

NAMES = ("next token", "ranking", "kto", *LOSSES, "distillation 0", "distillation 1")
Case = tuple[Objective, Transformer, Columns]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    found = every_objective(tmp_path_factory.mktemp("teacher"))
    assert set(found) == set(NAMES)
    return found


def stepped(case: Case, columns: Columns, micro_batch_size: int) -> tuple[StepResult, dict[str, Tensor]]:
    """A step that changes nothing, and the gradients that its optimiser saw."""
    objective, model, _ = case
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen: dict[str, Tensor] = {}

    def look(*_: object) -> None:
        seen.update({name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None})

    optimizer.register_step_pre_hook(look)
    stage = small_stage(batch_size=len(columns["tokens"]), micro_batch_size=micro_batch_size, grad_clip=0.0)
    return train_step(model, optimizer, columns, stage, lr=0.0, objective=objective), seen


def whole(columns: Columns, multiple: int = 6) -> Columns:
    """As many rows as micro batches of 1, 2, 3 and 6 divide."""
    return some_rows(columns, 0, len(columns["tokens"]) // multiple * multiple)


def assert_same(left: tuple[StepResult, dict[str, Tensor]], right: tuple[StepResult, dict[str, Tensor]]) -> None:
    assert left[0].num_counted == right[0].num_counted
    assert left[0].loss == pytest.approx(right[0].loss, rel=1e-5, abs=1e-6)
    assert left[0].metrics.keys() == right[0].metrics.keys()
    for name, value in left[0].metrics.items():
        assert value == pytest.approx(right[0].metrics[name], rel=1e-4, abs=1e-5), name
    scale = max(float(gradient.abs().max()) for gradient in right[1].values())
    assert scale > 0
    for name, gradient in left[1].items():
        torch.testing.assert_close(gradient, right[1][name], rtol=2e-4, atol=2e-5 * scale, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", NAMES)
def test_every_cut_into_micro_batches_gives_the_same_loss_gradients_and_metrics(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    columns = whole(case[2])
    units = [next(iter(case[0].units(some_rows(columns, row, 1)).values())) for row in range(len(columns["tokens"]))]
    assert len(set(units)) > 1, "rows are to hold unequal numbers of units, else a mean of means would pass"
    expected = stepped(case, columns, len(columns["tokens"]))
    for micro_batch_size in (1, 2, 3):
        assert_same(stepped(case, columns, micro_batch_size), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_rows_does_not_matter(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    columns = whole(case[2])
    order = np.random.default_rng(0).permutation(len(columns["tokens"]))
    assert_same(stepped(case, {key: column[order] for key, column in columns.items()}, 2), stepped(case, columns, 2))


@pytest.mark.parametrize("name", NAMES)
def test_units_add_up_and_the_loss_is_the_mean_of_rows_weighted_by_their_units(cases: dict[str, Case], name: str) -> None:
    objective, model, all_rows = cases[name]
    columns = whole(all_rows)
    rows = [some_rows(columns, row, 1) for row in range(len(columns["tokens"]))]
    counts = objective.units(columns)
    for unit, count in counts.items():
        assert count == sum(objective.units(row)[unit] for row in rows)
    with torch.no_grad():
        shared = objective.prepare(model, [columns], torch.float32)
        parts = [objective.sums(model, row, torch.float32, shared) for row in rows]
        expected = mean_loss([objective.sums(model, columns, torch.float32, shared)], counts)
    total = sum(sum(float(part.terms[unit]) for part in parts) / count for unit, count in counts.items())
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_padding_has_no_part_in_it(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    columns = dict(whole(case[2]))
    assert bool((columns["documents"] == -1).any())
    expected = stepped(case, columns, 3)
    columns["tokens"] = np.where(columns["documents"] == -1, 7, columns["tokens"])
    assert_same(stepped(case, columns, 3), expected)


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_a_unit_have_no_loss(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    columns = {key: column.copy() for key, column in whole(case[2]).items()}
    for key in ("counts", "branches"):
        if key in columns:
            columns[key][:] = 0
    result, _ = stepped(case, columns, 2)
    assert (result.loss, result.num_counted) == (0.0, 0)


def test_the_gradient_is_that_of_the_loss(cases: dict[str, Case]) -> None:
    # Finite differences of the reported loss along a random direction, in float64.
    for name in NAMES:
        objective, model, all_rows = cases[name]
        columns = whole(all_rows)
        direction = {key: torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) for key, value in model.named_parameters()}
        _, seen = stepped(cases[name], columns, 3)
        slope = sum(float((seen[key] * direction[key]).sum()) for key in seen)

        def loss_at(step: float, objective: Objective = objective, model: Transformer = model, columns: Columns = columns) -> float:
            with torch.no_grad():
                for key, value in model.named_parameters():
                    value.add_(direction[key], alpha=step)  # noqa: B023  called at once
                # The reference point of KTO carries no gradient: it stays where it was.
                found = mean_loss([objective.sums(model, columns, torch.float32, shared)], objective.units(columns))  # noqa: B023
                for key, value in model.named_parameters():
                    value.sub_(direction[key], alpha=step)  # noqa: B023
            return found

        with torch.no_grad():
            shared = objective.prepare(model, [columns], torch.float32)
        step = 3e-4
        numeric = (loss_at(step) - loss_at(-step)) / (2 * step)
        assert numeric == pytest.approx(slope, rel=0.03, abs=0.02), name
