"""A whole quantisation from a path: open, rotate, mix, stream. What `herd quantize` and Python call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from herd.base.atomic import atomic_file
from herd.base.errors import UsageError
from herd.checkpoint.hf import main_dtype
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.quant_hf import QuantHfSource
from herd.checkpoint.source import TensorSource
from herd.quant.mixture import mix
from herd.quant.rotate import RotatedSource
from herd.quant.schemes import Settings, schemes_for
from herd.quant.stream import Stream, Written, check_free, file_stamps, work_folder

Progress = Callable[[int, int, str], None]


def quantise_checkpoint(
    source: Path | str,
    target: Path | str,
    settings: Settings,
    *,
    tokens_BT: Int[Tensor, "B T"] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Quantise the checkpoint at `source` into a folder in Hugging Face's layout.

    Args:
        source: any checkpoint that herd reads; one that is quantised is read as numbers first.
        target: a folder that does not exist yet. What a killed run left beside it is gone on with.
        settings: the scheme and how it rounds.
        tokens_BT: calibration text as token ids, sequences of one length.
        overwrite: replace what is at `target`.
        progress: called before each block.

    Raises:
        UsageError: calibration is needed and there is none, or the destination is taken.
        NotFoundError, CheckpointError, ConfigError: as `open_checkpoint`.
        DoesNotFitError: the budget is too small, or the disk is full.
    """
    target = Path(target)
    check_free(target, overwrite=overwrite)
    if settings.needs_calibration and tokens_BT is None:
        raise UsageError(
            f"{settings.scheme} with method {settings.method} needs text to calibrate on", hint="give --calib FILE, or --method rtn"
        )
    with open_checkpoint(source) as opened:
        dtype = main_dtype(opened)
        if tokens_BT is not None and int(tokens_BT.max()) >= opened.config.vocab_size:
            raise UsageError(
                f"calibration has the token {int(tokens_BT.max())}, the model {opened.config.vocab_size}",
                hint="use the model's own tokenizer",
            )
        used: TensorSource = RotatedSource(opened, seed=settings.seed) if settings.rotate else opened
        schemes, details = schemes_for(used.config, settings), {}
        if settings.scheme == "auto":
            assert tokens_BT is not None
            if isinstance(opened, QuantHfSource):
                raise UsageError(f"{opened.path} is quantised already", hint="give the model it was made of")
            key = _key(opened, settings, tokens_BT)
            known = _measured(target, key)
            mixture = mix(used, settings, tokens_BT, dtype=dtype, sensitivity=known, progress=progress)
            schemes, details = mixture.schemes, {"sensitivity": mixture.sensitivity}
            _keep(target, key, mixture.sensitivity)
        stream = Stream(used, target, settings, schemes, dtype=dtype, tokens_BT=tokens_BT, details=details)
        written = stream.run(overwrite=overwrite, progress=progress)
    _measured_file(target).unlink(missing_ok=True)
    return written


def _measured_file(target: Path) -> Path:
    return target.parent / f"{work_folder(target).name}-sensitivity.json"


def _key(source: TensorSource, settings: Settings, tokens_BT: Tensor) -> str:
    """Changes with anything that changes what is measured."""
    told = [settings.group, settings.symmetric, settings.rotate, settings.seed, file_stamps(source.path)]
    return hashlib.sha256(json.dumps(told).encode() + tokens_BT.contiguous().numpy().tobytes()).hexdigest()


def _keep(target: Path, key: str, sensitivity: dict[str, float]) -> None:
    """So that a killed run goes on with the same schemes, and without measuring again."""
    with atomic_file(_measured_file(target)) as temporary:
        temporary.write_text(json.dumps({"key": key, "sensitivity": sensitivity}), encoding="utf-8")


def _measured(target: Path, key: str) -> dict[str, float] | None:
    path = _measured_file(target)
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json_object(path)
    return {name: float(value) for name, value in found["sensitivity"].items()} if found.get("key") == key else None


def as_sequences(ids: list[int], *, num: int, length: int) -> Int[Tensor, "B T"]:
    """Token ids cut into sequences of one length. Raises UsageError where there are too few for one."""
    count = min(num, len(ids) // length)
    if count < 1:
        raise UsageError(
            f"the text has {len(ids):,} tokens, one sequence needs {length:,}", hint="give more text, or a smaller --calib-length"
        )
    return torch.tensor(ids[: count * length]).view(count, length)
