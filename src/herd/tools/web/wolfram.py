"""`wolfram_alpha`: the full results API, cut down to what a model can use as Meta's agent did: plain texts, no pod after the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from herd.tools.errors import ToolError
from herd.tools.tool import Taint, ToolContext, ToolLimits, ToolResult, failure
from herd.tools.web.service import JsonService, as_dicts, as_text

_LAST_POD = "Result"


class WolframAlphaTool:
    """Asks Wolfram Alpha."""

    name = "wolfram_alpha"
    description = "Answers questions of mathematics, science, dates, units and facts by computation."
    taint = Taint(reads_untrusted=True)
    limits = ToolLimits(timeout_s=25.0)
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "The question, in English.", "minLength": 1, "maxLength": 2000}},
        "required": ["query"],
        "additionalProperties": False,
    }

    def __init__(self, api_key: str = "", *, service: JsonService | None = None) -> None:
        self._key = api_key
        self._service = service or JsonService("Wolfram Alpha", "https://api.wolframalpha.com", timeout_s=20.0)

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Ask `query`."""
        key = context.secrets.get("wolfram_alpha_api_key") or self._key
        if not key:
            raise ToolError("Wolfram Alpha has no key", hint="set WOLFRAM_ALPHA_API_KEY")
        params = {"input": arguments["query"], "appid": key, "format": "plaintext", "output": "json"}
        answer = await self._service.ask("GET", "/v2/query", params=params)
        found = answer.get("queryresult")
        if not isinstance(found, dict) or found.get("success") is not True:
            return failure("no_result", f"Wolfram Alpha has no answer to this{_did_you_mean(found)}; ask differently, or answer without it")
        data = {"queryresult": {"inputstring": arguments["query"], "pods": _pods(found)}}
        return ToolResult(text=json.dumps(data, ensure_ascii=False), data=data)


def _pods(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    pods: list[dict[str, Any]] = []
    for pod in as_dicts(found.get("pods")):
        texts = [as_text(part.get("plaintext")) for part in as_dicts(pod.get("subpods"))]
        if any(texts):
            pods.append({"title": as_text(pod.get("title"), 200), "subpods": [{"title": "", "plaintext": text} for text in texts if text]})
        if pod.get("title") == _LAST_POD:
            break
    return pods


def _did_you_mean(found: Any) -> str:
    said = found.get("didyoumeans") if isinstance(found, dict) else None
    first = as_dicts(said if isinstance(said, list) else [said])
    return f" (did it mean {as_text(first[0].get('val'), 200)!r}?)" if first else ""
