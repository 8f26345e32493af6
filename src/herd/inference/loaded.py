"""A model by name, path or object, made ready to answer: weights, tokenizer and engine. What `LLM` and `AsyncLLM` begin with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from herd.base.errors import UsageError
from herd.checkpoint.load import load_model
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.engine.build import build_engine
from herd.engine.engine import Engine
from herd.engine.memory import EngineConfig
from herd.inference.prepare import grammar_compiler
from herd.model.transformer import Transformer
from herd.text.tokenizer import Tokenizer

DEFAULT_MODEL = "cria"


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The parts."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    engine: Engine


def load(
    model: Transformer | str | Path,
    *,
    tokenizer: Tokenizer | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    engine: EngineConfig | None,
    threaded: bool,
) -> Loaded:
    """Load what is not loaded yet and start an engine. Raises DoesNotFitError, NotFoundError, UsageError."""
    name = "model" if isinstance(model, Transformer) else str(model)
    if isinstance(model, Transformer):
        if tokenizer is None:
            raise UsageError("a Transformer came without its tokenizer", hint="pass tokenizer=herd.load_tokenizer(path)")
    else:
        path = resolve_model(model)
        tokenizer = tokenizer or load_checkpoint_tokenizer(path)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(path, dtype=dtype, device=device)
    size = tokenizer.vocab_size
    built = build_engine(model, engine, vocab_size=size, threaded=threaded, grammars=partial(grammar_compiler, tokenizer, size))
    return Loaded(name=name, model=model, tokenizer=tokenizer, engine=built)
