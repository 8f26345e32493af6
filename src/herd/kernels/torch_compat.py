"""Every private or moving name of torch that herd uses: one file to mend when torch moves one (2.11 to 2.13).

Imported inside the functions, so that importing this costs nothing and a name that is missing fails where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def flatten_mesh(mesh: Any, name: str) -> Any:
    """The dimensions of a (sliced) device mesh as one, under a name. `DeviceMesh._flatten` is private in all versions."""
    return mesh._flatten(name)


def init_fake_process_group(rank: int, world_size: int) -> None:
    """A default group whose collectives do nothing: one process stands for any rank of any world. Torch keeps it with its tests."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # also registers the backend

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)


def sum_gradients(module: Any) -> None:
    """Let FSDP add up gradients and divide by nothing: the loss is divided by the global count already."""
    module.set_gradient_divide_factor(1.0)
    if hasattr(module, "set_force_sum_reduction_for_comms"):
        module.set_force_sum_reduction_for_comms(True)


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, without autograd and without waiting for a redistribution; any other tensor as it is."""
    return getattr(tensor, "_local_tensor", tensor)


@contextmanager
def dispatch_mode(mode: Any) -> Iterator[Any]:
    """A `TorchDispatchMode` in force; the class is private by its module's name alone."""
    with mode:
        yield mode


def dispatch_mode_class() -> Any:
    """`TorchDispatchMode`."""
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode


def tree_leaves(value: Any) -> list[Any]:
    """The leaves of nested containers."""
    from torch.utils._pytree import tree_leaves as leaves

    return leaves(value)


def kill_process_group() -> None:
    """End the default group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


__all__ = [
    "dispatch_mode",
    "dispatch_mode_class",
    "flatten_mesh",
    "init_fake_process_group",
    "kill_process_group",
    "local_tensor",
    "sum_gradients",
    "torch",
    "tree_leaves",
]
