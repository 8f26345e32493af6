"""The interchange of quantised matrices: definitions written out again in plain Python, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ConfigError
from herd.kernels.quantised import FP8_DTYPE, QuantWeight, fp8_rows, int8_rows, matmul, pack_int4, unpack_int4


def e4m3(value: float) -> float:
    """Nearest float8 e4m3fn, ties to even, saturating: by the format's definition, in Python's own floats."""
    if value != value:
        return value
    sign, size = math.copysign(1.0, value), min(abs(value), 448.0)
    exponent = max(math.frexp(size)[1] - 1, -6) if size else -6
    step = 2.0 ** (exponent - 3)
    return sign * min(round(size / step) * step, 448.0)


def fp8_by_definition(row: np.ndarray, bound: float | None) -> tuple[list[float], np.float32]:
    largest = np.float32(np.max(np.abs(row)))
    if bound is not None:
        largest = min(largest, np.float32(bound))
    with np.errstate(all="ignore"):
        scale = max(np.float32(largest / np.float32(448.0)), np.float32(1.0 / (448.0 * 512.0)))
        return [e4m3(float(np.float32(value / scale))) for value in row], scale


ADVERSARIAL = [
    [0.0] * 8,
    [-0.0, 0.0, 1e-45, -1e-45, 1e-38, 1e-39, 0.0, 0.0],
    [2.0**-9, 2.0**-10, 3 * 2.0**-10, -(2.0**-11), 448.0, 0.0, 1.0, -1.0],
    [math.inf, 1.0, -1.0, 0.0, 5.0, 1200.0, 1201.0, -math.inf],
    [1200.0, -1200.0, 1199.9999, 2400.0, 1e30, -1e30, 3.4e38, 1.0],
    [448.0, 464.0, 463.9, 432.0, 440.0, 416.0, 17.0, 19.0],
    [1e-6, 2e-6, -3e-6, 1e-7, 0.0, 1e-8, 1e-9, 4e-6],
]


@pytest.mark.parametrize("bound", [None, 1200.0])
@pytest.mark.parametrize("row", ADVERSARIAL)
def test_fp8_rows_match_the_definition_bit_for_bit(row: list[float], bound: float | None) -> None:
    values = np.array(row, dtype=np.float32)
    if bound is None and not np.isfinite(values).all():
        pytest.skip("without a bound an infinite row has no scale; weights that are not finite are refused")
    codes, scales = fp8_rows(torch.from_numpy(values)[None], bound)
    expected, scale = fp8_by_definition(values, bound)
    assert scales.numpy()[0].tobytes() == scale.tobytes()
    assert codes[0].view(torch.uint8).tolist() == torch.tensor(expected).to(FP8_DTYPE).view(torch.uint8).tolist()
    assert codes[0].float().tolist() == expected


@given(st.lists(st.floats(width=32, allow_nan=False, min_value=-4e3, max_value=4e3), min_size=1, max_size=12))
def test_fp8_rows_match_the_definition_anywhere(row: list[float]) -> None:
    values = np.array(row, dtype=np.float32)
    codes, scales = fp8_rows(torch.from_numpy(values)[None], 1200.0)
    expected, scale = fp8_by_definition(values, 1200.0)
    assert scales.numpy()[0] == scale
    assert codes[0].float().tolist() == expected


def test_int8_rows() -> None:
    codes, scales = int8_rows(torch.tensor([[0.0, 0.0], [127.0, -63.5], [1.0, float("inf")]]))
    assert codes[:2].tolist() == [[0, 0], [127, -64]]
    assert scales[:2].tolist() == [0.0, 1.0]
    assert scales[2].isnan()


@given(st.integers(1, 5), st.integers(1, 9))
def test_int4_packs_and_unpacks(rows: int, half: int) -> None:
    codes = torch.randint(0, 16, (rows, 2 * half), dtype=torch.uint8)
    packed = pack_int4(codes)
    assert torch.equal(unpack_int4(packed), codes)
    assert int(packed[0, 0]) == int(codes[0, 0]) + 16 * int(codes[0, 1])


def random_weight(kind: str, *, group: int = 4, zeros: bool = False, columns: bool = False, activation: str = "none") -> QuantWeight:
    n, k = 6, 16
    generator = torch.Generator().manual_seed(1)
    if kind == "int4":
        values = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=generator)
    elif kind == "int8":
        values = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=generator)
    else:
        values = torch.randn(n, k, generator=generator).to(FP8_DTYPE)
    return QuantWeight(
        kind=kind,
        values=values,
        scales=torch.rand(n, k // group, generator=generator) + 0.1,
        zeros=torch.randint(0, 16, (n, k // group), dtype=torch.uint8, generator=generator) if zeros else None,
        columns=torch.randperm(k, generator=generator).int() if columns else None,
        activation=activation,
        bound=1200.0 if activation == "fp8" else None,
    )


CASES = [("int8", False), ("int4", False), ("int4", True), ("fp8", False)]


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(("kind", "zeros"), CASES)
def test_dequantise_by_definition(kind: str, zeros: bool, columns: bool) -> None:
    weight = random_weight(kind, zeros=zeros, columns=columns)
    found = weight.dequantise()
    for n in range(weight.num_outputs):
        for k in range(weight.num_inputs):
            if kind == "int4":
                stored = int(weight.values[n, k // 2]) >> (4 * (k % 2)) & 15
                value = stored - (8 if weight.zeros is None else int(weight.zeros[n, k // weight.group]))
            else:
                value = float(weight.values[n, k])
            place = k if weight.columns is None else int(weight.columns[k])
            assert float(found[n, place]) == float(weight.scales[n, k // weight.group] * value)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(("kind", "zeros"), CASES)
@pytest.mark.parametrize("group", [4, 16])
def test_product_of_unquantised_inputs(kind: str, zeros: bool, columns: bool, group: int) -> None:
    weight = random_weight(kind, zeros=zeros, columns=columns, group=group)
    x = torch.randn(2, 3, 16)
    assert torch.allclose(matmul(x, weight), x @ weight.dequantise().t(), atol=1e-5)
    assert matmul(x.bfloat16(), weight).dtype == torch.bfloat16


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(("kind", "activation"), [("int8", "int8"), ("int4", "int8"), ("fp8", "fp8")])
@pytest.mark.parametrize("group", [4, 16])
def test_product_of_quantised_inputs(kind: str, activation: str, columns: bool, group: int) -> None:
    weight = random_weight(kind, columns=columns, activation=activation, group=group)
    x = torch.randn(5, 16) * 3
    codes, scales = int8_rows(x) if activation == "int8" else fp8_rows(x, 1200.0)
    expected = (codes.double() * scales[:, None]) @ weight.dequantise().double().t()
    assert torch.allclose(matmul(x, weight).double(), expected, rtol=1e-5, atol=2e-3)


def test_rows_in_the_fixed_order_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from herd.kernels import dispatch

    monkeypatch.setenv("HERD_KERNELS", "reference")
    dispatch.reload()
    try:
        weight, x = random_weight("int4", zeros=True), torch.randn(40, 16)
        whole = matmul(x, weight)
        assert all(torch.equal(matmul(x[row : row + 1], weight)[0], whole[row]) for row in range(40))
    finally:
        monkeypatch.undo()
        dispatch.reload()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "int3"}, "kind is 'int3'"),
        ({"values": torch.zeros(6, 8)}, "int8 values are torch.float32"),
        ({"scales": torch.ones(6, 3)}, r"scales are torch.float32 \[6, 3\] for a \[6, 16\] matrix"),
        ({"scales": torch.ones(5, 4)}, r"scales are torch.float32 \[5, 4\]"),
        ({"zeros": torch.zeros(6, 4, dtype=torch.uint8)}, "for int8"),
        ({"columns": torch.zeros(3, dtype=torch.int32)}, r"columns are torch.int32 \[3\], expected int32 \[16\]"),
        ({"activation": "fp8"}, "int8 weights cannot meet fp8 inputs"),
        ({"bound": 1200.0}, "a bound of 1200.0 on none inputs"),
    ],
)
def test_parts_that_do_not_belong_together(change: dict, message: str) -> None:
    from dataclasses import fields

    weight = random_weight("int8")
    parts = {field.name: getattr(weight, field.name) for field in fields(weight)} | change
    with pytest.raises(ConfigError if "kind" not in change else Exception, match="kind" if "kind" in change else message):
        QuantWeight(**parts)


def test_a_wrong_width_is_named() -> None:
    with pytest.raises(ConfigError, match="x has 3 columns, the matrix 16"):
        matmul(torch.zeros(1, 3), random_weight("int8"))
