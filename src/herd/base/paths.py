"""Where herd keeps things on this machine. `HERD_HOME` moves all of it; the default is `~/.herd`."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def home() -> Path:
    """Herd's own folder: models that were pulled, chat history, this machine's measured figures, the log of the last error."""
    return Path(os.environ.get("HERD_HOME") or Path.home() / ".herd").expanduser()


def models_dir() -> Path:
    """Folders of models by name, as `herd pull` and `herd convert` leave them."""
    return home() / "models"


def server_dir() -> Path:
    """Where `herd serve` keeps files and batches."""
    return home() / "server"


def bundled_model() -> Path:
    """The folder of cria, the model that ships with herd."""
    return _PACKAGE / "cria"


def bundled_guard() -> Path:
    """The folder of cria-guard, the guard model that ships with herd."""
    return _PACKAGE / "cria_guard"
