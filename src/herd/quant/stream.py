"""Quantise a checkpoint block by block, whole or not at all, with the memory of one block and of its calibration activations.

Every finished block lies in a folder beside the destination (`.NAME.quantising`), with what the next one reads. A run that was killed goes
on behind the last of them and ends with the same bytes; a run with other settings begins anew. The folder becomes the checkpoint when the
last block is done. Shapes: B sequences, T tokens, D model dim.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from herd.base.atomic import atomic_directory, atomic_file
from herd.base.errors import UsageError
from herd.checkpoint.convert import copy_companions, ids_of, tokenizer_of
from herd.checkpoint.hf import GENERATION_CONFIG_FILE, INDEX_FILE, SHARD_BYTES, cut_shards, write_json
from herd.checkpoint.hf_config import CONFIG_FILE, config_to_json, generation_config_to_json
from herd.checkpoint.json_file import read_json_object
from herd.checkpoint.quant_cache import LARGEST, cache_names, cache_to_json
from herd.checkpoint.quant_parts import encode, written_parts
from herd.checkpoint.quant_scheme import MatrixScheme, schemes_to_json
from herd.checkpoint.safetensors_file import Declared, SafetensorsFile, write_safetensors
from herd.checkpoint.source import TensorSource
from herd.kernels.quantised import QuantWeight
from herd.quant.calibration import BlockRunner, CacheRange
from herd.quant.layer import QuantisedBlock, quantise_block
from herd.quant.rounding import check_finite, relative_error, round_matrix
from herd.quant.schemes import Settings, Size, size_of

RECORD_FILE = "quantize.json"
"""Beside the weights: how they were made, and the error of every matrix."""
_LEAST_RANGE = 2.0**-20
"""Of a cache's numbers: a layer whose keys are all zero has a scale too."""
_PLAN_FILE, _HEAD_FILE = "plan.json", "head.safetensors"

Progress = Callable[[int, int, str], None]
"""Called before each block with the number done, the number in all, and its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written: where, its size, the scheme and the relative error of each matrix, and how many blocks an earlier run had done."""

    path: Path
    size: Size
    schemes: dict[str, MatrixScheme]
    errors: dict[str, float]
    resumed: int
    notes: tuple[str, ...] = ()


