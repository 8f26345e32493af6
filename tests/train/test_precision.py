"""What a stage's products are computed in, by device and by what the processor can."""

from __future__ import annotations

import pytest
import torch
from small_run import small_stage  # pyright: ignore[reportMissingImports]

from herd.kernels import torch_compat
from herd.train import precision
from herd.train.precision import compute_dtype


@pytest.mark.parametrize("can", [True, False])
def test_a_processor_without_bfloat16_products_computes_in_float32(can: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device_type: can or device_type != "cpu")
    stage = small_stage(compute_dtype="auto")
    assert compute_dtype(stage, "cpu") == (torch.bfloat16 if can else torch.float32)
    assert compute_dtype(stage, "cuda:1") == torch.bfloat16


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_what_a_stage_names_is_what_it_gets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device_type: False)
    assert compute_dtype(small_stage(compute_dtype=name), torch.device("cpu")) == getattr(torch, name)


def test_a_torch_without_onednn_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    torch_compat.multiplies_bfloat16.cache_clear()
    try:
        assert not torch_compat.multiplies_bfloat16("cpu") and torch_compat.multiplies_bfloat16("cuda")
    finally:
        torch_compat.multiplies_bfloat16.cache_clear()
