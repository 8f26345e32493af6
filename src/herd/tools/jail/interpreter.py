"""The Python that runs code in a jail, and the folders it needs to see: its own installation and the system's libraries.

The default is the Python that runs herd, with the packages that are installed for it; `HERD_CODE_PYTHON` names another, such as one
with packages for data analysis and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from herd.base import settings
from herd.base.errors import NotFoundError

_ASK = (
    "import sys, json, sysconfig, platform; p = sysconfig.get_paths(); print(json.dumps([sys.version_info[:2], platform.machine(), "
    "[sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, p['stdlib'], p['purelib'], p['platlib']]]))"
)
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")
_ETC = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/fonts", "/etc/alternatives", "/etc/mime.types")
_OLDEST = (3, 9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Interpreter:
    """A Python and the folders it is installed in, which a jail shows read-only."""

    path: str
    folders: tuple[str, ...]


def chosen(flag: str | None = None) -> Interpreter:
    """The interpreter that the settings name. Raises NotFoundError if it is none, or too old."""
    return describe(settings.value("code_python", flag) or sys.executable)


@lru_cache(maxsize=8)
def describe(path: str) -> Interpreter:
    """An interpreter by its path. Raises NotFoundError."""
    hint = "set HERD_CODE_PYTHON to the path of a Python 3.9 or newer"
    try:
        done = subprocess.run([path, "-I", "-c", _ASK], capture_output=True, timeout=60, check=True, env={"LANG": "C.UTF-8"})
        version, _, prefixes = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise NotFoundError(f"{path} is no Python that runs", hint=hint) from error
    if tuple(version) < _OLDEST:
        raise NotFoundError(f"{path} is Python {version[0]}.{version[1]}", hint=hint)
    found = {*prefixes, str(Path(os.path.realpath(path)).parent), *_link_folders(path)}
    outside = sorted(folder for folder in found if os.path.isdir(folder) and not _below(folder, ("/usr",)))
    wide = next((folder for folder in outside if folder.count("/") < 2 or folder == os.path.expanduser("~")), None)
    if wide is not None:
        raise NotFoundError(f"{path} is installed in {wide}, which a jail cannot show without showing what else is there", hint=hint)
    # A folder that another one of the list holds needs no entry of its own.
    folders = tuple(folder for folder in outside if not _below(folder, tuple(other for other in outside if other != folder)))
    return Interpreter(path=path, folders=folders)


def _link_folders(path: str) -> set[str]:
    """The folders that a chain of links leads through; a virtual environment's `python` is such a chain."""
    folders: set[str] = set()
    for _ in range(16):
        folders.add(os.path.dirname(os.path.abspath(path)))
        if not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return folders


def _below(folder: str, parents: tuple[str, ...]) -> bool:
    return any(folder == parent or folder.startswith(parent + "/") for parent in parents)


def system_paths() -> tuple[str, ...]:
    """What a program of this system needs besides: libraries, and the few files of /etc without which names and fonts are missing."""
    return tuple(path for path in (*_SYSTEM, *_ETC) if os.path.lexists(path))
