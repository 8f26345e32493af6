"""A model of under a million parameters on a text of our own that ships with herd: training within anyone's reach, in under two minutes.

Run: `herd train tiny`. Tokenizer, pre-training, tuning, model card: the same pipeline as cria's, on one small text and our own dialogues.
"""

from __future__ import annotations

from herd.model.presets import preset
from herd.recipes.config import RecipeConfig, TokenizerTraining
from herd.train.config import SourceConfig, StageConfig

_STORIES = SourceConfig(name="stories", path="package:tiny.txt")
_CHAT = SourceConfig(name="own", path="own:dialogues", kind="chat", languages=("en",), weight=0.2)


def tiny() -> RecipeConfig:
    """Four layers of 128, a vocabulary of 1,024, some two hundred steps."""
    return RecipeConfig(
        name="tiny",
        seed=1,
        tokenizer=TokenizerTraining(vocab_size=1024, sources=(_STORIES, _CHAT)),
        model=preset("cria-tiny"),
        pretrain=StageConfig(
            sources=(_STORIES, _CHAT),
            num_steps=200,
            sequence_length=128,
            batch_size=16,
            micro_batch_size=16,
            lr=4e-3,
            warmup_steps=20,
            eval_every=100,
            save_every=100,
        ),
        sft=StageConfig(
            sources=(SourceConfig(name="own", path="own:dialogues", kind="chat", languages=("en",)),),
            num_steps=100,
            sequence_length=128,
            batch_size=16,
            micro_batch_size=16,
            lr=2e-3,
            warmup_steps=10,
            answers_only=True,
            eval_every=100,
            save_every=100,
        ),
        heldout_bytes=4_000,
        heldout_one_in=20,
        sample_prompts=("Hello!", "Who are you?", "Tell me a story."),
    )
