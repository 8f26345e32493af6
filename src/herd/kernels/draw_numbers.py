"""What `draw` is told of each row: `herd_draw_params` of csrc/herd.h. No torch, so that those who only fill it in need none."""

from __future__ import annotations

import numpy as np

NUMBERS = np.dtype([("temperature", "f8"), ("top_p", "f8"), ("min_p", "f8"), ("uniform", "f8"), ("top_k", "i8")])
