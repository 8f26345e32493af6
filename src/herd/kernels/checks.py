"""What every op checks before a pointer crosses into C. A refusal names the value and what it should have been.

An op runs thousands of times a second, so it puts a message together only where something is wrong: `if not ...: raise refuse(...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from herd.base.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def require(condition: bool, message: str, hint: str) -> None:
    """Raise ConfigError unless `condition` holds."""
    if not condition:
        raise ConfigError(message, hint=hint)


def refuse(message: str, hint: str) -> ConfigError:
    """The error to raise."""
    return ConfigError(message, hint=hint)


def check_apart(name: str, rows: Tensor) -> None:
    """The rows of a matrix that is written to do not overlap."""
    if rows.shape[0] > 1 and rows.stride(0) < rows.shape[1]:
        raise refuse(f"rows of {name} overlap: stride {rows.stride(0)} of {rows.shape[1]} columns", "give a tensor of its own")


def check_rows(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """`x` has this shape, dtype and device, and its last dimension is contiguous."""
    if x.shape != shape or x.dtype != dtype or x.device != device:
        raise ConfigError(
            f"{name} is {x.dtype} {list(x.shape)} on {x.device}, expected {dtype} {list(shape)} on {device}",
            hint="check the tensor against the op's docstring",
        )
    if x.numel() and x.stride(-1) != 1 and x.shape[-1] != 1:
        raise ConfigError(f"{name} has stride {x.stride(-1)} in its last dimension, it must be 1", hint="call contiguous() on it")


def row_stride(x: Tensor) -> int:
    """Elements from row to row of a matrix; what a single row's stride says means nothing, but is never used."""
    return x.stride(0)


def flat(name: str, x: Tensor) -> Tensor:
    """[..., K] as [M, K] without a copy. Raises ConfigError where that cannot be."""
    if x.dim() == 2:
        return x
    if x.dim() == 1:
        return x[None]
    try:
        return x.view(-1, x.shape[-1])
    except RuntimeError as error:
        raise ConfigError(
            f"{name} of shape {list(x.shape)} and strides {list(x.stride())} is no matrix", hint="call contiguous() on it"
        ) from error
