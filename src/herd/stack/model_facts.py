"""What `/v1/models` tells of the engine's model under `herd`: its state, its memory, and what a request that leaves a field out gets.

The page shows these beside its controls and in its model picker.
"""

from __future__ import annotations

from typing import Any

from herd.base.memory import available_memory
from herd.inference.params import SamplingParams
from herd.stack.service import Service

_SHOWN = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "max_tokens",
    "seed", "stop",
)  # fmt: skip
DEFAULTS = SamplingParams()


def model_facts(service: Service) -> dict[str, Any]:
    """The facts. `free_bytes` is what the machine has besides; unknown of another device than the CPU."""
    info = service.engine.info
    return {
        "state": service.engine.state,
        "device": info.get("device"),
        "memory_bytes": info.get("total_bytes"),
        "free_bytes": available_memory() if info.get("device") == "cpu" else None,
        "max_sequences": info.get("max_sequences"),
        "defaults": {name: getattr(DEFAULTS, name) for name in _SHOWN},
    }
