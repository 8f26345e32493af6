"""The arithmetic of AMX tiles where no processor has any: the same source over tiles that C emulates, against vectors, bit for bit."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess

import pytest
import torch

from herd.kernels import build, dispatch, library
from herd.kernels.library import Library
from herd.kernels.packed_quant import pack_quantised
from quant_models import QUANT_KINDS, Kind, named, quant_weight  # pyright: ignore[reportMissingImports]

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="tiles are of x86"),
    pytest.mark.skipif(dispatch.choice().library is None, reason="the C kernels do not run here"),
    pytest.mark.skipif(not os.environ.get("HERD_TEST_FULL"), reason="compiles kernels; set HERD_TEST_FULL=1"),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """`herd_linear_quantised` of the level amx, its tiles emulated, with what it calls."""
    found = dispatch.choice().library
    if found is None or "avx512bf16" not in found.levels:
        pytest.skip("the emulation is compiled for AVX-512 BF16")
    compiler, sources, target = build.find_compiler(), build.source_folder(), tmp_path_factory.mktemp("tiles") / "tiles.so"
    flags = [flag for flag in build.LEVELS["amx"] if not flag.startswith("-mamx")]
    flags += ["-DHERD_EMULATE_TILES", "-DHERD_NAME=amx", "-O1", "-fvisibility=default"]
    files = [str(sources / name) for name in ("qlinear.c", "pool.c", "scratch.c")]
    base = [flag for flag in build.BASE_FLAGS if flag not in ("-O3", "-fvisibility=hidden")]
    subprocess.run([*compiler.command, *base, *flags, *files, "-shared", "-o", str(target), "-lm"], check=True, capture_output=True)
    return ctypes.CDLL(str(target))


def run(function: object, x: torch.Tensor, kind: Kind, n: int) -> torch.Tensor:
    packed = pack_quantised([quant_weight(torch.randn(n, x.shape[1], generator=torch.Generator().manual_seed(n)), kind)], x.dtype)
    matrix, out = packed.matrix(), torch.empty(len(x), n, dtype=x.dtype)
    code = library.code(x.dtype)
    arguments = (x.data_ptr(), x.stride(0), len(x), ctypes.byref(matrix), n, x.shape[1], code, library.STORE)
    assert function(*arguments, None, 0, out.data_ptr(), n, code) == 0  # pyright: ignore
    return out


@pytest.mark.parametrize("kind", QUANT_KINDS, ids=named)
def test_tiles_have_the_bits_of_vectors(emulated: ctypes.CDLL, kind: Kind) -> None:
    found = dispatch.choice().library
    assert isinstance(found, Library)
    tiles = emulated.herd_linear_quantised_amx
    tiles.argtypes = found.linear_quantised.argtypes
    for m, n, k in ((16, 33, 64), (17, 64, 96), (31, 40, 1120), (32, 32, 2080), (33, 65, 160), (70, 96, 2576)):
        if k % (kind.group or 8):
            k += 32 - k % 32
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).bfloat16()
        assert torch.equal(run(tiles, x, kind, n).view(torch.int16), run(found.linear_quantised, x, kind, n).view(torch.int16)), (m, n, k)
