"""The inference port: the JSON of an answer, and that speaking it needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys

from herd.inference.llm import LLM
from herd.inference.params import SamplingParams
from herd.inference.port import Finished, Timings, Usage, to_dict
from herd.text.messages import Message

NUMBERS = {"usage": Usage(prompt_tokens=3, completion_tokens=2), "timings": Timings(prefill_s=0.5, decode_s=0.25, tokens_per_s=4.0)}


def test_the_json_of_an_answer_is_a_contract() -> None:
    last = Finished(reason="stop", text="Hi.", message=Message.assistant("Hi."), token_ids=(72, 46), **NUMBERS)
    assert to_dict(last) == {
        "text": "Hi.",
        "token_ids": [72, 46],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "timings": {"prefill_s": 0.5, "decode_s": 0.25, "tokens_per_s": 4.0},
    }
    assert json.loads(json.dumps(to_dict(last))) == to_dict(last)


def test_an_output_gives_the_same_json(tiny_llm: LLM) -> None:
    output = tiny_llm.generate("The herd", SamplingParams(max_tokens=3, seed=1))
    data = output.to_dict()
    assert list(data) == ["text", "token_ids", "finish_reason", "usage", "timings"]
    assert data["token_ids"] == list(output.token_ids) and data["finish_reason"] == "length"
    assert data["usage"] == {"prompt_tokens": output.usage.prompt_tokens, "completion_tokens": 3}
    assert all(value >= 0 for value in data["timings"].values())


def test_the_port_its_parameters_and_the_package_import_without_torch() -> None:
    program = "import sys, herd, herd.inference.port, herd.inference.params, herd.inference.stop; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
