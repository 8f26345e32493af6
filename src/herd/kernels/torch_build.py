"""What torch is installed, told from its files without importing it, which takes seconds; and whether it may have a GPU here."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/dev/nvmap")
"""What a Linux has that has a GPU for torch: NVIDIA's driver, Windows' below, AMD's, a Jetson's."""


@cache
def version_text() -> str:
    """What the installed torch writes about itself: its version, and the GPUs that it was built for; empty where that is not found."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        return (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return ""


def may_have_gpu() -> bool:
    """Whether torch has to be asked for a GPU: False where its build, or the system, certainly has none."""
    if "torch" in sys.modules:
        return True
    if sys.platform == "darwin" or _is_cpu_build(version_text()):
        return False
    return sys.platform != "linux" or any(Path(name).exists() for name in _DEVICES)


def _is_cpu_build(text: str) -> bool:
    """Whether a version.py says that its torch knows neither CUDA nor HIP."""
    return all(re.search(rf"^{name}\b[^=\n]*=\s*None\s*$", text, re.MULTILINE) for name in ("cuda", "hip"))


def default_device() -> str:
    """The device that a model takes where none is named: a GPU where there is one."""
    if not may_have_gpu():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
