"""A Prompt Guard of a few thousand random weights with a tokenizer of its own, laid out on disk as the published ones are."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from herd.checkpoint.encoder import save_encoder
from herd.model.encoder import EncoderClassifier, initialise_encoder
from herd.model.encoder_config import EncoderConfig

PIECES = ("ignore", "previous", "instructions", "hello", "the", "and", "tell", "me", "a", "story")


def tokenizer(length: int = 32) -> Tokenizer:
    """Whole words beside single letters, as a Unigram model with Metaspace, as mDeBERTa's is; saved with truncation and padding."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    pieces = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in PIECES] + [(word, -2.5) for word in PIECES if len(word) > 1]
    pieces += [(letter, -6.0) for letter in letters if letter not in PIECES] + [("a", -6.0)]
    made = Tokenizer(models.Unigram(pieces, 3, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made.enable_truncation(length)
    made.enable_padding()
    return made


def tiny_guard(folder: Path, labels: tuple[str, ...], *, length: int = 32) -> Path:
    """Its folder."""
    made = tokenizer(length)
    config = EncoderConfig(
        vocab_size=made.get_vocab_size() + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=length,
        max_relative_positions=length,
        position_buckets=8,
        initializer_range=0.6,
        id2label=labels,
    )
    save_encoder(initialise_encoder(EncoderClassifier(config), seed=3), folder)
    made.save(str(folder / "tokenizer.json"))
    return folder
