"""Where packed weights are kept and what they are called. No torch.

KEY.herdpack     the weights; KEY is the SHA-256 of the checkpoint's files, the dtype and the layout of the packed bytes
NAME.digests     what is known of a checkpoint folder, see `digests`
NAME.angles      the cosines and sines of positions, see `angles`
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from herd.base.errors import ConfigError
from herd.base.paths import home
from herd.engine.packed.file import LAYOUT

DEFAULT_BYTES = 32 * 2**30
SUFFIX, NOTES_SUFFIX, ANGLES_SUFFIX = ".herdpack", ".digests", ".angles"


def packed_dir() -> Path:
    """Where the files are."""
    return home() / "packed"


def limit_bytes() -> int:
    """What they may take together. Raises ConfigError where `HERD_PACKED_BYTES` is no number of bytes."""
    text = os.environ.get("HERD_PACKED_BYTES")
    if not text:
        return DEFAULT_BYTES
    if not text.isdecimal():
        raise ConfigError(f"HERD_PACKED_BYTES={text!r} is no number of bytes", hint="give a whole number, or 0 to keep no packed weights")
    return int(text)


def name_of(facts: Any) -> str:
    """32 hexadecimal digits for what JSON can tell."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def target_of(digests: dict[str, str], dtype: str) -> Path:
    """The file for the packed weights of a checkpoint of these files, in a dtype."""
    return packed_dir() / f"{name_of({'files': digests, 'dtype': f'torch.{dtype}', 'layout': LAYOUT})}{SUFFIX}"
