"""A model by name, path or object, made ready to answer: weights, tokenizer and engine. What `LLM` and `AsyncLLM` begin with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from herd.base.errors import ConfigError, UsageError
from herd.checkpoint.load import load_model
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.engine.build import build_engine
from herd.engine.draft_model import DEFAULT_NUM_DRAFT
from herd.engine.engine import Engine
from herd.engine.memory import EngineConfig
from herd.engine.packed.cache import load_for_engine
from herd.inference.prepare import grammar_compiler
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.text.tokenizer import Tokenizer

DEFAULT_MODEL = "cria"
NGRAM = "ngram"
"""The draft that is no model but prompt lookup."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The parts."""

    name: str
    weights: Transformer | None
    config: ModelConfig
    tokenizer: Tokenizer
    engine: Engine

    @property
    def model(self) -> Transformer:
        """The weights. Raises UsageError where they are spread over several processes."""
        if self.weights is None:
            raise UsageError("this model's weights are spread over several processes", hint="leave out tp and pp to have them here")
        return self.weights


def load(
    model: Transformer | str | Path,
    *,
    tokenizer: Tokenizer | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    engine: EngineConfig | None,
    draft: Transformer | str | Path | None,
    threaded: bool,
    tp: int = 1,
    pp: int = 1,
) -> Loaded:
    """Load what is not loaded yet and start an engine. Raises DoesNotFitError, NotFoundError, UsageError, ConfigError."""
    name = "model" if isinstance(model, Transformer) else str(model)
    if isinstance(model, Transformer):
        if tokenizer is None:
            raise UsageError("a Transformer came without its tokenizer", hint="pass tokenizer=herd.load_tokenizer(path)")
    else:
        model = resolve_model(model)
        tokenizer = tokenizer or load_checkpoint_tokenizer(model)
    config, size = engine or EngineConfig(), tokenizer.vocab_size
    if draft == NGRAM:
        config, draft = replace(config, num_draft=config.num_draft or DEFAULT_NUM_DRAFT), None
    grammars = partial(grammar_compiler, tokenizer, size)
    if (tp, pp) != (1, 1):
        _check_spread(device)
        from herd.engine.parallel.build import build_parallel_engine

        if isinstance(draft, str | Path):
            draft = _load_draft(draft, tokenizer, dtype=dtype, device=torch.device("cpu"))
        spread = build_parallel_engine(model, config, tp=tp, pp=pp, dtype=dtype, vocab_size=size, draft=draft, grammars=grammars)
        return Loaded(name=name, weights=None, config=spread.model_config, tokenizer=tokenizer, engine=spread)
    if isinstance(model, Path):
        model = load_for_engine(model, dtype=dtype, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(draft, str | Path):
        draft = _load_draft(draft, tokenizer, dtype=dtype, device=model.device)
    built = build_engine(model, config, vocab_size=size, draft=draft, threaded=threaded, grammars=grammars)
    return Loaded(name=name, weights=model, config=model.config, tokenizer=tokenizer, engine=built)


def _check_spread(device: torch.device | str | None) -> None:
    """Raises UsageError for a device that a model over several processes cannot have."""
    if device is not None and torch.device(device).type != "cpu":
        raise UsageError(f"tp and pp spread a model over processes on the CPU, not on {device}", hint='pass device="cpu"')


def _load_draft(draft: str | Path, tokenizer: Tokenizer, *, dtype: torch.dtype | str | None, device: torch.device) -> Transformer:
    """A draft model from a checkpoint. Names of special tokens may differ, ids and bytes of the others may not."""
    path = resolve_model(draft)
    theirs = load_checkpoint_tokenizer(path)
    if theirs.ranks != tokenizer.ranks or theirs.vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"the draft model {str(draft)!r} has another tokenizer ({theirs.vocab_size:,} ids, the model {tokenizer.vocab_size:,})",
            hint="take a smaller model of the same family, or draft='ngram', which needs no model",
        )
    return load_model(path, dtype=dtype, device=device)
