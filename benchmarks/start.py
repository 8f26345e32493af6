"""From nothing to a first token: `herd run` on cria, each time in a process of its own, with its packed weights there and warm.

    python -m benchmarks.start [--repeats N] [--json FILE]

Beside it stand a Python that does nothing, one that imports numpy and one that imports torch. Where the time goes is told by another
process that does the same in steps; what the steps leave of the whole is the command line's own. Every process reads compiled Python from
its caches, as any does after the first, whatever PYTHONDONTWRITEBYTECODE says here.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from benchmarks.harness import child, interleave, parser, report, summary, table

_RUN = ("-m", "herd", "run", "--temperature", "0", "--max-tokens", "1", "--device", "cpu", "Hi")
_PEERS = {"Python alone": ("-c", "pass"), "import numpy": ("-c", "import numpy"), "import torch": ("-c", "import torch")}
_HERD = "herd run, first token"
_STEPS = ("imports", "kernels", "tokenizer", "weights", "engine", "first token")


def first_byte_s(*arguments: str) -> float:
    """Seconds from the start of a Python to the first byte that it prints, or to its end."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        taken = time.perf_counter() - started
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"error: {' '.join(arguments)} ended with {process.returncode}")
    return taken


def steps() -> dict[str, float]:
    """Seconds of each step of an answer, in this process."""
    times = [time.perf_counter()]

    def done() -> None:
        times.append(time.perf_counter())

    from herd.base.paths import bundled_model
    from herd.checkpoint.resolve import load_checkpoint_tokenizer
    from herd.cli.run_prompt import run  # noqa: F401
    from herd.engine.build import build_engine
    from herd.engine.memory import EngineConfig
    from herd.engine.packed.mapped import find_mapped
    from herd.inference.llm import LLM  # noqa: F401
    from herd.inference.local import LocalModel
    from herd.inference.params import SamplingParams
    from herd.inference.port import ChatRequest
    from herd.kernels import dispatch
    from herd.text.messages import Message

    done()
    dispatch.choice()
    done()
    tokenizer = load_checkpoint_tokenizer(bundled_model())
    done()
    model = find_mapped(bundled_model(), None)
    assert model is not None, "the packed weights are not there"
    done()
    local = LocalModel(build_engine(model, EngineConfig(), vocab_size=tokenizer.vocab_size), tokenizer)
    done()
    request = ChatRequest(messages=(Message.user("Hi"),), params=SamplingParams(temperature=0.0, max_tokens=1))
    next(iter(local.chat(request)))
    done()
    assert "torch" not in sys.modules
    return dict(zip(_STEPS, (after - before for before, after in pairwise(times)), strict=True))


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, repeats=9)
    options.add_argument("--steps", action="store_true", help="one process's steps, as JSON")
    chosen = options.parse_args()
    if chosen.steps:
        print(json.dumps(steps()))
        return
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    first_byte_s(*_RUN)  # packs and compiles, if this is the first time
    parts: list[dict[str, float]] = []

    def take_steps() -> float:
        parts.append(child("benchmarks.start", "--steps"))
        return sum(parts[-1].values())

    tasks: dict[str, Callable[[], float]] = {_HERD: partial(first_byte_s, *_RUN), "its steps": take_steps}
    tasks |= {name: partial(first_byte_s, *arguments) for name, arguments in _PEERS.items()}
    figures = interleave(tasks, chosen.repeats)
    found: dict[str, Any] = {name: summary(values) for name, values in figures.items()}
    medians = {step: statistics.median(part[step] for part in parts) for step in _STEPS}
    table(("a process", "s", "min"), [(name, f"{found[name]['median']:.3f}", f"{found[name]['min']:.3f}") for name in (_HERD, *_PEERS)])
    rest = found[_HERD]["median"] - sum(medians.values()) - found["Python alone"]["median"]
    rows = {"Python alone": found["Python alone"]["median"], **medians, "command line, the rest": rest}
    table(("of the first token", "s"), [(name, f"{value:.3f}") for name, value in rows.items()])
    report(chosen.json, "start", ("llama-herd", "numpy", "torch", "typer", "pydantic", "tiktoken"), {"processes": found, "steps": rows})


if __name__ == "__main__":
    main()
