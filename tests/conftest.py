"""Shared fixtures. `shared_data()` finds the public data beside the checkout, or skips the test, saying so."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Shapes and dtypes are checked wherever tensors are annotated with them, and nowhere else: pyright knows the other types, and to look at
# them at every call makes an engine's test three times as slow.
SOURCE = Path(__file__).resolve().parents[1] / "src"
ANNOTATED = [path for path in SOURCE.rglob("*.py") if "from jaxtyping import" in path.read_text(encoding="utf-8")]
install_import_hook([".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in ANNOTATED], "beartype.beartype")

# A busy machine is no failure: cases have no deadline, and making them may take its time.
settings.register_profile("herd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("herd")

# Tests give herd homes of their own; what a fixture of a whole session leaves goes with the process.
if "HERD_HOME" not in os.environ:
    os.environ["HERD_HOME"] = tempfile.mkdtemp(prefix="herd-test-home-")
    atexit.register(shutil.rmtree, os.environ["HERD_HOME"], ignore_errors=True)
# The kernels, named by their sources' digest, are compiled once for all of them.
os.environ.setdefault("HERD_KERNELS_CACHE", str(Path(tempfile.gettempdir()) / f"herd-test-kernels-{os.getuid()}"))


def shared_data() -> Path:
    """The data folder: `HERD_TEST_DATA`, or `../shared/data` beside the checkout. Skips the test where it is absent."""
    folder = Path(os.environ.get("HERD_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (folder / "MANIFEST.md").exists():
        pytest.skip(f"needs the shared data, which is not at {folder} (set HERD_TEST_DATA)")
    return folder


@pytest.fixture(name="shared_data")
def shared_data_fixture() -> Path:
    """`shared_data()` as a fixture."""
    return shared_data()
