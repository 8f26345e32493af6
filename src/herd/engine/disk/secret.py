"""The secret of a folder of blocks: the key of the digests that name them and of their checksums. Made once, readable by its owner alone.

Without it no one can tell which file a guessed prompt would have, nor make a file that is taken for a block.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from herd.base.errors import ConfigError

KEY_BYTES = 32
NAME = "key"


def folder_secret(root: Path) -> bytes:
    """The folder's secret, made where there is none; of several processes that make one, all get the first's.

    Raises ConfigError for a key that others may read or that is none, OSError where there is none and none can be written.
    """
    path = root / NAME
    with contextlib.suppress(FileNotFoundError):
        return _read(path)
    own = root / f"{NAME}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link does not replace what another process has put there in the meantime.
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
    finally:
        own.unlink(missing_ok=True)
    return _read(path)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        key = file.read(KEY_BYTES + 1)
    if mode & 0o077:
        raise ConfigError(
            f"{path} has mode {mode:04o}, it must be 0600: others can read it", hint=f"delete {path.parent}: its key may be known"
        )
    if len(key) != KEY_BYTES:
        size = f"over {KEY_BYTES}" if len(key) > KEY_BYTES else str(len(key))
        raise ConfigError(f"{path} has {size} bytes, a key has {KEY_BYTES}", hint="delete it; the blocks beside it are lost")
    return key
