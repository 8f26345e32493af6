"""Clients that herd does not depend on, in Pythons of their own, which `make clients` makes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest


def _folder() -> Path:
    """Where the environments of clients are: `HERD_CLIENTS_DIR` or `.venv-clients`."""
    return Path(os.environ.get("HERD_CLIENTS_DIR", Path(__file__).resolve().parents[2] / ".venv-clients"))


@cache
def python_with(package: str) -> str:
    """The interpreter of the clients that get along: `HERD_CLIENTS_PYTHON`, else the one that `make clients` made, else the one that runs
    the tests. Skips the test where it lacks the package.
    """
    made = _folder() / "together" / "bin" / "python"
    python = os.environ.get("HERD_CLIENTS_PYTHON") or (str(made) if made.is_file() else sys.executable)
    found = subprocess.run(
        [python, "-c", f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"], check=False
    )
    if found.returncode:
        pytest.skip(f"needs {package}, which {python} has not (`make clients` makes one that has; or set HERD_CLIENTS_PYTHON)")
    return python


def run_foreign(command: list[str], folder: Path, variables: Mapping[str, str]) -> str:
    """Run to the end, away from herd's own packages; what it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env={**kept, **offline, **variables}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


CLIENTS = {
    "llama-stack-client-0.2.12": "llama-stack-client==0.2.12",
    "llama-stack-client-0.3.5": "llama-stack-client==0.3.5",
    "llama-stack-client-0.7.5": "llama-stack-client==0.7.5",
    "ogx-client-1.5.0": "ogx-client==1.5.0",
}
"""Environments of clients that exclude each other, by name; `make clients` makes them with Python 3.12."""


def client_python(name: str) -> str:
    """The interpreter of a client's environment. Skips the test where there is none."""
    if name == "llama-stack-client-0.2.12" and find_spec("llama_stack_client") is not None:
        return sys.executable
    python = _folder() / name / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"needs {CLIENTS[name]} in an environment of its own at {python.parents[1]} (`make clients` makes it)")
    return str(python)
