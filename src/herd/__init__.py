"""herd: the whole Llama 3.1 system in one package.

Public names are loaded when first used, so that `import herd` costs nothing and pulls in no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from herd.version import __version__

if TYPE_CHECKING:
    from herd.agents.agent import Agent
    from herd.agents.function_tool import tool
    from herd.base.errors import HerdError
    from herd.checkpoint.load import load_model
    from herd.inference.async_llm import AsyncLLM
    from herd.inference.llm import LLM
    from herd.inference.params import SamplingParams
    from herd.model.config import ModelConfig, RopeScaling
    from herd.model.transformer import Transformer
    from herd.text.messages import Message
    from herd.text.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "LLM",
    "Agent",
    "AsyncLLM",
    "HerdError",
    "Message",
    "ModelConfig",
    "RopeScaling",
    "SamplingParams",
    "Tokenizer",
    "Transformer",
    "__version__",
    "load_model",
    "load_tokenizer",
    "tool",
]

_HOMES = {
    "Agent": "herd.agents.agent",
    "tool": "herd.agents.function_tool",
    "HerdError": "herd.base.errors",
    "load_model": "herd.checkpoint.load",
    "AsyncLLM": "herd.inference.async_llm",
    "LLM": "herd.inference.llm",
    "SamplingParams": "herd.inference.params",
    "ModelConfig": "herd.model.config",
    "RopeScaling": "herd.model.config",
    "Transformer": "herd.model.transformer",
    "Message": "herd.text.messages",
    "Tokenizer": "herd.text.tokenizer",
    "load_tokenizer": "herd.text.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'herd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
