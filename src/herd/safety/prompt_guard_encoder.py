"""The encoder of Prompt Guard on a device: windows of token ids in, logits out. The one module of `safety` that imports torch.

Imported by `prompt_guard.load_prompt_guard` when a checkpoint is loaded, never before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from herd.checkpoint.encoder import load_encoder


class Encoder:
    """A checkpoint's classifier. Raises NotFoundError, CheckpointError as `load_encoder` does."""

    def __init__(self, path: Path | str, *, device: str = "cpu") -> None:
        # Half precision is slow on most processors, and float32 holds what was stored in it.
        self._model = load_encoder(path, dtype=torch.float32 if device == "cpu" else None, device=device)
        self.config = self._model.config

    def __call__(self, windows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Logits of every label for each window; shorter ones are padded on the right."""
        length = max(len(window) for window in windows)
        tokens = np.full((len(windows), length), self.config.pad_token_id, dtype=np.int64)
        valid = np.zeros((len(windows), length), dtype=bool)
        for row, window in enumerate(windows):
            tokens[row, : len(window)] = window
            valid[row, : len(window)] = True
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(tokens).to(self._model.device), torch.from_numpy(valid).to(self._model.device))
        return logits.cpu().numpy()
