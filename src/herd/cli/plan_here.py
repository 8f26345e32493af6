"""What herd's own engine would allocate for a model, from headers alone: on this machine's device, or on a GPU that need not be here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from herd.engine.memory import EngineConfig, MemoryPlan
    from herd.model.transformer import Transformer


def plan_here(model: str, engine: EngineConfig, *, dtype: str | None, device: str | None) -> tuple[MemoryPlan, str]:
    """The plan, and the dtype of weights and activations by name.

    Raises NotFoundError, DoesNotFitError, UsageError for a device or a dtype that is none, ConfigError where a GPU's kernels are not known.
    """
    import torch

    from herd.engine.build import plan_for

    place = _place(device)
    outline = _outline(model, None if dtype == "auto" else dtype)
    return plan_for(outline, engine, device=torch.device(place)), str(outline.dtype).removeprefix("torch.")


def _place(device: str | None) -> str:
    """The device to plan for: what `herd serve` would take, but a GPU that the flag names need not be here."""
    from herd.base import settings
    from herd.cli.load import check_device
    from herd.cli.serve import device_here

    return check_device(device) if device is not None and device != "auto" else device_here(settings.value("device", device))


def _outline(model: str, dtype: str | None) -> Transformer:
    """The model's shapes and kinds without its numbers; a published shape that is not here counts as bfloat16."""
    import torch

    from herd.base.errors import NotFoundError
    from herd.checkpoint.load import as_dtype
    from herd.checkpoint.resolve import resolve_model
    from herd.model.transformer import Transformer
    from herd.plan.models import find_shape, preset_name

    kind = None if dtype is None else as_dtype(dtype)
    try:
        path = resolve_model(model)
    except NotFoundError:
        if preset_name(model) is None:
            raise
        with torch.device("meta"):
            return Transformer(find_shape(model)[1]).to(kind or torch.bfloat16)
    return _outline_of(path, kind)


def _outline_of(path: Path, kind: torch.dtype | None) -> Transformer:
    from herd.checkpoint.hf import main_dtype
    from herd.checkpoint.load import outline_of
    from herd.checkpoint.open import open_checkpoint

    with open_checkpoint(path) as source:
        return outline_of(source, kind or main_dtype(source))
