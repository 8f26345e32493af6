"""Rows, a file for each family of objects. `load` imports every file here, so that `Base.metadata` is whole."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from herd.store.tables.base import Base

__all__ = ["Base", "load"]


def load() -> None:
    """Import every family."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