class Stream:
    """A quantisation under way. `source` is open, rotated if that is asked for; matrices that are `ready` are written as they are."""

    def __init__(
        self,
        source: TensorSource,
        target: Path,
        settings: Settings,
        schemes: Mapping[str, MatrixScheme],
        *,
        dtype: torch.dtype,
        tokens_BT: Int[Tensor, "B T"] | None = None,
        details: Mapping[str, Any] | None = None,
        ready: Mapping[str, QuantWeight] | None = None,
    ) -> None:
        self._ready = ready
        self.source, self.target, self.settings, self.schemes, self.dtype = source, target, settings, dict(schemes), dtype
        self.config, self._details = source.config, dict(details or {})
        self._tokens = tokens_BT if settings.reads_text else None
        self._work = work_folder(target)
        self._runner = None if self._tokens is None else BlockRunner(self.config, self._tokens.shape[1])

    def run(self, *, overwrite: bool = False, shard_bytes: int = SHARD_BYTES, progress: Progress | None = None) -> Written:
        """Quantise what is left, then put the checkpoint together."""
        check_free(self.target, overwrite=overwrite)
        resumed, hidden = self._resume()
        total = self.config.num_hidden_layers + 1
        for layer in range(resumed, self.config.num_hidden_layers):
            if progress is not None:
                progress(layer, total, f"layer {layer}")
            hidden = self._layer(layer, hidden)
        if progress is not None:
            progress(total - 1, total, "head and files")
        self._head()
        notes = self._assemble(overwrite=overwrite, shard_bytes=shard_bytes)
        errors = self._errors
        shutil.rmtree(self._work)
        size = size_of(self.config, self.schemes, dtype_bytes=self.dtype.itemsize, kv_cache=bool(self.settings.kv_cache))
        return Written(path=self.target, size=size, schemes=self.schemes, errors=errors, resumed=resumed, notes=notes)

    def _resume(self) -> tuple[int, Tensor | None]:
        """The first block to do, and what it reads."""
        digest = self._digest()
        plan = self._work / _PLAN_FILE
        done = 0
        if plan.is_file() and read_json_object(plan).get("digest") == digest:
            while self._layer_file(done).is_file() and (self._tokens is None or self._hidden_file(done + 1).is_file()):
                done += 1
            if self._tokens is not None:
                # An earlier hidden file is gone once the next is whole.
                done = next((n for n in range(self.config.num_hidden_layers, 0, -1) if self._hidden_file(n).is_file()), 0)
        else:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir(parents=True)
            with atomic_file(plan) as temporary:
                write_json(temporary, {"digest": digest})
        if self._tokens is None:
            return done, None
        if done:
            return done, _read_all(self._hidden_file(done))["hidden"]
        embedding = self.source.read("model.embed_tokens.weight")
        return 0, embedding[self._tokens].float()

    def _digest(self) -> str:
        """Changes with anything that changes the bytes written."""
        stamps = file_stamps(self.source.path)
        tokens = "" if self._tokens is None else hashlib.sha256(self._tokens.contiguous().numpy().tobytes()).hexdigest()
        told = [asdict(self.settings), {name: asdict(scheme) for name, scheme in self.schemes.items()}, asdict(self.config), stamps, tokens]
        return hashlib.sha256(json.dumps([*told, str(self.dtype)], sort_keys=True).encode()).hexdigest()

    def _layer_file(self, layer: int) -> Path:
        return self._work / f"layer-{layer:05d}.safetensors"

    def _hidden_file(self, layer: int) -> Path:
        return self._work / f"hidden-{layer:05d}.safetensors"

    def _layer(self, layer: int, hidden: Tensor | None) -> Tensor | None:
        prefix = f"model.layers.{layer}."
        names = [name for name in self.config.parameter_shapes() if name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): self.source.read(name).float() for name in names}
        schemes = {name.removeprefix(prefix): scheme for name, scheme in self.schemes.items() if name.startswith(prefix)}
        block = quantise_block(
            tensors,
            schemes,
            self.config,
            self.settings,
            dtype=self.dtype,
            where=prefix,
            runner=self._runner,
            hidden_BTD=hidden,
            ready=self._ready,
        )
        encoded, record = self._encoded(prefix, block), {"errors": block.errors, "shares": block.shares}
        if hidden is None or self._runner is None:
            _write_all(self._layer_file(layer), encoded, record)
            return None
        seen = CacheRange()
        hidden = self._runner(block.build(self.config), hidden, seen)
        if self.settings.kv_cache:
            largest = LARGEST[self.settings.kv_cache]
            for name, most in (("k_scale", seen.key), ("v_scale", seen.value)):
                encoded[f"{prefix}self_attn.{name}"] = torch.tensor([max(most, _LEAST_RANGE) / largest])
        _write_all(self._layer_file(layer), encoded, record)
        _write_all(self._hidden_file(layer + 1), {"hidden": hidden}, {})
        self._hidden_file(layer).unlink(missing_ok=True)
        return hidden

    def _encoded(self, prefix: str, block: QuantisedBlock) -> dict[str, Tensor]:
        out = {prefix + name: tensor.to(self.dtype) for name, tensor in block.others.items()}
        for name, weight in block.matrices.items():
            out |= {f"{prefix}{name}.{part}": tensor for part, tensor in encode(weight, self.schemes[prefix + name]).items()}
        return out

    def _head(self) -> None:
        """The output matrix, where it is quantised too: rounded to nearest."""
        scheme = self.schemes.get("lm_head")
        if scheme is None:
            return
        weight = self.source.read("lm_head.weight").float()
        check_finite("lm_head.weight", weight)
        quantised = round_matrix(weight, scheme)
        parts = {f"lm_head.{part}": tensor for part, tensor in encode(quantised, scheme).items()}
        _write_all(self._work / _HEAD_FILE, parts, {"errors": {"lm_head": relative_error(weight, quantised)}, "shares": {}})

    def _assemble(self, *, overwrite: bool, shard_bytes: int) -> tuple[str, ...]:
        layers = [self._layer_file(layer) for layer in range(self.config.num_hidden_layers)]
        paths = [*layers, *([self._work / _HEAD_FILE] if "lm_head" in self.schemes else [])]
        files = [SafetensorsFile(path) for path in paths]
        try:
            where = {name: file for file in files for name in file.entries}
            self._errors, shares = _records(files, self.config.num_hidden_layers)
            with atomic_directory(self.target, overwrite=overwrite) as folder:
                copied = copy_companions(self.source, folder)
                tokenizer, notes = tokenizer_of(self.source)
                if tokenizer is not None and "tokenizer.json" not in copied:
                    tokenizer.save(folder)
                self._write_weights(folder, where, shard_bytes)
                ids = ids_of(self.source, tokenizer)
                quant = schemes_to_json(self.schemes, self.config)
                if self.settings.kv_cache:
                    quant["kv_cache_scheme"] = cache_to_json(self.settings.kv_cache)
                config = config_to_json(self.config, self.dtype, ids) | {"quantization_config": quant}
                write_json(folder / CONFIG_FILE, config)
                beside = self.source.path / GENERATION_CONFIG_FILE
                if self.source.format == "hf" and beside.is_file():
                    shutil.copyfile(beside, folder / GENERATION_CONFIG_FILE)
                else:
                    write_json(folder / GENERATION_CONFIG_FILE, generation_config_to_json(ids))
                write_json(folder / RECORD_FILE, self._record(shares))
        finally:
            for file in files:
                file.close()
        return notes

    def _record(self, shares: Mapping[str, float]) -> dict[str, Any]:
        size = size_of(self.config, self.schemes, dtype_bytes=self.dtype.itemsize, kv_cache=bool(self.settings.kv_cache))
        matrices = [
            {"name": name, "scheme": scheme.label, "inputs": scheme.activation, "relative_error": self._errors[name]}
            for name, scheme in self.schemes.items()
        ]
        return {"settings": asdict(self.settings), "size": asdict(size), "matrices": matrices, "shares": dict(shares), **self._details}

    def _write_weights(self, folder: Path, where: Mapping[str, SafetensorsFile], shard_bytes: int) -> None:
        declared = list(self._declared())
        sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape, dtype in declared}
        known = {name: (name, shape, dtype) for name, shape, dtype in declared}
        shards = cut_shards(sizes, shard_bytes)
        for shard in shards:
            # Wide numbers first, so that all are aligned.
            names = sorted(shard.tensors, key=lambda name: -known[name][2].itemsize)
            write_safetensors(folder / shard.name, [known[name] for name in names], self._tensors(names, where))
        if len(shards) > 1:
            weight_map = {name: shard.name for shard in shards for name in shard.tensors}
            write_json(folder / INDEX_FILE, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})

    def _declared(self) -> Iterator[Declared]:
        for name, shape in self.config.parameter_shapes().items():
            scheme = self.schemes.get(name.removesuffix(".weight"))
            if scheme is None:
                yield name, shape, self.dtype
                continue
            for part, (size, dtype) in written_parts(scheme, shape).items():
                yield f"{name.removesuffix('.weight')}.{part}", size, dtype

        for name in cache_names(self.config) if self.settings.kv_cache else ():
            yield name, (1,), torch.float32

    def _tensors(self, names: list[str], where: Mapping[str, SafetensorsFile]) -> Iterator[Tensor]:
        for name in names:
            yield where[name].read(name) if name in where else self.source.read(name).to(self.dtype)


