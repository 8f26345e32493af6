"""The Triton kernels, without a GPU: the tests of tests/kernels/interpreted in Triton's interpreter, and every launch compiled for Hopper.

Each in a process of its own: Triton asks TRITON_INTERPRET when it is imported, and with it torch.compile would not work in this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(path.name for path in (Path(__file__).parent / "interpreted").glob("test_*.py"))


def run(*command: str, **variables: str) -> str:
    """What a command says, in an environment of its own."""
    pytest.importorskip("triton", reason="needs triton, which is for Linux on x86_64")
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root / "src"), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **variables}
    done = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", FILES)
def test_in_the_interpreter(name: str) -> None:
    said = run("-m", "pytest", "-q", "-x", f"tests/kernels/interpreted/{name}", TRITON_INTERPRET="1")
    assert " passed" in said and "skipped" not in said


def test_every_launch_compiles_for_hopper(tmp_path: Path) -> None:
    """Products and attention by its tensor instructions, within the shared memory of a multiprocessor."""
    full = ["--full"] if os.environ.get("HERD_TEST_FULL") == "1" else []
    found = json.loads(run("tests/kernels/triton_on_hopper.py", *full, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0"))
    names = {name.split()[0] for name in found}
    assert names == {"_norm", "_swiglu", "_rope", "_whole", "_part_of", "_merge", "_product", "_gather", "_draw", "_cross_entropy"}
    assert all(made["shared"] <= 227 * 1024 for made in found.values())
    for name, made in found.items():
        if name.split()[0] in ("_whole", "_part_of", "_product") and not full:
            assert made["wgmma"], name
