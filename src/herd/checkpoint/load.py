"""Between checkpoints and models: `load_model` fills a Transformer tensor by tensor, `save_model` writes one in Hugging Face's layout.

Loading allocates no model before its weights: the peak is the weights themselves and one tensor. Safetensors that stay on the CPU in their
stored dtype are mapped, not read: loading then takes no time, and pages come in when they are first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from herd.base.atomic import atomic_directory
from herd.base.errors import UsageError, did_you_mean
from herd.checkpoint.hf import HfSource, main_dtype, write_hf
from herd.checkpoint.hf_config import SpecialIds
from herd.checkpoint.meta import MetaSource
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.quant_hf import QuantHfSource
from herd.checkpoint.source import DTYPE_NAMES, Format, TensorInfo, TensorSource
from herd.model.quant_linear import QuantLinear, quantised_matrices
from herd.model.transformer import Transformer

_STORED_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@runtime_checkable
class SavesTokenizer(Protocol):
    """What `save_model` needs of a tokenizer. The ids are ints; a type checker does not see that through a cached property."""

    @property
    def bos_id(self) -> Any:
        """The id that begins every sequence."""
        ...

    @property
    def stop_ids(self) -> Any:
        """The ids that end generation."""
        ...

    @property
    def pad_id(self) -> Any:
        """The id that fills rows."""
        ...

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer's files into a folder."""
        ...


def special_ids(tokenizer: SavesTokenizer) -> SpecialIds:
    """A tokenizer's special ids as config.json holds them."""
    return SpecialIds(bos=tokenizer.bos_id, eos=tuple(sorted(tokenizer.stop_ids)), pad=tokenizer.pad_id)


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype from its name ("bfloat16", "float16", "float32") or from itself. Raises UsageError for any other."""
    by_name = {name: known for known, name in DTYPE_NAMES.items()}
    if isinstance(dtype, str):
        if dtype not in by_name:
            raise UsageError(
                f"{dtype!r} is not a dtype for weights", hint=did_you_mean(dtype, by_name, otherwise="choose " + ", ".join(by_name))
            )
        return by_name[dtype]
    if dtype not in DTYPE_NAMES:
        raise UsageError(f"{dtype} is not a dtype for weights", hint="choose " + ", ".join(by_name))
    return dtype


def load_model(path: Path | str, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu") -> Transformer:
    """Load a model from any format, in eval mode, its parameters writable and trainable.

    Args:
        path: a Hugging Face or Meta folder, or a GGUF file.
        dtype: of the parameters; None takes the stored one (bfloat16 where the weights are quantised).
        device: where the parameters go.

    Raises:
        NotFoundError, CheckpointError, ConfigError: as `open_checkpoint`.
        UsageError: an unknown dtype.
    """
    wanted = None if dtype is None else as_dtype(dtype)
    with open_checkpoint(path) as source:
        return model_from_source(source, wanted or main_dtype(source), torch.device(device))


@torch.no_grad()
def model_from_source(source: TensorSource, dtype: torch.dtype, device: torch.device) -> Transformer:
    """Build the source's model in `dtype` on `device`. Raises CheckpointError."""
    with torch.device("meta"):
        model = Transformer(source.config)
    if isinstance(source, QuantHfSource):
        return _quantised_model(source, model, dtype, device)
    tensors = {name: _place(source, name, shape, dtype, device) for name, shape in source.config.parameter_shapes().items()}
    for name, tensor in tensors.items():
        if not _is_mapped(source, name, dtype, device):
            _fill(source, name, tensor)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))
    return model.eval()


def outline_of(source: TensorSource, dtype: torch.dtype) -> Transformer:
    """The source's model without its numbers, on the meta device: what planning asks shapes and kinds of."""
    with torch.device("meta"):
        model = Transformer(source.config).to(dtype)
    if isinstance(source, QuantHfSource):
        for name in source.quantised:
            parent, _, place = name.removesuffix(".weight").rpartition(".")
            setattr(model.get_submodule(parent), place, QuantLinear(source.outline(name), dtype))
    return model.eval()


def _quantised_model(source: QuantHfSource, model: Transformer, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A model some of whose matrices keep their codes."""
    for name, shape in source.config.parameter_shapes().items():
        owner, _, leaf = name.rpartition(".")
        if name in source.quantised:
            parent, _, place = owner.rpartition(".")
            setattr(model.get_submodule(parent), place, QuantLinear(source.read_quantised(name).to(device), dtype))
            continue
        tensor = torch.empty(shape, dtype=dtype, device=device)
        source.read_into(name, tensor)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))
    return model.eval()


def _is_mapped(source: TensorSource, name: str, dtype: torch.dtype, device: torch.device) -> bool:
    return isinstance(source, HfSource) and device.type == "cpu" and source.tensors[name].dtype == dtype


def _place(source: TensorSource, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A parameter's memory: mapped, or allocated and not touched yet.

    All of it is claimed before the first tensor is read: what comes and goes while reading would leave holes between parameters.
    """
    if isinstance(source, HfSource) and _is_mapped(source, name, dtype, device):
        return source.map(name)
    return torch.empty(shape, dtype=dtype, device=device)


def _fill(source: TensorSource, name: str, out: Tensor) -> None:
    if isinstance(source, HfSource | MetaSource):
        source.read_into(name, out)
    else:
        out.copy_(source.read(name))


class ModelSource:
    """A model in memory as a tensor source."""

    format: Format = "hf"

    def __init__(self, model: Transformer, path: Path | str = ".") -> None:
        self.path = Path(path)
        self.config = model.config
        self._parameters = dict(model.named_parameters())
        self.tensors: Mapping[str, TensorInfo] = {name: _info(parameter) for name, parameter in self._parameters.items()}

    def read(self, name: str) -> Tensor:
        """One parameter, on the CPU."""
        return self._parameters[name].detach().cpu()

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> ModelSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _info(parameter: Tensor) -> TensorInfo:
    dtype = as_dtype(parameter.dtype)
    return TensorInfo(shape=tuple(parameter.shape), dtype=dtype, stored=_STORED_NAMES[dtype], size_bytes=parameter.numel() * dtype.itemsize)


def save_model(model: Transformer, folder: Path | str, *, tokenizer: SavesTokenizer | None = None, overwrite: bool = False) -> None:
    """Write a model, whole or not at all, as a folder that herd, transformers and others read.

    Args:
        model: its parameters are written in their own dtype.
        folder: it must not exist, or be empty, unless `overwrite`.
        tokenizer: written beside the weights; its special ids go into config.json and generation_config.json.
        overwrite: replace what is at `folder`.

    Raises:
        UsageError: the folder exists and is not empty, the parameters' dtype is not one for weights, the model is quantised, or its
            weights are packed for the engine.
        DoesNotFitError: the disk is full.
    """
    if quantised_matrices(model):
        raise UsageError(
            f"the model has {len(quantised_matrices(model))} quantised matrices, which are not written as plain weights",
            hint="`herd convert SRC DST --to hf` makes plain numbers of a quantised folder",
        )
    source = ModelSource(model, folder)
    missing = [name for name in model.config.parameter_shapes() if name not in source.tensors]
    if missing:
        raise UsageError(
            f"the model holds no numbers of {len(missing)} tensors, {missing[0]} the first: its weights are packed for the engine",
            hint="load it with herd.checkpoint.load.load_model, which reads the checkpoint itself, and save that",
        )
    ids = None if tokenizer is None else special_ids(tokenizer)
    with atomic_directory(folder, overwrite=overwrite) as temporary:
        write_hf(source, temporary, ids=ids)
        if tokenizer is not None:
            tokenizer.save(temporary)
