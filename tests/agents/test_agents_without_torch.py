"""Agents with their loop, stores and tools are there without torch, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import pkgutil, importlib
import herd.agents
for module in pkgutil.iter_modules(herd.agents.__path__):
    importlib.import_module("herd.agents." + module.name)
print(sorted(name for name in ("torch", "herd.engine.engine", "herd.stack") if name in sys.modules))
"""


def test_no_module_of_agents_loads_torch() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
