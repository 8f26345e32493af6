"""The tests do look at the shapes that tensors are annotated with (tests/conftest.py), so that a wrong one anywhere fails."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from herd.kernels import plain


def test_a_tensor_of_another_shape_or_dtype_is_refused() -> None:
    with pytest.raises(TypeCheckError):
        plain.rms_norm(torch.ones(2, 4), torch.ones(5), 1e-5)
    with pytest.raises(TypeCheckError):
        plain.rms_norm(torch.ones(2, 4, dtype=torch.int64), torch.ones(4), 1e-5)
