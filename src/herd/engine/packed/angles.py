"""The cosines and sines of the first positions, kept as torch computed them, so that a start without torch has their very bits.

A file is of one torch on one processor: both choose how a cosine is computed. Shapes: P positions, H head dim.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from herd.base.errors import HerdError
from herd.base.processor import processor_fields
from herd.engine.packed.file import Damaged, read_sections, write_sections
from herd.engine.packed.names import ANGLES_SUFFIX, name_of, packed_dir
from herd.kernels.buffer import Buffer
from herd.kernels.torch_build import version_text
from herd.model.config import ModelConfig

MOST_POSITIONS = 8192
"""Of a longer context the rest is computed when a prompt gets there."""
_VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
"""With these a user says how torch is to compute."""
_PROCESSOR = ("vendor_id", "model name", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")


class KeptAngles:
    """Tables of positions from a file, float32 [P, H/2]; beyond its end they are torch's own."""

    def __init__(self, config: ModelConfig, cos: Buffer, sin: Buffer) -> None:
        self._config = config
        self._table: tuple[Any, Any] = (cos, sin)
        self._computed: Any = None

    def upto(self, num_positions: int) -> tuple[Any, Any]:
        """Tables of at least so many positions."""
        if num_positions > len(self._table[0]):
            self._computed = self._computed or _rope_table(self._config)
            self._table = self._computed.upto(num_positions)
        return self._table


def find_angles(config: ModelConfig) -> KeptAngles | None:
    """The angles of a model's positions, if they are kept and sound."""
    try:
        found, _, _ = read_sections(_path(config))
        return KeptAngles(config, found["cos"], found["sin"])
    except (OSError, Damaged, ValueError, KeyError, TypeError, AssertionError):
        return None


def keep_angles(config: ModelConfig) -> None:
    """Write the angles of a model's positions, if they are not there. Where nothing can be written, none are kept."""
    if find_angles(config) is not None:
        return
    count = min(config.max_position_embeddings, MOST_POSITIONS)
    tables = dict(zip(("cos", "sin"), _rope_table(config).upto(count), strict=True))
    with suppress(OSError, HerdError):
        packed_dir().mkdir(parents=True, exist_ok=True)
        write_sections(_path(config), lambda: ((name, table, {}) for name, table in tables.items()), {})


def _rope_table(config: ModelConfig) -> Any:
    from herd.kernels.rope import RopeTable
    from herd.model.rope import rope_frequencies

    return RopeTable(rope_frequencies(config))


def _path(config: ModelConfig) -> Path:
    scaling = None if config.rope_scaling is None else asdict(config.rope_scaling)
    positions = min(config.max_position_embeddings, MOST_POSITIONS)
    model = {"theta": config.rope_theta, "head_dim": config.head_dim, "scaling": scaling, "positions": positions}
    computed = {"torch": version_text(), "processor": _processor(), "asked": [os.environ.get(name) for name in _VARIABLES]}
    return packed_dir() / f"{name_of([model, computed])}{ANGLES_SUFFIX}"


def _processor() -> dict[str, str]:
    """What the system tells of the first processor: its kind and what it can."""
    told = {name: value for name, value in processor_fields().items() if name in _PROCESSOR}
    return told or {"machine": platform.machine(), "processor": platform.processor()}
