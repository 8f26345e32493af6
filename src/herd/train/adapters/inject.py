"""Adapters on a whole model: put in, switched off, merged, taken out; and a state that holds the adapters alone.

A model with adapters trains nothing else, and its `state_dict` is the adapters' alone: what is frozen is in the model's own files already,
so a resumable state of a 70B model's adapters is as small as they are.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from herd.base.errors import UsageError
from herd.model.init import parameter_generator
from herd.model.linear import Linear
from herd.model.transformer import Transformer
from herd.train.adapters.config import LoraConfig
from herd.train.adapters.layer import AdaptedLinear


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """The layers that have an adapter, by name."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


def inject(model: Transformer, config: LoraConfig, *, seed: int = 0) -> Transformer:
    """Freeze the model and put adapters on its target layers, B at zero, so that it computes what it did. Returns the model.

    A's values are a function of (seed, name) alone. Raises UsageError if the model has adapters already or the rank is 0.
    """
    if config.rank < 1:
        raise UsageError("adapters of rank 0 are none", hint="set lora.rank=16")
    if any(True for _ in adapted_layers(model)):
        raise UsageError("the model has adapters already", hint="merge or remove them first")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear) and name.rpartition(".")[2] in config.targets:
            _replace(model, name, _with_start(AdaptedLinear(module, config), name, seed))
    score = getattr(model, "score", None)
    if score is not None:  # a reward model's head is new: it is trained whole, as PEFT's modules_to_save
        score.weight = nn.Parameter(score.weight.detach().float())
    model.register_state_dict_post_hook(_keep_trained)
    model.register_load_state_dict_post_hook(_expect_trained)
    return model


def _with_start(layer: AdaptedLinear, name: str, seed: int) -> AdaptedLinear:
    """A as nn.Linear draws it, uniform within 1 / sqrt(K); B zero."""
    bound = 1 / math.sqrt(layer.shape[1])
    with torch.no_grad():
        values = torch.rand(layer.lora_A.weight.shape, generator=parameter_generator(seed, f"{name}.lora_A.weight"))
        layer.lora_A.weight.copy_((2 * values - 1) * bound)
        layer.lora_B.weight.zero_()
    return layer


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _keep_trained(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    wanted = {prefix + name for name in trained_parameters(module)}
    for name in [name for name in state if name.startswith(prefix) and name not in wanted]:
        del state[name]


def _expect_trained(module: nn.Module, incompatible: Any) -> None:
    """What is frozen is not missing from a state that holds the trained part."""
    wanted = trained_parameters(module)
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name in wanted]


@contextmanager
def adapters_off(model: Transformer) -> Generator[Transformer, None, None]:
    """The model as it was before its adapters: the reference of a preference loss, without a second copy."""
    layers = [layer for _, layer in adapted_layers(model)]
    for layer in layers:
        layer.enabled = False
    try:
        yield model
    finally:
        for layer in layers:
            layer.enabled = True


def merge(model: Transformer) -> Transformer:
    """Add every adapter to its matrix; `unmerge` undoes it, bit for bit. Returns the model."""
    for _, layer in adapted_layers(model):
        layer.merge()
    return model


def unmerge(model: Transformer) -> Transformer:
    """Put every matrix back as it was. Returns the model."""
    for _, layer in adapted_layers(model):
        layer.unmerge()
    return model


@torch.no_grad()
def merged_copy(model: Transformer, dtype: torch.dtype | None = None) -> Transformer:
    """A plain model that computes what the adapted one does, in `dtype` (the model's own unless given). 4-bit matrices are unpacked."""
    layers = dict(adapted_layers(model))
    dtype = dtype or model.dtype
    with torch.device("meta"):
        plain = type(model)(model.config)
    for name, _ in list(plain.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        value: Tensor = layers[owner].adapted_weight() if owner in layers else model.get_parameter(name)
        setattr(plain.get_submodule(owner), leaf, nn.Parameter(value.detach().to(dtype, copy=True)))
    return plain.eval()