def work_folder(target: Path) -> Path:
    """Where the blocks of a run that is not done lie."""
    return target.parent / f".{target.name}.quantising"


def check_free(target: Path, *, overwrite: bool) -> None:
    """Raises UsageError where the destination is taken."""
    if not overwrite and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not empty", hint="choose another destination, or pass --overwrite to replace it")


def _write_all(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    declared = [(name, tuple(tensors[name].shape), tensors[name].dtype) for name in names]
    with atomic_file(path) as temporary:
        write_safetensors(temporary, declared, (tensors[name] for name in names), metadata={"record": json.dumps(record)})


def _read_all(path: Path) -> dict[str, Tensor]:
    file = SafetensorsFile(path)
    try:
        return {name: file.read(name) for name in file.entries}
    finally:
        file.close()


def _records(files: list[SafetensorsFile], num_layers: int) -> tuple[dict[str, float], dict[str, float]]:
    """The errors of all matrices and the shares of all points, by their whole names."""
    errors: dict[str, float] = {}
    shares: dict[str, float] = {}
    for number, file in enumerate(files):
        record = json.loads(file.metadata["record"])
        prefix = f"model.layers.{number}." if number < num_layers else ""
        errors |= {prefix + name: error for name, error in record["errors"].items()}
        shares |= {prefix + name: share for name, share in record["shares"].items()}
    return errors, shares


def file_stamps(root: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every file of a checkpoint."""
    files = [root] if root.is_file() else sorted(root.iterdir())
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
