"""The name of a model's state changes with whatever its cached bits depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_model import small_model  # pyright: ignore[reportMissingImports]
from torch import nn

from herd.engine.disk import identity
from herd.engine.disk.identity import state_name, weights_digest


def holder(tensor: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.register_buffer("tensor", tensor)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (64, 96), (3, 5, 8)])
def test_every_weight_counts(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    before = weights_digest(holder(tensor))
    assert before == weights_digest(holder(tensor.clone()))
    for place in range(0, tensor.numel(), max(1, tensor.numel() // 40)):
        changed = tensor.clone()
        changed.view(-1)[place] *= -1
        assert weights_digest(holder(changed)) != before


def test_so_does_the_order_of_rows_and_the_shape() -> None:
    tensor = torch.arange(24_000.0).view(100, 240)
    found = [tensor, tensor.flip(0), tensor.view(240, 100), tensor.to(torch.float64)]
    assert len({weights_digest(holder(one)) for one in found}) == len(found)


def test_a_state_is_named_the_same_every_time_and_otherwise_when_something_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    name = state_name(model, runner="CpuRunner", layout="x")
    assert len(name) == 32 and name == state_name(small_model(), runner="CpuRunner", layout="x")
    others = [
        state_name(model, runner="TorchRunner", layout="x"),
        state_name(model, runner="CpuRunner", layout="y"),
        state_name(small_model(torch.bfloat16), runner="CpuRunner", layout="x"),
    ]
    model.config = replace(model.config, rope_theta=1e6)
    others.append(state_name(model, runner="CpuRunner", layout="x"))
    monkeypatch.setattr(identity, "_kernels", lambda device, dtype: {"level": "another"})
    others.append(state_name(small_model(), runner="CpuRunner", layout="x"))
    assert len({name, *others}) == 6
