"""Writes that are whole or absent: a temporary name beside the target, fsync, one rename.

Knows nothing of what is written. A crash or an error leaves the old target untouched and removes the temporary one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from herd.base.errors import NotFoundError, UsageError


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Flush every file below `root`, then its folders, to the disk."""
    for folder, _, names in os.walk(root):
        for name in names:
            with open(Path(folder) / name, "rb") as file:
                os.fsync(file.fileno())
        _fsync_directory(Path(folder))


@contextmanager
def atomic_directory(target: Path | str, *, overwrite: bool = False) -> Generator[Path, None, None]:
    """Yield a temporary folder beside `target`; on success it becomes `target`, on any error it disappears.

    Raises UsageError if `target` exists and is not empty and `overwrite` is false, NotFoundError if its parent cannot be made.
    """
    target = Path(target)
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not overwrite:
        raise UsageError(f"{target} exists and is not empty", hint="choose another destination, or pass --overwrite to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise NotFoundError(f"cannot write below {target.parent}: {error.strerror}", hint="check the path and its permissions") from error
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        fsync_tree(temporary)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
            os.rename(target, old / "was")
            try:
                os.rename(temporary, target)
            except BaseException:
                os.rename(old / "was", target)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(temporary, target)
        _fsync_directory(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def atomic_file(target: Path | str) -> Generator[Path, None, None]:
    """Yield a temporary path beside `target`; on success it replaces `target`, on any error it disappears."""
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.partial-", dir=target.parent)
    except OSError as error:
        raise NotFoundError(f"cannot write below {target.parent}: {error.strerror}", hint="check the path and its permissions") from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _fsync_directory(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
