"""Put the C kernels into the wheel: their sources always, compiled where a compiler is there.

A compiled wheel carries `herd/kernels/lib/<digest>.so` and a platform tag. Without a compiler, or with HERD_BUILD_KERNELS=0, the wheel is
pure, and the kernels are compiled at first use. An editable install takes both from the checkout.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):
    """Hatchling's custom hook."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the sources, then compile them, before the wheel is put together."""
        if self.target_name != "wheel" or version == "editable":
            return
        folder = Path(self.root) / "csrc"
        build_data["force_include"][str(folder)] = "herd/kernels/csrc"
        if os.environ.get("HERD_BUILD_KERNELS") == "0":
            return
        sys.path.insert(0, str(Path(self.root) / "src"))
        from herd.base.errors import HerdError
        from herd.kernels import build

        self._made = tempfile.TemporaryDirectory(prefix="herd-wheel-")
        library = Path(self._made.name) / f"{build.digest(folder, None)}.so"
        try:
            levels = build.compile_library(folder, build.find_compiler(), library)
        except HerdError as error:
            self.app.display_warning(f"no C kernels in this wheel, they are compiled at first use: {error.message}")
            return
        self.app.display_info(f"compiled the CPU kernels: {', '.join(levels)}")
        build_data["force_include"][str(library)] = f"herd/kernels/lib/{library.name}"
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled."""
        if hasattr(self, "_made"):
            self._made.cleanup()
