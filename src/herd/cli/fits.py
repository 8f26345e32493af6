"""Whether a model's weights fit in this machine's memory, known from headers before a byte of weights is read."""

from __future__ import annotations

from pathlib import Path

from herd.base.errors import DoesNotFitError
from herd.base.memory import available_memory, gib


def check_fits(path: Path, *, dtype: str | None, device: str, packed: Path | None = None) -> None:
    """Raises DoesNotFitError, with both numbers, if the weights alone are over what is free. `packed` is a file that is mapped instead."""
    needed = _checkpoint_bytes(path, dtype) if packed is None else packed.stat().st_size
    free = _gpu_memory() if device.startswith("cuda") else available_memory()
    if free is not None and needed > free:
        raise DoesNotFitError(
            f"the weights of {path} take {gib(needed)} and {device} has {gib(free)} free",
            hint="choose a smaller model, or --dtype bfloat16 if the checkpoint is wider; `herd doctor` names what fits",
        )


def _gpu_memory() -> int:
    import torch

    return torch.cuda.mem_get_info()[0]


def _checkpoint_bytes(path: Path, dtype: str | None) -> int:
    """What the weights of a checkpoint take in memory, from its headers."""
    from herd.checkpoint.load import as_dtype
    from herd.checkpoint.open import open_checkpoint
    from herd.checkpoint.quant_hf import QuantHfSource

    with open_checkpoint(path) as source:
        width = as_dtype(dtype).itemsize if dtype else 0
        kept = source.quantised if isinstance(source, QuantHfSource) else ()
        return sum(
            info.size_bytes if name in kept else _numel(info.shape) * (width or info.dtype.itemsize)
            for name, info in source.tensors.items()
        )


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
