"""A quantised folder in Hugging Face's layout as a tensor source: matrices read as numbers, or as they are quantised.

`tensors` has the model's own names, so that whatever reads a checkpoint reads this one, dequantised; `read_quantised` gives a matrix its
codes. Headers are checked when it is opened, values when they are read. Layouts are in `quant_parts`, schemes in `quant_scheme`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.checkpoint.hf import HfSource
from herd.checkpoint.hf_config import CONFIG_FILE
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.problems import Problem, compare_shapes
from herd.checkpoint.quant_cache import CacheKind, cache_kind, cache_names, scale_problem
from herd.checkpoint.quant_parts import decode, part_names
from herd.checkpoint.quant_scheme import MatrixScheme, schemes_from_json
from herd.checkpoint.source import TensorInfo
from herd.kernels.quantised import FP8_DTYPE, QuantWeight

_DTYPE = torch.bfloat16


class QuantHfSource(HfSource):
    """A folder with `quantization_config`, open for reading. As `HfSource`, its problems gather with `strict=False`."""

    accepts_quantised = True

    def __init__(self, folder: Path | str, *, strict: bool = True) -> None:
        self.quantised: Mapping[str, MatrixScheme] = {}
        self.cache_kind: CacheKind | None = None
        super().__init__(folder, strict=strict)

    def _check(self) -> None:
        """Gather each matrix's parts under its own name, then look at names and shapes as for any model."""
        self._parts: dict[str, dict[str, str]] = {}
        if self.config.num_hidden_layers > max(len(self._where), 1):
            super()._check()
            return
        data = read_json_object(self.path / CONFIG_FILE)
        schemes = schemes_from_json(data, self.config, CONFIG_FILE)
        self.quantised = {f"{name}.weight": scheme for name, scheme in schemes.items()}
        for name, scheme in schemes.items():
            needed, allowed = part_names(scheme)
            self._parts[f"{name}.weight"] = {
                suffix: f"{name}.{suffix}" for suffix in sorted(needed | allowed) if f"{name}.{suffix}" in self._where
            }
            for suffix in sorted(needed):
                if f"{name}.{suffix}" not in self._where:
                    message = f"{self.path} has no tensor {name}.{suffix}, which {scheme.label} weights need"
                    self.problems.append(Problem(kind="missing", name=f"{name}.{suffix}", message=message))
        cache = self._check_cache(data)
        self._check_shapes(cache)

    def _check_cache(self, data: Mapping[str, Any]) -> set[str]:
        """The names of the cache's scales, each looked at."""
        self.cache_kind, stored = cache_kind(data, CONFIG_FILE)
        names = cache_names(self.config) if stored else []
        for name in names:
            if name not in self._where:
                message = f"{self.path} has no {name}, though kv_cache_scheme in {CONFIG_FILE} says that scales of the cache are stored"
                self.problems.append(Problem(kind="missing", name=name, message=message))
                continue
            wrong = scale_problem(name, self._where[name].read(name))
            if wrong is not None:
                self.problems.append(Problem(kind="values", name=name, message=wrong))
        return set(names)

    def cache_scales(self) -> dict[str, float]:
        """The scales of the cache that the checkpoint was calibrated for, by name; none where it has none."""
        return {name: float(self._where[name].read(name)) for name in cache_names(self.config) if name in self._where}

    def _check_shapes(self, cache: set[str]) -> None:
        parts = {part for parts in self._parts.values() for part in parts.values()} | cache
        expected = {name: shape for name, shape in self.config.parameter_shapes().items() if name not in self.quantised}
        found = {name: file.entries[name].shape for name, file in self._where.items() if name not in parts}
        self.problems += compare_shapes(expected, found, str(self.path))
        for name in found:
            entry = self._where[name].entries[name]
            if entry.code not in ("F32", "F16", "BF16"):
                message = f"{name} in {self._where[name].path.name} is stored as {entry.code}, though its config does not quantise it"
                self.problems.append(Problem(kind="dtype", name=name, message=message))

    def _infos(self) -> Mapping[str, TensorInfo]:
        shapes, infos = self.config.parameter_shapes(), {}
        for name, shape in shapes.items():
            if name in self.quantised:
                size = sum(self._size(part) for part in self._parts[name].values())
                infos[name] = TensorInfo(shape=shape, dtype=_DTYPE, stored=self.quantised[name].label, size_bytes=size)
            elif name in self._where:
                infos[name] = self._info(name)
        return infos

    def _size(self, name: str) -> int:
        entry = self._where[name].entries[name]
        return entry.end - entry.begin

    def read_quantised(self, name: str) -> QuantWeight:
        """One matrix as it is stored, in memory of its own."""
        parts = {suffix: self._where[part].read(part) for suffix, part in self._parts[name].items()}
        return decode(parts, self.quantised[name], self.config.parameter_shapes()[name], name.removesuffix(".weight"))

    def outline(self, name: str) -> QuantWeight:
        """One matrix on the meta device, from headers alone: as `read_quantised` gives it, but for an order of columns."""
        scheme, (n, k) = self.quantised[name], self.config.parameter_shapes()[name]
        width, kind = {"int4": (k // 2, torch.uint8), "int8": (k, torch.int8), "fp8": (k, FP8_DTYPE)}[scheme.kind]
        scales = torch.empty(n, scheme.groups(k), device="meta")
        return QuantWeight(
            kind=scheme.kind,
            values=torch.empty(n, width, dtype=kind, device="meta"),
            scales=scales,
            zeros=None if scheme.symmetric or scheme.kind != "int4" else torch.empty_like(scales, dtype=torch.uint8),
            activation=scheme.activation,
            bound=scheme.bound,
        )

    def read(self, name: str) -> Tensor:
        """One tensor, dequantised where it is quantised."""
        return self.read_quantised(name).dequantise().to(_DTYPE) if name in self.quantised else super().read(name)

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill a tensor of the right shape and any dtype."""
        if name in self.quantised:
            out.copy_(self.read_quantised(name).dequantise())
            return
        super().read_into(name, out)

    def map(self, name: str) -> Tensor:
        """One tensor over the mapped file; a quantised one in memory of its own."""
        return self.read(name) if name in self.quantised else super().map(name)
