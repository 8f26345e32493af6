"""The tiny model with a long-context stage: what growing a context is, in some minutes on a laptop. It is too small to find needles.

Run: `herd train tiny-long`. After pre-training at 128 tokens the rotations are scaled and the context grows to 256 and 512, with facts
hidden in stories among the data; the share that is found is measured and logged, and does not hold the run up.
"""

from __future__ import annotations

from dataclasses import replace

from herd.model.config import RopeScaling
from herd.recipes.config import RecipeConfig
from herd.recipes.tiny import tiny
from herd.train.config import SourceConfig
from herd.train.context_config import LongContextConfig

_NEEDLES = SourceConfig(name="needles", path="own:needles", num_items=400, document_bytes=1200, weight=0.5)


def tiny_long() -> RecipeConfig:
    """The tiny recipe with a context that grows from 128 to 512 tokens, and an annealed end."""
    short = tiny()
    pretrain = short.pretrain
    stage = replace(
        pretrain,
        sources=(*pretrain.sources, _NEEDLES),
        num_steps=40,
        lr=1e-3,
        decay="constant",
        warmup_steps=5,
        continue_optimizer=True,
        eval_every=20,
        save_every=20,
    )
    scaling = RopeScaling(factor=4.0, original_max_position_embeddings=128)
    longer = LongContextConfig(stage=stage, lengths=(256, 512), rope_scaling=scaling, recovery=0.05, needle_pass=0.0, on_stuck="go_on")
    return replace(
        short,
        name="tiny-long",
        model=replace(short.model, max_position_embeddings=128),
        long_context=longer,
        anneal=replace(longer.at(512), num_steps=20, warmup_steps=0, decay="linear", final_lr_fraction=0.0, average_every=5),
    )
