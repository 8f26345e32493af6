"""Packed weights of checkpoints, kept in `HERD_HOME/packed`, so that a second start neither reads nor packs the first one's again.

What is damaged or of another layout is made anew; the files used longest ago go once all together pass `HERD_PACKED_BYTES` (default 32 GiB;
0 keeps none and packs in memory at each start). Kept are quantised checkpoints, and others up to `MOST_PLAIN_BYTES`: those start without
torch then (`mapped`); larger ones are mapped from their own files.
"""

from __future__ import annotations

from pathlib import Path

import torch

from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.base.memory import gib
from herd.checkpoint.hf_config import CONFIG_FILE, config_from_json, is_quantised
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.load import as_dtype, load_model
from herd.engine.packed.angles import keep_angles
from herd.engine.packed.digests import digests_of, note_dtype
from herd.engine.packed.file import write
from herd.engine.packed.mapped import MappedModel, open_packed
from herd.engine.packed.names import SUFFIX, limit_bytes, packed_dir, target_of
from herd.engine.packed.weights import PackedModel, PackedWeights, pack_model, runs_in_c
from herd.kernels import dispatch
from herd.kernels.buffer import dtype_name
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

log = get_logger(__name__)
MOST_PLAIN_BYTES = 2**30
"""Weights as they come that are packed on disk: more of them take longer to read than torch does, and the room twice."""


def load_for_engine(path: Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu") -> Transformer:
    """A model for `build_engine`: a quantised one mapped from its packed file where there is one, else loaded, and packed for next time.

    As `load_model` where C does not run here. Raises as `load_model`.
    """
    limit = limit_bytes()
    if not limit or torch.device(device).type != "cpu" or not (path.is_dir() and (path / CONFIG_FILE).is_file()):
        return load_model(path, dtype=dtype, device=device)
    return _quantised(path, dtype, limit) if is_quantised(path) else _plain(path, dtype, limit)


def _quantised(path: Path, dtype: torch.dtype | str | None, limit: int) -> Transformer:
    """A quantised model, in packed weights where C takes it."""
    wanted = torch.bfloat16 if dtype is None else as_dtype(dtype)
    if dispatch.native_on_cpu(wanted) is None:
        return load_model(path, dtype=dtype)
    target = target_of(digests_of(path), dtype_name(wanted))
    config = config_from_json(read_json_object(path / CONFIG_FILE), CONFIG_FILE, accept_quantised=True)
    found = _open(target, config)
    if found is not None:
        keep_angles(config)
        return found
    model = load_model(path, dtype=dtype)
    if not runs_in_c(model):
        return model
    try:
        _keep(target, model, path, limit)
    except (OSError, HerdError) as error:
        log.warning("the packed weights of %s are not kept: %s", path.name, error)
        return model
    return _open(target, config) or model


def _plain(path: Path, dtype: torch.dtype | str | None, limit: int) -> Transformer:
    """A model whose weights are numbers; it is packed for a next start without torch, if it is small."""
    model = load_model(path, dtype=dtype)
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size > min(MOST_PLAIN_BYTES, limit) or dispatch.native_on_cpu(model.dtype) is None:
        return model
    try:
        target = target_of(digests_of(path), dtype_name(model.dtype))
        if dtype is None:
            note_dtype(path, dtype_name(model.dtype))
        if target.is_file():
            keep_angles(model.config)
        else:
            _keep(target, model, path, limit)
    except (OSError, HerdError) as error:
        log.debug("the packed weights of %s are not kept: %s", path.name, error)
    return model


def _keep(target: Path, model: Transformer, path: Path, limit: int) -> None:
    """Write a model's packed weights and angles. Raises OSError, HerdError."""
    write(target, pack_model(model), {"dtype": dtype_name(model.dtype), "of": path.name, "folder": str(path.resolve())})
    keep_angles(model.config)
    make_room(limit, keep=target)


def _open(target: Path, config: ModelConfig) -> PackedModel | None:
    """The packed model in a file, or None."""
    found = open_packed(target)
    if found is None:
        return None
    weights, kind = found
    return PackedModel(config, PackedWeights.of(weights), dtype=as_dtype(kind), digest=target.stem)


def model_of(mapped: MappedModel, path: Path) -> Transformer:
    """The model that a mapped one stands for: over the same memory where it is quantised, else loaded from its checkpoint."""
    if not mapped.quantised:
        return load_model(path, dtype=mapped.dtype)
    return PackedModel(mapped.config, PackedWeights.of(mapped.weights), dtype=as_dtype(mapped.dtype), digest=mapped.digest)


def make_room(limit: int, *, keep: Path | None = None) -> list[Path]:
    """Delete what was used longest ago until the rest is within `limit` bytes; `keep` stays. What was deleted."""
    files = sorted(packed_dir().glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    total, gone = sum(path.stat().st_size for path in files), []
    for path in files:
        if total <= limit or path == keep:
            continue
        total -= path.stat().st_size
        path.unlink(missing_ok=True)
        gone.append(path)
        log.info("deleted packed weights %s, used longest ago: all of them are to stay within %s", path.name, gib(limit))
    return gone
