"""Names of published shapes as people say them: `405b`, `llama-3.1-405b` and the alias `llama3.1:405b` are one model."""

from __future__ import annotations

from herd.base.errors import NotFoundError, did_you_mean
from herd.model.config import ModelConfig
from herd.model.presets import PRESETS

_SHORT = {
    "405b": "llama-3.1-405b",
    "70b": "llama-3.1-70b",
    "8b": "llama-3.1-8b",
    "3b": "llama-3.2-3b",
    "1b": "llama-3.2-1b",
}


def preset_name(name: str) -> str | None:
    """The preset that a name stands for, or None."""
    plain = name.lower().replace("llama3", "llama-3").replace(":", "-").removesuffix("-base").removesuffix("-instruct")
    plain = _SHORT.get(plain, plain)
    return plain if plain in PRESETS else None


def find_shape(name: str) -> tuple[str, ModelConfig]:
    """A preset's name and config. Raises NotFoundError, with the nearest name."""
    found = preset_name(name)
    if found is None:
        known = (*_SHORT, *PRESETS)
        raise NotFoundError(f"no model shape is named {name!r}", hint=did_you_mean(name, known, otherwise="shapes: " + ", ".join(known)))
    return found, PRESETS[found]
