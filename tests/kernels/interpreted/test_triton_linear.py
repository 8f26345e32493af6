"""Triton's products against the torch oracle, for every kind of weights and inputs, and their law: a row's bits depend on the row alone.

Runs in a process of its own with TRITON_INTERPRET=1: see tests/kernels/test_triton.py; on a GPU: see on_gpu.py.
"""

from __future__ import annotations

import pytest
import torch
from on_gpu import FP8_SLACK, RUNS, WHY
from torch import Tensor

if not RUNS:
    pytest.skip(WHY, allow_module_level=True)

from herd.base.errors import ConfigError
from herd.kernels.quantised import QuantWeight, fp8_rows, int8_rows, matmul, pack_int4
from herd.kernels.triton import linear as gpu
from herd.kernels.triton.tiles import tile_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities that a GPU takes in silence
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16", "float16"])
KINDS = ["int8", "int8-64", "int8-256", "int4-32", "int4-64", "int4-128", "int4-32-zeros", "int4-128-zeros", "int4", "fp8", "fp8-128"]


def weight_of(name: str, n: int, k: int, activation: str = "none", *, order: bool = False, bound: float | None = None) -> QuantWeight:
    kind, *rest = name.split("-")
    group = int(rest[0]) if rest else k
    random = torch.Generator().manual_seed(3)
    scales = (torch.rand(n, k // group, generator=random) + 0.5) * 0.02
    zeros = None
    if kind == "fp8":
        values = fp8_rows(torch.randn(n, k, generator=random))[0]
    elif kind == "int8":
        values = torch.randint(-127, 128, (n, k), generator=random, dtype=torch.int8)
    else:
        values = pack_int4(torch.randint(0, 16, (n, k), generator=random, dtype=torch.uint8))
        zeros = torch.randint(0, 16, scales.shape, generator=random, dtype=torch.uint8) if "zeros" in rest else None
    columns = torch.randperm(k, generator=random).to(torch.int32) if order else None
    return QuantWeight(kind=kind, values=values, scales=scales, zeros=zeros, columns=columns, activation=activation, bound=bound)  # type: ignore[arg-type]


def inputs(m: int, k: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(5)).to(dtype)


def run(x: Tensor, matrix: gpu.GpuMatrix) -> Tensor:
    scratch = gpu.Scratch.of([matrix], rows=len(x), dtype=x.dtype, device=x.device)
    return gpu.linear(x, matrix, out=torch.full((len(x), matrix.num_outputs), torch.nan, dtype=x.dtype), scratch=scratch)


def check(found: Tensor, wanted: Tensor, dtype: torch.dtype, size: float) -> None:
    """Within a rounding of the dtype and float32's in the sum."""
    torch.testing.assert_close(found.double(), wanted.double(), rtol=2 * torch.finfo(dtype).eps, atol=size * 2e-6)


@dtypes
@pytest.mark.parametrize(("m", "n", "k"), [(1, 70, 96), (66, 64, 72), (3, 130, 1088)])
def test_dense(dtype: torch.dtype, m: int, n: int, k: int) -> None:
    x, weight = inputs(m, k, dtype), inputs(n, k, dtype)
    found = run(x, gpu.dense(weight))
    check(found, x.double() @ weight.double().t(), dtype, k)


@dtypes
@pytest.mark.parametrize("name", KINDS)
def test_weights_of_few_bits_meet_inputs_as_they_are(dtype: torch.dtype, name: str) -> None:
    weight, x = weight_of(name, 70, 256), inputs(3, 256, dtype)
    check(run(x, gpu.quantised([weight])), x.double() @ weight.dequantise().double().t(), dtype, 50)


@dtypes
@pytest.mark.parametrize("name", ["int8", "int8-64", "int4-32", "int4-128-zeros", "int4"])
def test_whole_numbers_meet_whole_numbers(dtype: torch.dtype, name: str) -> None:
    """Integer sums are exact, so this is the oracle's number, rounded to its dtype."""
    weight, x = weight_of(name, 70, 256, "int8"), inputs(3, 256, dtype)
    found, wanted = run(x, gpu.quantised([weight])), matmul(x, weight)
    if "-" in name:
        torch.testing.assert_close(found, wanted, rtol=torch.finfo(dtype).eps, atol=1e-5)
    else:
        assert torch.equal(found, wanted)


@dtypes
@pytest.mark.parametrize("bound", [None, 1.5])
def test_fp8_meets_fp8(dtype: torch.dtype, bound: float | None) -> None:
    weight, x = weight_of("fp8", 70, 256, "fp8", bound=bound), inputs(3, 256, dtype)
    check(run(x, gpu.quantised([weight])), matmul(x, weight), dtype, 200 * FP8_SLACK)


@pytest.mark.parametrize("activation", ["none", "int8"])
def test_inputs_in_the_order_that_the_weights_were_quantised_in(activation: str) -> None:
    weight, x = weight_of("int4-64", 40, 128, activation, order=True), inputs(3, 128, torch.bfloat16)
    check(run(x, gpu.quantised([weight])), matmul(x, weight), torch.bfloat16, 16)


@pytest.mark.parametrize("activation", ["none", "int8", "fp8"])
def test_matrices_that_are_cut_along_their_inputs(activation: str) -> None:
    name = "fp8" if activation == "fp8" else "int8"
    weight, x = weight_of(name, 64, 2200, activation), inputs(2, 2200, torch.float32)
    matrix = gpu.quantised([weight])
    assert matrix.tile.splits == 4
    check(run(x, matrix), matmul(x, weight), torch.float32, 400 * (FP8_SLACK if activation == "fp8" else 1))


@pytest.mark.parametrize("name", ["dense", "int8", "int4-32-zeros", "int8/int8", "int4-64/int8", "fp8/fp8"])
@pytest.mark.parametrize("k", [128, 576])
def test_a_row_is_the_same_in_any_batch(name: str, k: int) -> None:
    kind, _, activation = name.partition("/")
    matrix = gpu.dense(inputs(40, k, torch.bfloat16)) if kind == "dense" else gpu.quantised([weight_of(kind, 40, k, activation or "none")])
    x = inputs(70, k, torch.bfloat16)
    whole = run(x, matrix)
    assert torch.equal(run(x[66:].contiguous(), matrix), whole[66:])
    for at in (17, 64):
        assert torch.equal(run(x[at : at + 1], matrix), whole[at : at + 1])


def test_noise_in_a_row_stays_there() -> None:
    matrix, x = gpu.quantised([weight_of("int4-32", 40, 128, "int8")]), inputs(4, 128, torch.float32)
    wanted = run(x, matrix)
    x[2, 9] = torch.nan
    found = run(x, matrix)
    assert found[2].isnan().all() and torch.equal(found[[0, 1, 3]], wanted[[0, 1, 3]])


def test_stacked_matrices_and_what_no_kernel_takes() -> None:
    a, b = weight_of("int4-32-zeros", 24, 128), weight_of("int4-32", 40, 128)
    x = inputs(2, 128, torch.float32)
    found = run(x, gpu.quantised([a, b]))
    check(found, torch.cat([matmul(x, a), matmul(x, b)], 1), torch.float32, 16)
    with pytest.raises(ConfigError, match="int4 in groups of 32 over none inputs, int8 in groups of 128"):
        gpu.quantised([a, weight_of("int8", 24, 128)])
    assert not gpu.takes(weight_of("int8-16", 8, 32)) and not gpu.takes(weight_of("fp8-128", 8, 256, "fp8"))
    with pytest.raises(ConfigError, match="no Triton kernel takes"):
        gpu.quantised([weight_of("int8-16", 8, 32)])


def test_codes_of_a_row_come_from_the_fused_norm_too() -> None:
    weight, x = weight_of("int8", 70, 256, "int8"), inputs(3, 256, torch.bfloat16)
    matrix = gpu.quantised([weight])
    codes, scales = int8_rows(x)
    scratch = gpu.Scratch.of([matrix], rows=3, dtype=x.dtype, device=x.device)
    out = gpu.met_codes(codes, scales, matrix, out=torch.empty(3, 70, dtype=x.dtype), scratch=scratch)
    assert torch.equal(out, run(x, matrix))


@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (4096, 14336), (28672, 4096), (128256, 4096), (64, 2200), (1, 32)])
@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_tiles_cover_a_matrix(n: int, k: int, bits: int) -> None:
    tile = tile_of(n, k, bits=bits)
    assert tile.part % tile.inputs == 0 and (tile.splits - 1) * tile.part < k <= tile.splits * tile.part
