"""A checkpoint's packed weights found and mapped without torch, which is what a start takes longest for.

Found is what an earlier start has packed (`cache`), if nothing would have to be hashed, packed or computed before it can be used.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.checkpoint.hf_config import CONFIG_FILE, config_from_json, is_quantised
from herd.checkpoint.json_file import read_json_object
from herd.engine.packed.angles import find_angles
from herd.engine.packed.digests import known_digests
from herd.engine.packed.file import Damaged, read
from herd.engine.packed.names import limit_bytes, target_of
from herd.engine.packed.stored import StoredWeights
from herd.kernels import dispatch
from herd.kernels.buffer import dtype_name
from herd.kernels.forward import Angles
from herd.model.config import ModelConfig

if TYPE_CHECKING:
    from herd.kernels.buffer import Dtype

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MappedModel:
    """What the engine needs of a model, without torch. `digest` names the weights' content, `quantised` says what the checkpoint is."""

    config: ModelConfig
    weights: StoredWeights
    angles: Angles
    dtype: str
    digest: str
    quantised: bool


def locate(path: Path, dtype: Dtype | None) -> Path | None:
    """The file of a checkpoint's packed weights, if there is one and the C kernels run. Raises ConfigError as `limit_bytes`."""
    if not limit_bytes() or not (path / CONFIG_FILE).is_file():
        return None
    known = known_digests(path)
    if known is None:
        return None
    digests, stored = known
    wanted = dtype_name(dtype) if dtype is not None else "bfloat16" if is_quantised(path) else stored
    if wanted is None or dispatch.native_on_cpu(wanted) is None:
        return None
    target = target_of(digests, wanted)
    return target if target.is_file() else None


def find_mapped(path: Path, dtype: Dtype | None) -> MappedModel | None:
    """The packed model of a checkpoint, mapped; None where it has to be loaded. Raises ConfigError for a config that is none."""
    target = locate(path, dtype)
    if target is None:
        return None
    config = config_from_json(read_json_object(path / CONFIG_FILE), CONFIG_FILE, accept_quantised=True)
    angles = find_angles(config)
    found = None if angles is None else open_packed(target)
    if angles is None or found is None:
        return None
    weights, kind = found
    return MappedModel(config=config, weights=weights, angles=angles, dtype=kind, digest=target.stem, quantised=is_quantised(path))


def open_packed(target: Path) -> tuple[StoredWeights, str] | None:
    """The weights in a file and their dtype, or None; a damaged file goes."""
    try:
        weights, facts = read(target)
        kind = str(facts["dtype"])
    except FileNotFoundError:
        return None
    except (Damaged, OSError, ValueError, KeyError, TypeError, AssertionError, HerdError) as error:
        log.warning("packed weights %s are made anew: %s", target.name, error)
        target.unlink(missing_ok=True)
        return None
    with suppress(OSError):
        os.utime(target)
    return weights, kind
