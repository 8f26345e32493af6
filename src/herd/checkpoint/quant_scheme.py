"""How each matrix of a checkpoint is quantised, and the `quantization_config` of config.json that says so.

Reads what fbgemm_fp8, compressed-tensors (float, int and packed, mixed too), GPTQ (v1 and v2) and AWQ write; writes the first two. What
would change the numbers and herd does not have (static input scales, transforms at run time) is refused by name; what is said of a cache is
read in `quant_cache`.
Knows names and numbers, no tensors. Sources: compressed-tensors 0.20, AutoGPTQ and AutoAWQ file layouts, transformers' fbgemm_fp8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import regex

from herd.base.errors import CheckpointError, UsageError, did_you_mean
from herd.checkpoint.json_file import Fields
from herd.kernels.quantised import Activation, Kind
from herd.model.config import ModelConfig

Layout = Literal["dense", "packed", "gptq", "gptq_v2", "awq"]
"""How a matrix lies in the file: values beside scales, 32-bit words along the inputs, or GPTQ's and AWQ's words."""

META_BOUND = 1200.0
"""The cap of Meta's recipe on the largest input of a token."""
_DENSE = ("float-quantized", "int-quantized", "naive-quantized")
_PACKED = "pack-quantized"
_MAX_PATTERN = 400
_NO_HINT = "herd reads fbgemm_fp8, compressed-tensors, GPTQ and AWQ: use the unquantised model and `herd quantize`"


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixScheme:
    """One matrix: kind, inputs that share a scale (None: all of a row), zero points, what its inputs become, and its layout in the file.

    `block` is the number of rows that share a scale in the file; read alone.
    """

    kind: Kind
    group: int | None = None
    symmetric: bool = True
    activation: Activation = "none"
    bound: float | None = None
    layout: Layout = "dense"
    block: int = 1

    @property
    def bits(self) -> int:
        """Bits of a value."""
        return 4 if self.kind == "int4" else 8

    @property
    def label(self) -> str:
        """As listings show it: INT4-G128, INT8, F8_E4M3."""
        base = {"int4": "INT4", "int8": "INT8", "fp8": "F8_E4M3"}[self.kind]
        return base + (f"-G{self.group}" if self.group else "") + ("" if self.symmetric else "-ASYM")

    def groups(self, num_inputs: int) -> int:
        """Scales of a row."""
        return num_inputs // self.group if self.group else 1


def linear_names(config: ModelConfig) -> list[str]:
    """The matrices that a product has, in file order, without `.weight`: those of the blocks, and the head where it is not tied."""
    shapes = config.parameter_shapes()
    return [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2 and name != "model.embed_tokens.weight"]


def ffn_names(config: ModelConfig) -> list[str]:
    """The feed-forward matrices of all layers but the first and the last: what Meta's 8-bit release quantises."""
    inner = range(1, config.num_hidden_layers - 1)
    return [f"model.layers.{layer}.mlp.{name}" for layer in inner for name in ("gate_proj", "up_proj", "down_proj")]


def _refuse(what: str, hint: str = _NO_HINT) -> CheckpointError:
    return CheckpointError(f"the weights are quantised in a way that herd does not read: {what}", hint=hint)


def schemes_from_json(data: Mapping[str, Any], config: ModelConfig, where: str) -> dict[str, MatrixScheme]:
    """The scheme of every quantised matrix by `quantization_config` of a config.json. Raises CheckpointError, ConfigError."""
    fields = Fields(data=data, where=where).table("quantization_config")
    assert fields is not None, "only called where there is one"
    method = fields.data.get("quant_method")
    readers = {"fbgemm_fp8": _from_fbgemm, "compressed-tensors": _from_compressed, "gptq": _from_gptq, "awq": _from_awq}
    if not isinstance(method, str) or method not in readers:
        raise _refuse(f"quant_method is {method!r}", did_you_mean(str(method), readers, otherwise=_NO_HINT) or _NO_HINT)
    return readers[method](fields, config)


def _names(fields: Fields, key: str) -> list[str]:
    value = fields.data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) and len(item) <= _MAX_PATTERN for item in value):
        raise CheckpointError(f"{key} in {fields.where} is no list of names", hint="compare config.json with the published one")
    return value


def _kept(names: Iterable[str], listed: Sequence[str]) -> set[str]:
    """The matrices that transformers' `modules_to_not_convert` leaves alone: named whole, by a part of their path, or by their end."""
    return {name for name in names if any(name == key or f"{key}." in f"{name}." or name.endswith(f".{key}") for key in listed)}


