"""Every private or moving name of torch that herd uses: one file to mend when torch moves one (2.11 to 2.13).

Imported inside the functions, so that importing this costs nothing and a name that is missing fails where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
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


def all_gather_flat(out: Tensor, part: Tensor, group: Any) -> None:
    """Every rank's tensor, one after the other; torch 2.13 gives the call another name."""
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(out, part, group=group)


def reduce_scatter_flat(out: Tensor, whole: Tensor, group: Any) -> None:
    """This rank's part of the sum of all ranks' tensors; torch 2.13 gives the call another name."""
    getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)(out, whole, group=group)


def flash_cpu(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """The CPU's fused attention of [B, N, T, H] over [B, K, S, H], and the log of its normaliser [B, N, T], which SDPA drops."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)


def flash_backward_cpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_z: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `flash_cpu` to q, k and v; out and log Z may be of a softmax over more keys than these."""
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return backward(grad, q, k, v, out, log_z, 0.0, causal)


def recompute_what_is_cheap(wanted: bool) -> None:
    """Whether graphs compiled from now on keep the results of products alone, wherever they can, or all that makes the backward fastest.

    The compiler has a budget of kept memory. Just below the whole it computes again all that fuses, and still no product.
    """
    from torch._functorch import config

    config.activation_memory_budget = 0.99 if wanted else 1.0


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Total += left right, in place, with the sum in the total's dtype; on a GPU the product itself adds, without a matrix between."""
    if left.dtype == total.dtype:
        return torch.addmm(total, left, right, out=total)
    if not total.is_cuda:
        return total.add_(left @ right)
    return torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, without autograd and without waiting for a redistribution; any other tensor as it is."""
    return getattr(tensor, "_local_tensor", tensor)


def dispatch_mode_class() -> Any:
    """`TorchDispatchMode`: sees every operator. Private by its module's name alone."""
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode


def tree_leaves(value: Any) -> list[Any]:
    """The leaves of nested containers."""
    from torch.utils._pytree import tree_leaves as leaves

    return leaves(value)


def _agree_on_static_shapes(_schedule: Any, stages: Any, *_: Any) -> None:
    """What the stages' first messages come to when all of them know their shapes."""
    from torch.distributed.pipelining._utils import InferenceMode

    for stage in stages:
        stage._inference_mode = InferenceMode.STATIC


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors made inside have shapes and no values.

    FSDP joins meshes when it first meets a cut parameter, which needs real ones; pipelines send a first message and read what came.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.pipelining.schedules import _PipelineSchedule  # pyright: ignore[reportPrivateUsage]

    warming = getattr(_PipelineSchedule, "_warmup_p2p", None)

    joining = getattr(DeviceMesh, "_concatenate", None)

    def join(*args: Any, **settings: Any) -> Any:
        with unset_fake_temporarily():
            return joining(*args, **settings)  # pyright: ignore[reportOptionalCall]

    try:
        if warming is not None:
            _PipelineSchedule._warmup_p2p = _agree_on_static_shapes  # pyright: ignore[reportAttributeAccessIssue]
        if joining is not None:
            DeviceMesh._concatenate = staticmethod(join)  # pyright: ignore[reportAttributeAccessIssue]
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        if warming is not None:
            _PipelineSchedule._warmup_p2p = warming  # pyright: ignore[reportAttributeAccessIssue]
        if joining is not None:
            DeviceMesh._concatenate = staticmethod(joining)  # pyright: ignore[reportAttributeAccessIssue]


def collective_of(name: str, args: Any) -> tuple[str, str] | None:
    """What a dispatched operator sends, and the name of its group: both the calls of c10d and the functional ones. None for others."""
    namespace, _, rest = name.partition("::")
    if namespace not in ("c10d", "_c10d_functional", "_c10d_functional_autograd"):
        return None
    kinds = {"gather": "gather", "reduce_scatter": "scatter", "all_reduce": "reduce", "allreduce": "reduce", "broadcast": "broadcast"}
    kind = next((kind for part, kind in kinds.items() if part in rest), "send" if rest.startswith("send") else None)
    if kind is None:
        return None
    if namespace == "c10d":
        boxed = next(value for value in args if hasattr(value, "_type") or type(value).__name__ in ("ScriptObject", "ProcessGroup"))
        group = boxed if isinstance(boxed, dist.ProcessGroup) else dist.ProcessGroup.unbox(boxed)
        return kind, group.group_name
    return kind, str(next(value for value in reversed(args) if isinstance(value, str)))


@cache
def multiplies_bfloat16(device_type: str) -> bool:
    """Whether products of bfloat16 on such a device are made by its own instructions; on a CPU oneDNN knows, where torch has it."""
    if device_type != "cpu":
        return True
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None) if torch.backends.mkldnn.is_available() else None
    return known is not None and bool(known())


def scaled_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: Any) -> Tensor:
    """Rowwise fp8 product with fast accumulation. `torch._scaled_mm` is private."""
    import torch

    product: Any = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    return product(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=dtype, use_fast_accum=True)


def allocation_peak(run: Any) -> int:
    """The most bytes that tensors on the CPU took at once while `run()` ran, over what was there before: by the allocator's own record."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    total = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        total += size
        peak = max(peak, total)
    return peak


def kill_process_group() -> None:
    """End the default group, where there is one, and what DTensor remembers of its meshes.

    A mesh of the same ranks in a later group equals the earlier one, and what was remembered of that would send by groups that are gone.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        _forget_meshes()


def _forget_meshes() -> None:
    from torch.distributed.tensor import DTensor, _redistribute

    dispatcher: Any = getattr(DTensor, "_op_dispatcher", None)
    propagate: Any = getattr(getattr(dispatcher, "sharding_propagator", None), "propagate_op_sharding", None)
    known = (getattr(_redistribute, "_gen_transform_infos", None), propagate)
    for clear in (
        *(getattr(one, "cache_clear", None) for one in known),
        getattr(torch._C, "_clear_DTensor_sharding_propagator_cache", None),
    ):
        if clear is not None:
            clear()
