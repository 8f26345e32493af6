"""Every byte of tensors that are alive, operator by operator, and what each collective sends: for real tensors and for fake ones.

A storage counts from the operator that made it until it is freed; what FSDP resizes counts as it is at each moment. Buffers that a kernel
takes and gives back within one operator are not seen. Knows tensors and process groups, nothing of models.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from herd.kernels.torch_compat import collective_of, dispatch_mode_class, tree_leaves


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """Calls of one kind along one dimension, and the bytes that leave a device on a ring."""

    dimension: str
    kind: str
    ranks: int
    calls: int
    sent_bytes: int


KEY_DIMENSIONS = 5
"""Of gathered keys and values. FSDP sends flat buffers, and where nothing else is sharded both use one process group."""


class MemoryTracker(dispatch_mode_class()):
    """A dispatch mode; `live` and `peak` are bytes. `groups` names process groups by what they are called and how many ranks they have."""

    def __init__(self, groups: Mapping[str, tuple[str, int]] | None = None) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.groups = dict(groups or {})
        self._sizes: dict[int, int] = {}
        self._alive: dict[int, Any] = {}
        self._sent: dict[tuple[str, str, int], list[int]] = {}
        self._resize: Any = None

    def __enter__(self) -> Any:
        self._resize, tracker, original = torch.UntypedStorage.resize_, self, torch.UntypedStorage.resize_

        def resize(storage: Any, size: int) -> Any:
            result = original(storage, size)
            tracker._size(storage)
            return result

        torch.UntypedStorage.resize_ = resize  # pyright: ignore[reportAttributeAccessIssue]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it left behind; a distributed tensor's is counted as the operators on its local part."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        self._count(func, args, result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not isinstance(leaf, DTensor):
                self._size(leaf.untyped_storage())
        return result

    def add(self, tensors: Any) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._size(getattr(tensor, "_local_tensor", tensor).untyped_storage())

    def collectives(self) -> tuple[Collective, ...]:
        """What was sent, by dimension and kind."""
        return tuple(
            Collective(dimension=dimension, kind=kind, ranks=ranks, calls=calls, sent_bytes=sent)
            for (dimension, kind, ranks), (calls, sent) in sorted(self._sent.items())
        )

    def _size(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._sizes:
            self._alive[key] = weakref.ref(storage, lambda _: self._freed(key))
        self.live += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.live)

    def _freed(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)
        self._alive.pop(key, None)

    def _count(self, func: Any, args: Any, result: Any) -> None:
        found = collective_of(func.name(), args)
        if found is None:
            return
        kind, group = found
        dimension, ranks = self.groups.get(group, ("other", 1))
        taken = sum(leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
        given = sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        # c10d calls have both input and output among their arguments: the larger is the whole.
        leaves = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
        tensors = [leaf.nbytes for leaf in leaves]
        if dimension == "data" and any(leaf.dim() >= KEY_DIMENSIONS for leaf in leaves):
            dimension = "context"
        whole = max(tensors, default=max(taken, given)) if kind != "send" else taken
        share = {"send": whole, "reduce": 2 * whole * (ranks - 1) // ranks}.get(kind, whole * (ranks - 1) // ranks)
        entry = self._sent.setdefault((dimension, kind, ranks), [0, 0])
        entry[0] += 1
        entry[1] += share
