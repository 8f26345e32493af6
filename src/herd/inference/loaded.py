"""A model by name, path or object, made ready to answer: weights, tokenizer and engine. What `LLM` and `AsyncLLM` begin with.

A model whose packed weights an earlier start has kept is mapped, and answers on the CPU without torch ever being imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from herd.base.errors import ConfigError, UsageError
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.engine.build import build_engine
from herd.engine.engine import Engine
from herd.engine.memory import EngineConfig
from herd.engine.packed.mapped import MappedModel, find_mapped
from herd.engine.speculation import DEFAULT_NUM_DRAFT
from herd.inference.prepare import grammar_compiler
from herd.kernels.buffer import dtype_name
from herd.kernels.torch_build import default_device
from herd.model.config import ModelConfig
from herd.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from herd.model.transformer import Transformer

DEFAULT_MODEL = "cria"
NGRAM = "ngram"
"""The draft that is no model but prompt lookup."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The parts. `weights` gives the model, or is None where it is spread over several processes. `dtype` and `device` are the model's."""

    name: str
    weights: Callable[[], Transformer] | None
    config: ModelConfig
    tokenizer: Tokenizer
    engine: Engine
    dtype: str
    device: str

    @property
    def model(self) -> Transformer:
        """The weights. Raises UsageError where they are spread over several processes."""
        if self.weights is None:
            raise UsageError("this model's weights are spread over several processes", hint="leave out tp and pp to have them here")
        return self.weights()


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
    name = str(model) if isinstance(model, str | Path) else "model"
    if not isinstance(model, str | Path):
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
            draft = _load_draft(draft, tokenizer, dtype=dtype, device="cpu")
        spread = build_parallel_engine(model, config, tp=tp, pp=pp, dtype=dtype, vocab_size=size, draft=draft, grammars=grammars)
        facts = {"dtype": spread.dtype, "device": "cpu"}
        return Loaded(name=name, weights=None, config=spread.model_config, tokenizer=tokenizer, engine=spread, **facts)
    if isinstance(model, Path):
        place = device or default_device()
        found = find_mapped(model, dtype) if str(place) == "cpu" and draft is None and config.prefix_dir is None else None
        if found is not None:
            built = build_engine(found, config, vocab_size=size, threaded=threaded, grammars=grammars)
            weights = cache(partial(_weights_of, found, model))
            facts = {"dtype": found.dtype, "device": "cpu"}
            return Loaded(name=name, weights=weights, config=found.config, tokenizer=tokenizer, engine=built, **facts)
        from herd.engine.packed.cache import load_for_engine

        model = load_for_engine(model, dtype=dtype, device=place)
    if isinstance(draft, str | Path):
        draft = _load_draft(draft, tokenizer, dtype=dtype, device=model.device)
    built = build_engine(model, config, vocab_size=size, draft=draft, threaded=threaded, grammars=grammars)
    facts = {"dtype": dtype_name(model.dtype), "device": str(model.device)}
    return Loaded(name=name, weights=partial(_same, model), config=model.config, tokenizer=tokenizer, engine=built, **facts)


def _same(model: Transformer) -> Transformer:
    return model


def _weights_of(mapped: MappedModel, path: Path) -> Transformer:
    from herd.engine.packed.cache import model_of

    return model_of(mapped, path)


def _check_spread(device: torch.device | str | None) -> None:
    """Raises UsageError for a device that a model over several processes cannot have."""
    if device is not None and str(device).partition(":")[0] != "cpu":
        raise UsageError(f"tp and pp spread a model over processes on the CPU, not on {device}", hint='pass device="cpu"')


def _load_draft(draft: str | Path, tokenizer: Tokenizer, *, dtype: torch.dtype | str | None, device: torch.device | str) -> Transformer:
    """A draft model from a checkpoint. Names of special tokens may differ, ids and bytes of the others may not."""
    from herd.checkpoint.load import load_model

    path = resolve_model(draft)
    theirs = load_checkpoint_tokenizer(path)
    if theirs.ranks != tokenizer.ranks or theirs.vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"the draft model {str(draft)!r} has another tokenizer ({theirs.vocab_size:,} ids, the model {tokenizer.vocab_size:,})",
            hint="take a smaller model of the same family, or draft='ngram', which needs no model",
        )
    return load_model(path, dtype=dtype, device=device)