def _from_fbgemm(fields: Fields, config: ModelConfig) -> dict[str, MatrixScheme]:
    bound = fields.number("activation_scale_ub", META_BOUND)
    if not bound > 0:
        raise CheckpointError(f"activation_scale_ub in {fields.where} is {bound:g}, it must be positive", hint="Meta's recipe has 1200")
    names = linear_names(config)
    kept = _kept(names, [*_names(fields, "modules_to_not_convert"), "lm_head"])
    scheme = MatrixScheme(kind="fp8", activation="fp8", bound=bound)
    return {name: scheme for name in names if name not in kept}


def _group_size(fields: Fields, num: int) -> int | None:
    if num in (-1, 0):
        return None
    if num < 1:
        raise CheckpointError(f"group_size in {fields.where} is {num}", hint="it is a positive number, or -1 for whole rows")
    return num


def _from_gptq(fields: Fields, config: ModelConfig) -> dict[str, MatrixScheme]:
    bits = fields.integer("bits")
    if bits not in (4, 8):
        raise _refuse(f"GPTQ with bits {bits}, herd reads 4 and 8")
    version = fields.data.get("checkpoint_format", "gptq")
    if version not in ("gptq", "gptq_v2"):
        raise _refuse(f"GPTQ with checkpoint_format {version!r}")
    if fields.data.get("dynamic"):
        raise _refuse("GPTQ with settings of single modules (dynamic)")
    kind: Kind = "int4" if bits == 4 else "int8"
    # Zero points are stored even where sym says that all are equal, so they are read, not believed.
    scheme = MatrixScheme(kind=kind, group=_group_size(fields, fields.integer("group_size", -1)), symmetric=False, layout=version)
    names = linear_names(config)
    kept = _kept(names, _names(fields, "modules_to_not_convert"))
    quantises_head = fields.flag("lm_head", False)
    return {name: scheme for name in names if name not in kept and (name != "lm_head" or quantises_head)}


def _from_awq(fields: Fields, config: ModelConfig) -> dict[str, MatrixScheme]:
    bits, version = fields.integer("bits" if "bits" in fields.data else "w_bit", 4), str(fields.data.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise _refuse(f"AWQ with bits {bits} and version {version!r}, herd reads 4 bits in version gemm")
    size = fields.integer("group_size" if "group_size" in fields.data else "q_group_size", 128)
    scheme = MatrixScheme(kind="int4", group=_group_size(fields, size), symmetric=False, layout="awq")
    names = linear_names(config)
    kept = _kept(names, [*_names(fields, "modules_to_not_convert"), "lm_head"])
    return {name: scheme for name in names if name not in kept}


def _from_compressed(fields: Fields, config: ModelConfig) -> dict[str, MatrixScheme]:
    status = fields.data.get("quantization_status", "compressed")
    if status != "compressed":
        raise _refuse(f"compressed-tensors with quantization_status {status!r}")
    for key in ("transform_config", "sparsity_config"):
        value = fields.data.get(key)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            raise _refuse(f"compressed-tensors with {key}")
    groups = fields.table("config_groups")
    if groups is None or not groups.data:
        raise CheckpointError(f"{fields.where} has no config_groups", hint="compare config.json with the published one")
    ignored, names = _names(fields, "ignore"), linear_names(config)
    ranked: dict[str, tuple[int, MatrixScheme]] = {}
    for key in groups.data:
        group = groups.table(key)
        if group is None:
            continue
        scheme, targets = _compressed_group(group, str(fields.data.get("format"))), _names(group, "targets")
        for name in names:
            rank = _match(name, targets)
            if rank is not None and _match(name, ignored) is None and rank < ranked.get(name, (9, scheme))[0]:
                ranked[name] = (rank, scheme)
    return {name: ranked[name][1] for name in names if name in ranked}


def _match(name: str, targets: Sequence[str]) -> int | None:
    """How a matrix is meant: 0 by name, 1 by a pattern, 2 as one of the linear modules; None where it is not."""
    if name in targets:
        return 0
    for target in targets:
        if target.startswith("re:"):
            try:
                if regex.match(target[3:], name, timeout=1.0):
                    return 1
            except (regex.error, TimeoutError) as error:
                raise _refuse(f"the pattern {target!r} ({error})", "the config is damaged or hostile: do not use this download") from error
    return 2 if "Linear" in targets else None


def _compressed_group(group: Fields, default: str) -> MatrixScheme:
    form = group.data.get("format") or default
    weights = group.table("weights")
    if weights is None:
        raise _refuse(f"{group.where} without weights")
    bits, kind_name = weights.integer("num_bits"), str(weights.data.get("type", "int"))
    kinds: dict[tuple[int, str], Kind] = {(4, "int"): "int4", (8, "int"): "int8", (8, "float"): "fp8"}
    kind = kinds.get((bits, kind_name))
    if kind is None or (form != _PACKED and (form not in _DENSE or kind == "int4")) or (form == _PACKED and kind == "fp8"):
        raise _refuse(f"compressed-tensors format {form!r} with {bits} bits of type {kind_name!r}")
    strategy = weights.data.get("strategy") or ("group" if weights.data.get("group_size") else "tensor")
    block, size = 1, None
    if strategy == "group":
        size = _group_size(weights, weights.integer("group_size"))
    elif strategy == "block":
        shape = weights.data.get("block_structure")
        if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(item, int) and 0 < item < 2**20 for item in shape)):
            raise _refuse(f"block_structure {shape!r}")
        block, size = shape
    elif strategy == "tensor":
        block = 0
    elif strategy != "channel":
        raise _refuse(f"compressed-tensors strategy {strategy!r} for weights")
    symmetric = weights.flag("symmetric", True)
    if not symmetric and kind != "int4":
        raise _refuse(f"{bits} bits of type {kind_name!r} with zero points")
    layout: Layout = "packed" if form == _PACKED else "dense"
    scheme = MatrixScheme(kind=kind, group=size, symmetric=symmetric, layout=layout, block=block)
    return replace(scheme, activation=_compressed_inputs(group, kind))


