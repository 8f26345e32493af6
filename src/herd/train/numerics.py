"""A stage's switches applied to a model, in the order that they need: float8, recomputation, compilation."""

from __future__ import annotations

from herd.model.transformer import Transformer
from herd.train.config import StageConfig
from herd.train.float8 import check_float8, convert_to_float8
from herd.train.recompute import set_recompute


def prepare_model(model: Transformer, stage: StageConfig) -> None:
    """Set up float8 products, recomputation and compiled blocks, in place; parameter names do not change.

    Raises Float8UnsupportedError where the hardware or the shapes cannot do it.
    """
    if stage.float8:
        check_float8(model.device)
        convert_to_float8(model)
    set_recompute(model, stage.recompute)
    if stage.compile:
        for block in model.model.layers:
            block.compile()
