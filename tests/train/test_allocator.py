"""Freed memory that stays with the process: buffers come back without new pages, and the system has them again afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from herd.train import allocator
from herd.train.allocator import kept_memory

_PROGRAM = """
import json, resource, torch
from contextlib import nullcontext
from herd.train.allocator import kept_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def some(times):
    for _ in range(times):
        torch.ones(12_000_000)  # 48 MB
    return faults()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

some(2)
plain = -faults() + some(20)
with kept_memory() as possible:
    some(30)
    kept = min(-faults() + some(20) for _ in range(5))
    held = resident()
print(json.dumps({"possible": possible, "plain": plain, "kept": kept, "held": held, "after": resident()}))
"""


@pytest.mark.skipif(allocator._glibc() is None, reason="the C library is not glibc")
def test_a_buffer_comes_back_without_new_pages_and_goes_back_to_the_system_at_the_end() -> None:
    found = json.loads(subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True).stdout)
    assert found["possible"]
    # Twenty times 48 MB in pages of 4 KiB, or of 2 MiB where the system gives huge ones.
    assert found["plain"] >= 20 * 20
    # The heap may grow a few times more where a small block of somebody else's lands in the hole of a buffer, never for long.
    assert found["kept"] < found["plain"] / 10
    assert found["held"] - found["after"] > 40e6


def test_under_another_c_library_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _name: Other())
    with kept_memory() as possible:
        assert not possible


def test_where_a_high_threshold_is_refused_nothing_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Old:
        def mallopt(self, option: int, value: int) -> int:
            asked.append((option, value))
            return int(not (option == allocator._MMAP_THRESHOLD and value > 2**25))

        def malloc_trim(self, pad: int) -> int:
            asked.append((0, pad))
            return 1

    monkeypatch.setattr(allocator, "_glibc", Old)
    with pytest.raises(ZeroDivisionError), kept_memory() as possible:
        assert possible and (allocator._MMAP_MAX, 0) in asked
        raise ZeroDivisionError
    assert asked[-2:] == [(allocator._MMAP_MAX, 2**16), (0, 0)]