def _compressed_inputs(group: Fields, kind: Kind) -> Activation:
    inputs = group.table("input_activations")
    if group.table("output_activations") is not None:
        raise _refuse("quantised outputs")
    if inputs is None:
        return "none"
    found = (inputs.integer("num_bits"), inputs.data.get("type", "int"), inputs.data.get("strategy"), inputs.data.get("dynamic"))
    allowed = {"int8": (8, "int", "token", True), "int4": (8, "int", "token", True), "fp8": (8, "float", "token", True)}
    if found != allowed[kind] or not inputs.flag("symmetric", True):
        bits, name, strategy, dynamic = found
        raise _refuse(f"inputs of {bits} bits of type {name!r}, strategy {strategy!r}, dynamic {dynamic!r} for {kind} weights")
    return "fp8" if kind == "fp8" else "int8"


def schemes_to_json(schemes: Mapping[str, MatrixScheme], config: ModelConfig) -> dict[str, Any]:
    """The `quantization_config` of these schemes: fbgemm_fp8 where all have a bound, else compressed-tensors."""
    names = linear_names(config)
    kept = [name for name in names if name not in schemes]
    bounds = {scheme.bound for scheme in schemes.values()}
    if not schemes:
        raise UsageError("no matrix is quantised", hint="choose another scheme: Meta's recipe needs three layers or more")
    if bounds != {None}:
        if len(set(schemes.values())) != 1:
            raise UsageError("fbgemm_fp8 holds matrices of one scheme", hint="quantise to fp8-meta, or without a bound")
        return {"quant_method": "fbgemm_fp8", "activation_scale_ub": bounds.pop(), "modules_to_not_convert": kept}
    different = list(dict.fromkeys(schemes.values()))
    groups: dict[str, Any] = {}
    for number, scheme in enumerate(different):
        members = [name for name, found in schemes.items() if found == scheme]
        groups[f"group_{number}"] = _group_to_json(scheme, ["Linear"] if len(different) == 1 else members)
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": kept,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _group_to_json(scheme: MatrixScheme, targets: list[str]) -> dict[str, Any]:
    number = "float" if scheme.kind == "fp8" else "int"
    form = _PACKED if scheme.layout == "packed" else f"{number}-quantized"
    weights = {
        "num_bits": scheme.bits,
        "type": number,
        "strategy": "group" if scheme.group else "channel",
        "group_size": scheme.group,
        "symmetric": scheme.symmetric,
        "dynamic": False,
    }
    inputs = {"num_bits": 8, "type": number, "strategy": "token", "symmetric": True, "dynamic": True}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": None if scheme.activation == "none" else inputs,
        "output_activations": None,
        "format": form,
    }
