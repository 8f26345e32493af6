"""The name of all that a cached block's bits depend on beside its prefix: weights, config, dtypes, kernels, machine.

Blocks of two states never meet, so an answer with a hit on disk has the bits of one without. Every weight counts: of each tensor the sums
of its rows are hashed, which takes one pass over the memory, and the first bytes as they are. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from herd.engine.packed.weights import PackedModel
from herd.kernels import dispatch
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.version import __version__

_FIRST_BYTES = 4096
_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def state_name(model: Transformer, *, runner: str, layout: str) -> str:
    """32 hexadecimal digits for a model as `runner` computes it, with blocks of this layout."""
    kind = type(model)
    facts = {
        "config": asdict(model.config),
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "weights": model.digest if isinstance(model, PackedModel) else weights_digest(model),
        "dtype": str(model.dtype),
        "runner": runner,
        "layout": layout,
        "kernels": _kernels(model.device, model.dtype),
        "herd": __version__,
        "torch": torch.__version__,
    }
    return _name(facts)


def share_name(config: ModelConfig, *, weights: str, dtype: torch.dtype, layout: str, place: Sequence[int]) -> str:
    """32 hexadecimal digits for what a rank of a spread model computes on the CPU: its `weights`' digest, and (rank, tp, pp)."""
    facts = {
        "config": asdict(config),
        "weights": weights,
        "dtype": str(dtype),
        "layout": layout,
        "place": list(place),
        "kernels": _kernels(torch.device("cpu"), dtype),
        "herd": __version__,
        "torch": torch.__version__,
    }
    return _name(facts)


def rank_state(shares: Sequence[str], rank: int) -> str:
    """The state of a rank's blocks: their bits depend on every rank's share, since each layer reads what those before it made."""
    return _name({"shares": list(shares), "rank": rank})


def _name(facts: dict[str, object]) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def weights_digest(model: torch.nn.Module) -> str:
    """A digest that changes with any weight; not one to trust against someone who makes weights to fool it."""
    total = hashlib.blake2b(digest_size=32)
    everything = {**model.state_dict(), **dict(model.named_buffers())}  # quantised matrices are buffers that no state has
    for name, tensor in sorted(everything.items()):
        note_weight(total, name, tensor)
    return total.hexdigest()


def note_weight(total: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    """Hash what stands for a tensor."""
    total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    for part in _summary(tensor.detach()):
        total.update(part.cpu().numpy().tobytes())


@torch.inference_mode()
def _summary(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of each row's words, which wrap around, and the first bytes."""
    rows = tensor.contiguous().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    size = rows.shape[1] * rows.element_size()
    word = next(word for word in _WORDS if not size % word.itemsize)
    return rows.view(word).sum(dim=1, dtype=torch.int64), rows.view(torch.uint8).flatten()[:_FIRST_BYTES]


def _kernels(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What computes, as far as another choice may round otherwise. Threads matter to torch alone."""
    library = dispatch.native(device, dtype)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {_capability()}"
    if library is None:
        return {"runs": "torch", "threads": str(torch.get_num_threads()), "machine": machine, "fixed": str(dispatch.fixed_order())}
    return {"runs": _file_digest(library.path), "level": library.level, "machine": machine}


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
