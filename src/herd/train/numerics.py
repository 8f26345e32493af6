"""A stage's switches applied to a model, in the order that they need: float8, recomputation, compilation; and its kernels' threads."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import nn

from herd.kernels import dispatch
from herd.kernels.torch_compat import recompute_what_is_cheap
from herd.model.attention import Attention
from herd.model.transformer import Transformer
from herd.train.config import StageConfig
from herd.train.float8 import check_float8, convert_back, convert_to_float8
from herd.train.recompute import set_recompute


def prepare_model(model: Transformer, stage: StageConfig) -> None:
    """Set up float8 products, recomputation and compiled blocks, in place; parameter names do not change.

    Raises Float8UnsupportedError where the hardware or the shapes cannot do it.
    """
    if stage.float8:
        check_float8(model.device)
        convert_to_float8(model)
    else:
        convert_back(model)
    # From outside no operator of a compiled graph is seen, so all would be computed again: there the compiler is told instead.
    selective = stage.compile and stage.recompute == "selective"
    set_recompute(model, "none" if selective else stage.recompute)
    if stage.compile:
        _hide_attention_from_the_compiler()
        recompute_what_is_cheap(selective)
        for block in model.model.layers:
            block.compile()
    if model.device.type == "cpu":
        dispatch.set_num_threads(torch.get_num_threads())  # of the kernels of loss and attention: as many as torch's own have


def uncompiled(model: nn.Module) -> AbstractContextManager[object]:
    """Compiled blocks run as they are inside: held-out rows come in other shapes than a step's, and each would be compiled for one call."""
    is_compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


@lru_cache(maxsize=1)
def _hide_attention_from_the_compiler() -> None:
    """Each batch has documents of other lengths and each layer its number: compiled, every one of them would be compiled anew.

    What stands before and after is compiled, once for all layers. Done when first asked for, since the decorator imports the compiler.
    """
    setattr(Attention, "mix", torch.compiler.disable(Attention.mix))  # noqa: B010
