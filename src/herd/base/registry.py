"""Short names of models: what `llama3.1:8b` stands for. An alias names a hub repository; weights there are under Meta's licence."""

from __future__ import annotations

BUNDLED = "cria"
BUNDLED_GUARD = "cria-guard"
"""Ships too: cria tuned to write Llama Guard's verdicts."""

ALIASES: dict[str, str] = {
    "llama3:8b": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3:70b": "meta-llama/Meta-Llama-3-70B-Instruct",
    "llama3.1:8b": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.1:70b": "meta-llama/Llama-3.1-70B-Instruct",
    "llama3.1:405b": "meta-llama/Llama-3.1-405B-Instruct",
    "llama3.1:8b-base": "meta-llama/Llama-3.1-8B",
    "llama3.1:70b-base": "meta-llama/Llama-3.1-70B",
    "llama3.1:405b-base": "meta-llama/Llama-3.1-405B",
    "llama3.2:1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2:3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-guard3:8b": "meta-llama/Llama-Guard-3-8B",
    "llama-guard3:1b": "meta-llama/Llama-Guard-3-1B",
    "prompt-guard": "meta-llama/Prompt-Guard-86M",
}
"""Alias to hub name. Instruct models have no suffix, base models `-base`."""
