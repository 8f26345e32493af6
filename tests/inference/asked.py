"""What a model is asked by the tests of a start without torch: in this process, or as a program.

python asked.py FOLDER [THEN]     the answers as JSON, and whether torch had been imported; THEN is one more thing that needs it
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from herd.base.errors import HerdError
from herd.engine.grammar.spec import Grammar
from herd.engine.memory import EngineConfig
from herd.inference.params import SamplingParams

if TYPE_CHECKING:
    from herd.inference.llm import LLM
    from herd.inference.output import Output

PROMPT = "The herd grazes on the high plain. " * 6
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 120}}, "required": ["age"]}
SIZES = EngineConfig(block_size=8, token_budget=64, max_sequences=8, score_rows=3, num_blocks=400)


def ask(llm: LLM) -> list[Any]:
    """Greedy and sampled answers with log-probabilities, several of one prompt, a prefix again, a grammar, scores of continuations."""
    greedy = SamplingParams(temperature=0.0, max_tokens=12, logprobs=2)
    drawn = SamplingParams(temperature=1.1, top_p=0.95, seed=7, max_tokens=10, logprobs=3, prompt_logprobs=1)
    both = llm.generate([PROMPT, "A cria"], greedy)
    several = llm.generate("Ein kleines", drawn, n=3)
    again = llm.generate([PROMPT + "The wind", PROMPT], drawn)
    written = llm.chat([{"role": "user", "content": "How old?"}], drawn, grammar=Grammar.json_schema(SCHEMA))
    scores = llm.score("The herd", [" grazes", " lies down"])
    return [*map(told, (*both, *several, *again, written)), *([score.logprob, score.is_greedy] for score in scores)]


def told(output: Output) -> list[Any]:
    """What has to be the same, floats to the last bit."""
    return [output.text, list(output.token_ids), [[entry.token_id, entry.logprob] for entry in output.logprobs]]


def then(llm: LLM, what: str) -> Any:
    """What takes torch, of a model that began without it."""
    if what == "embed":
        return llm.embed(["The herd", PROMPT]).tolist()
    import torch

    if what == "model":
        return llm.model(torch.tensor([[1, 2, 3]]))[0, -1].tolist()
    assert what == "refusal"
    try:
        llm.model(torch.tensor([[1, 2, 3]]))
    except HerdError as error:
        return str(error)
    return None


def main(folder: str, cache_dtype: str, *wanted: str) -> None:
    """Print it."""
    from dataclasses import replace

    from herd.inference.llm import LLM

    llm = LLM(folder, device=None, engine=replace(SIZES, cache_dtype=None if cache_dtype == "same" else cache_dtype))
    answers = ask(llm)
    before = "torch" in sys.modules
    print(json.dumps({"answers": answers, "torch": before, "then": [[then(llm, what), ask(llm) == answers] for what in wanted]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
