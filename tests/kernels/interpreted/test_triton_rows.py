"""Triton's norm, rowwise quantisation, SwiGLU, rotation with the write to the cache, and draw, against the torch references.

Runs in a process of its own with TRITON_INTERPRET=1: see tests/kernels/test_triton.py; on a GPU: see on_gpu.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from on_gpu import RUNS, SLACK, WHY

if not RUNS:
    pytest.skip(WHY, allow_module_level=True)

from herd.engine.params import TokenParams
from herd.engine.sampler import draw_in_numpy, uniform
from herd.kernels import norm, rope, swiglu
from herd.kernels.batch import plan_batch
from herd.kernels.caches import row_width
from herd.kernels.quantised import FP8_DTYPE, fp8_rows, int8_rows
from herd.kernels.triton import draw as gpu_draw
from herd.kernels.triton import norm as gpu_norm
from herd.kernels.triton import rope as gpu_rope
from herd.kernels.triton import swiglu as gpu_swiglu

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities that a GPU takes in silence
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16", "float16"])


def rows(count: int, width: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, ulps: float = 1.0) -> None:
    """Within so many units in the last place of the dtype."""
    torch.testing.assert_close(found.float(), wanted.float(), rtol=ulps * SLACK * torch.finfo(dtype).eps, atol=ulps * SLACK * 1e-6)


@dtypes
@pytest.mark.parametrize("width", [48, 128, 1000])
@pytest.mark.parametrize("added", [False, True])
def test_norm(dtype: torch.dtype, width: int, added: bool) -> None:
    x, delta, weight = rows(5, width, dtype), rows(5, width, dtype, 1), rows(1, width, dtype, 2)[0]
    mine, wide = x.clone(), torch.zeros(5, width + 16, dtype=dtype)
    out = gpu_norm.rms_norm(mine, weight, 1e-5, out=wide[:, :width], delta=delta if added else None)
    total = x + delta if added else x
    assert torch.equal(mine, total)
    close(out, norm.reference(total, weight, 1e-5), dtype, 4.0)
    assert not wide[:, width:].any()


@dtypes
def test_a_row_is_normalised_alike_in_any_batch(dtype: torch.dtype) -> None:
    x, weight = rows(9, 96, dtype), rows(1, 96, dtype, 2)[0]
    whole = gpu_norm.rms_norm(x, weight, 1e-5, out=torch.empty_like(x))
    for at in range(9):
        assert torch.equal(gpu_norm.rms_norm(x[at : at + 1], weight, 1e-5, out=torch.empty_like(x[:1])), whole[at : at + 1])


def adversarial(dtype: torch.dtype) -> torch.Tensor:
    """Rows of zeros, subnormals, infinities, NaN, over the bound, and halves that have to be rounded to even."""
    x = rows(9, 64, dtype, 3, 3.0)
    x[1] = 0
    x[2] *= torch.finfo(dtype).tiny * (1 if dtype != torch.bfloat16 else 1024)  # the interpreter reads its subnormals wrongly
    x[3, 5] = torch.inf
    x[4, 6] = torch.nan
    x[5] *= 900
    x[6] = torch.arange(64).to(dtype) / 2
    x[6, 0] = 127
    x[7] = (torch.arange(64) * 3.5).to(dtype)
    x[7, 0] = 448
    return x


@dtypes
@pytest.mark.parametrize("bound", [None, 1200.0])
def test_rows_become_fp8_bit_for_bit(dtype: torch.dtype, bound: float | None) -> None:
    x = adversarial(dtype)
    codes, scales = torch.empty(x.shape, dtype=FP8_DTYPE), torch.empty(len(x))
    gpu_norm.quantise_rows(x, mode="fp8", codes=codes, scales=scales, bound=bound)
    wanted, wanted_scales = fp8_rows(x, bound)
    torch.testing.assert_close(scales, wanted_scales, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(codes.float(), wanted.float(), rtol=0, atol=0, equal_nan=True)


@dtypes
def test_rows_become_int8_bit_for_bit(dtype: torch.dtype) -> None:
    x = adversarial(dtype)
    codes, scales = torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x))
    gpu_norm.quantise_rows(x, mode="int8", codes=codes, scales=scales)
    wanted, wanted_scales = int8_rows(x)
    torch.testing.assert_close(scales, wanted_scales, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(codes, wanted)


def test_every_fp8_number_and_every_middle_between_two() -> None:
    """448 in the row makes its scale 1, so that the numbers meet the cast as they are."""
    numbers = torch.arange(127, dtype=torch.uint8).view(FP8_DTYPE).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    several = [numbers, middles, torch.nextafter(middles, torch.tensor(0.0)), torch.nextafter(middles, torch.tensor(500.0))]
    x = torch.cat([*several, *(-one for one in several)])[None]
    codes, scales = torch.empty(x.shape, dtype=FP8_DTYPE), torch.empty(1)
    gpu_norm.quantise_rows(x, mode="fp8", codes=codes, scales=scales)
    assert scales == 1.0 and torch.equal(codes.float(), x.to(FP8_DTYPE).float())


@dtypes
@pytest.mark.parametrize("mode", ["int8", "fp8"])
def test_norm_and_quantise_in_one_is_both_in_turn(dtype: torch.dtype, mode: str) -> None:
    x, delta, weight = rows(4, 80, dtype), rows(4, 80, dtype, 1), rows(1, 80, dtype, 2)[0]
    kind = torch.int8 if mode == "int8" else FP8_DTYPE
    codes, scales, kept, mine = torch.empty(4, 80, dtype=kind), torch.empty(4), torch.empty_like(x), x.clone()
    gpu_norm.rms_norm_quantised(mine, weight, 1e-5, mode=mode, codes=codes, scales=scales, delta=delta, out=kept)
    plain = gpu_norm.rms_norm(x.clone(), weight, 1e-5, out=torch.empty_like(x), delta=delta)
    assert torch.equal(kept, plain)
    wanted, wanted_scales = int8_rows(plain) if mode == "int8" else fp8_rows(plain)
    assert torch.equal(scales, wanted_scales) and torch.equal(codes.float(), wanted.float())


@dtypes
def test_swiglu(dtype: torch.dtype) -> None:
    both = rows(3, 2 * 1100, dtype, 4, 4.0)
    both[0, :2] = torch.tensor([-1e4, 1e4]).to(dtype)
    gate, up = both[:, :1100], both[:, 1100:]
    wanted = swiglu.reference(gate, up)
    found = gpu_swiglu.swiglu(gate, up, out=torch.empty_like(gate))
    close(found, wanted, dtype, 4.0)
    assert torch.equal(gpu_swiglu.swiglu(gate, up, out=gate), found)


@dtypes
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, FP8_DTYPE])
@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), [(16, 4, 2), (24, 3, 1)])
def test_rope_write(dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int) -> None:
    plan = plan_batch([[3, 1], [0, 2]], first=[2, 5], lengths=[3, 2], num_blocks=5, block_size=4)
    qkv = rows(5, (heads + 2 * kv_heads) * head_dim, dtype, 7)
    qkv[1, heads * head_dim :] = 0
    if cache_dtype in (torch.int8, FP8_DTYPE):
        qkv[2, -1] = torch.inf
    table = rope.RopeTable(10000.0 ** -(torch.arange(head_dim // 2) / (head_dim // 2)))
    cos, sin = table.upto(plan.num_positions)
    shape = (5, 4, kv_heads, row_width(head_dim, cache_dtype))

    def views(x: torch.Tensor) -> list[torch.Tensor]:
        return [part.view(5, -1, head_dim) for part in x.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], 1)]

    found, wanted = ([*views(qkv.clone()), *(torch.zeros(shape, dtype=cache_dtype) for _ in range(2))] for _ in range(2))
    gpu_rope.rope_write(*found[:3], cos=cos, sin=sin, positions=plan.positions, slots=plan.slots, keys=found[3], values=found[4])
    rope.reference(*wanted[:3], cos, sin, *wanted[3:], plan)
    assert torch.equal(found[0], wanted[0])
    for one, other in zip(found[3:], wanted[3:], strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_padding_of_a_captured_graph_is_written_nowhere() -> None:
    qkv = rows(2, 3 * 16, torch.float32)
    keys, values = torch.zeros(2, 4, 1, 16), torch.zeros(2, 4, 1, 16)
    q, k, v = (part.view(2, 1, 16) for part in qkv.split(16, 1))
    table = torch.ones(8, 8)
    places = {"positions": torch.tensor([-1, 5]), "slots": torch.tensor([-1, 6])}
    gpu_rope.rope_write(q, k, v, cos=table, sin=table, keys=keys, values=values, **places)
    assert keys.flatten(0, 1)[6].any() and not keys.flatten(0, 1)[[0, 1, 2, 3, 4, 5, 7]].any()


def drawn(
    scores: torch.Tensor,
    heat: list[float],
    least: list[float],
    numbers: list[float],
    *,
    top_k: list[int] | None = None,
    top_p: list[float] | None = None,
) -> list[int]:
    count = len(scores)
    told = {
        "temperatures": torch.tensor(heat),
        "top_k": torch.tensor(top_k or [0] * count, dtype=torch.int32),
        "top_p": torch.tensor(top_p or [1.0] * count, dtype=torch.float64),
        "min_p": torch.tensor(least),
        "uniforms": torch.tensor(numbers, dtype=torch.float64),
    }
    return gpu_draw.draw(scores, ids=torch.empty(count, dtype=torch.int64), **told).tolist()


def test_the_likeliest_is_the_lowest_id_among_equals_and_noise_is_told() -> None:
    scores = rows(6, 2500, torch.float32, 8)
    scores[1, [70, 2300]] = 99.0
    scores[2, 1200] = torch.nan
    scores[3, 7] = torch.inf
    scores[4] = -torch.inf
    scores[5, :] = -torch.inf
    scores[5, 2499] = -3.0
    found = drawn(scores, [0.0] * 6, [0.0] * 6, [0.5] * 6)
    assert found == [int(scores[0].argmax()), 70, -1, -1, -1, 2499]


def test_draws_are_those_of_the_sampler() -> None:
    scores = rows(40, 2500, torch.float32, 9, 2.0)
    scores[:, 100:140] = -torch.inf
    heat, least = [0.3 + 0.05 * n for n in range(40)], [(0.0, 0.05)[n % 2] for n in range(40)]
    numbers = [uniform(n, 3) for n in range(40)]
    found = drawn(scores, heat, least, numbers)
    wanted = [
        draw_in_numpy(row, TokenParams(max_tokens=1, temperature=t, min_p=p), number)
        for row, t, p, number in zip(scores.numpy(), np.float32(heat).tolist(), least, numbers, strict=True)
    ]
    assert sum(one != other for one, other in zip(found, wanted, strict=True)) <= 1  # a number at the very edge between two tokens
    for at in (0, 17):
        assert drawn(scores[at : at + 1], [heat[at]], [least[at]], [numbers[at]]) == [found[at]]


def test_draws_of_top_k_and_top_p_are_those_of_the_sampler() -> None:
    """Over several blocks, with each alone and all at once, and with equals at the limit."""
    scores = rows(12, 1300, torch.float32, 9, 2.0)
    scores[:, 100:140] = -torch.inf
    scores[6:] = scores[6:].round()  # many equals
    top_k = [(0, 1, 5, 40, 1299, 5000)[n % 6] for n in range(12)]
    top_p = [(0.9, 1.0, 0.9, 0.3, 0.6, 1e-9, 0.97)[n % 7] for n in range(12)]
    least = [(0.0, 0.0, 0.05)[n % 3] for n in range(12)]
    heat, numbers = [0.3 + 0.15 * n for n in range(12)], [uniform(n, 3) for n in range(12)]
    found = drawn(scores, heat, least, numbers, top_k=top_k, top_p=top_p)
    fields = zip(np.float32(heat).tolist(), top_k, top_p, least, strict=True)
    params = [TokenParams(max_tokens=1, temperature=t, top_k=k, top_p=p, min_p=m) for t, k, p, m in fields]
    wanted = [draw_in_numpy(row, one, number) for row, one, number in zip(scores.numpy(), params, numbers, strict=True)]
    assert sum(one != other for one, other in zip(found, wanted, strict=True)) <= 1  # a number at the very edge between two tokens
    for at in (3, 8):
        alone = {"top_k": [top_k[at]], "top_p": [top_p[at]]}
        assert drawn(scores[at : at + 1], [heat[at]], [least[at]], [numbers[at]], **alone) == [found[at]]


def test_what_stays_of_equals_are_the_lowest_ids() -> None:
    """Every number in [0, 1) meets what stays, evenly."""
    scores = torch.full((4, 1030), -torch.inf)
    scores[:, [1029, 700, 20, 3]] = 0.0
    numbers = [n / 4 for n in range(4)]
    ones, zeros = [1.0] * 4, [0.0] * 4
    assert drawn(scores, ones, zeros, numbers, top_k=[2] * 4) == [3, 3, 20, 20]
    assert drawn(scores, ones, zeros, numbers, top_k=[6] * 4) == [3, 20, 700, 1029]
    assert drawn(scores, ones, zeros, numbers, top_p=[0.26] * 4) == [3, 3, 20, 20]
    # Two equals weigh half of all, and what has half before it stays.
    assert drawn(scores, ones, zeros, numbers, top_p=[0.5] * 4) == [3, 3, 20, 700]


def test_noise_is_told_with_every_limit() -> None:
    scores = rows(3, 1100, torch.float32, 8)
    scores[0, 1050] = torch.nan
    scores[1, 7] = torch.inf
    scores[2] = -torch.inf
    assert drawn(scores, [1.0] * 3, [0.1] * 3, [0.5] * 3, top_k=[3] * 3, top_p=[0.9] * 3) == [-1, -1, -1]


def test_the_ends_of_the_distribution() -> None:
    scores = torch.full((2, 1500), -torch.inf)
    scores[:, [3, 1400]] = 0.0
    assert drawn(scores, [1.0, 1.0], [0.0, 0.0], [0.0, 1.0 - 2**-53]) == [3, 1400]
