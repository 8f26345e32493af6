"""AdamW: decay on matrices and not on norms, the stage's numbers, and one update worked out by hand."""

from __future__ import annotations

import pytest
import torch
from small_run import small_model, small_stage  # pyright: ignore[reportMissingImports]

from herd.train.optimizer import build_adamw


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_decay_and_norms_do_not_and_every_parameter_is_in_one_group(tied: bool) -> None:
    model = small_model(tied=tied)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = build_adamw(model, small_stage(weight_decay=0.2)).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.2, 0.0)
    assert {names[id(parameter)] for parameter in kept["params"]} == {name for name in names.values() if "norm" in name}
    together = [id(parameter) for parameter in (*decayed["params"], *kept["params"])]
    assert sorted(together) == sorted(names)
    assert ("lm_head.weight" in {names[id(parameter)] for parameter in decayed["params"]}) is not tied


def test_the_stages_numbers_reach_the_optimiser() -> None:
    optimizer = build_adamw(small_model(), small_stage(lr=0.5, beta1=0.8, beta2=0.7, eps=1e-5))
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.7), 1e-5)


def test_one_update_is_adamw_worked_out_by_hand() -> None:
    model = small_model()
    optimizer = build_adamw(model, small_stage(lr=0.01, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8))
    before = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    gradients = {name: torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) for name, value in before.items()}
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone()
    optimizer.step()
    for name, parameter in model.named_parameters():
        first, second = 0.1 * gradients[name].double(), 0.05 * gradients[name].double() ** 2
        update = (first / 0.1) / ((second / 0.05).sqrt() + 1e-8)
        decay = 1.0 if "norm" in name else 1 - 0.01 * 0.1
        torch.testing.assert_close(parameter.detach().double(), before[name] * decay - 0.01 * update, rtol=0, atol=1e-6)


def test_masters_and_moments_are_float32() -> None:
    model = small_model()
    optimizer = build_adamw(model, small_stage())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}
