"""A prefix cache on disk for an engine that is being built: the folder, its secret, and what its blocks are."""

from __future__ import annotations

from pathlib import Path

from herd.base.errors import ConfigError
from herd.base.log import get_logger
from herd.base.memory import gib
from herd.engine.batch import BlockCopier
from herd.engine.disk.block_file import BlockFormat
from herd.engine.disk.folder import BlockFolder
from herd.engine.disk.identity import state_name
from herd.engine.disk.secret import folder_secret
from herd.model.transformer import Transformer

log = get_logger(__name__)


def open_secret(folder: str | Path) -> bytes | None:
    """The secret of the folder, made if need be; None, with a warning, where the folder has none and cannot be written.

    Raises ConfigError for what cannot be a folder, and for a secret that is none any more.
    """
    root = Path(folder)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"prefix_dir {root} cannot be made: {error.strerror}", hint="name a folder that can be written") from error
    try:
        return folder_secret(root)
    except OSError as error:
        log.warning("there is no prefix cache on disk: %s has no key and none can be written there: %s", root, error.strerror)
        return None


def open_folder(folder: str | Path, model: Transformer, runner: BlockCopier, *, secret: bytes, max_bytes: int) -> BlockFolder:
    """The folder for the blocks of a model's runner. Raises ConfigError for a limit that holds hardly a block."""
    format = BlockFormat(layout=runner.block_layout, content_bytes=runner.block_bytes, key=secret)
    check_limit(max_bytes, format.file_bytes)
    state = state_name(model, runner=type(runner).__name__, layout=runner.block_layout)
    return BlockFolder(Path(folder), state, format, max_bytes=max_bytes)


def check_limit(max_bytes: int, file_bytes: int) -> None:
    """Raises ConfigError for a limit that holds hardly a block."""
    if max_bytes < 8 * file_bytes:
        raise ConfigError(
            f"prefix_dir_bytes is {max_bytes:,}, and a block of this model takes {file_bytes:,}",
            hint=f"give it {gib(8 * file_bytes)} or more",
        )
