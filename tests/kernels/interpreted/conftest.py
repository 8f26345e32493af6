"""With HERD_TEST_GPU=1 the kernels of these tests run on an NVIDIA GPU: see `on_gpu`."""

from __future__ import annotations

import on_gpu

if on_gpu.ON_GPU:
    on_gpu.install()
