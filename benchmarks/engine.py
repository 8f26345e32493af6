"""The engine as a whole: `python -m benchmarks.engine [--only cria 1b] [--llama-cpp DIR] [--checkpoints DIR] [--json FILE]`.

cria: tokens a second of 1 to 64 requests at once. 1B: random bfloat16 weights of Llama 3.2 1B's shape; decoding at batch 1, 8 and 32 and
prefill, beside llama.cpp's llama-batched-bench on the same weights (a GGUF file that herd converts), both on all cores and in turns. Both:
the time to the first token of a prompt of 1,000 tokens, cold and with its prefix cached. Greedy, no stop ids, random prompts.

herd's figures go through the whole engine, on a thread of its own, as in a server: admission, scheduler, sampler, events. llama.cpp's bench
has none of these: it decodes ids that it does not sample. DIR holds the peer's programs; a checkpoint made once is kept in --checkpoints.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import harness
from herd.base.paths import bundled_model
from herd.checkpoint.convert import convert
from herd.checkpoint.load import load_model, save_model
from herd.engine.build import build_engine
from herd.engine.engine import Engine
from herd.engine.memory import EngineConfig
from herd.engine.params import TokenParams
from herd.engine.stream import Failed, TokenEvent, TokenRequest, Tokens
from herd.kernels import dispatch
from herd.text.tokenizer import load_tokenizer

PACKAGES = ("llama-herd", "torch", "numpy")
_PEER = "llama-batched-bench"
_CONCURRENCY = (1, 8, 32, 64)
_CRIA_PROMPT, _CRIA_NEW = 16, 128
_BATCHES = (1, 8, 32)
_1B_PROMPT, _1B_NEW = 128, 32
_PREFILLS = (512, 1024)
_SHARED = 1000
_RNG = random.Random(0)


@dataclass(slots=True)
class Run:
    """Requests answered at once: when each token came."""

    started: float = 0.0
    times: list[list[float]] = field(default_factory=list[list[float]])

    @property
    def tokens_per_s(self) -> float:
        """All tokens by all the time, prompts included."""
        return sum(map(len, self.times)) / (max(times[-1] for times in self.times) - self.started)

    @property
    def decode_per_s(self) -> float:
        """Tokens that came after every request had its first, by the time they took."""
        begin, end = max(times[0] for times in self.times), max(times[-1] for times in self.times)
        return sum(moment > begin for times in self.times for moment in times) / (end - begin)

    @property
    def first_s(self) -> float:
        """Seconds to the first token of all."""
        return min(times[0] for times in self.times) - self.started


def answer(engine: Engine, prompts: list[tuple[int, ...]], num_new: int, *, reuse: bool = False, **params: Any) -> Run:
    """Ask all at once and wait for all."""
    run, done, left = Run(times=[[] for _ in prompts]), threading.Event(), [len(prompts)]

    def emit(number: int, event: TokenEvent) -> None:
        if isinstance(event, Tokens):
            run.times[number] += [time.perf_counter()] * len(event.ids)
        if isinstance(event, Failed) or (isinstance(event, Tokens) and event.finish):
            left[0] -= 1
            if not left[0]:
                done.set()

    chosen = TokenParams(max_tokens=num_new, **{"temperature": 0.0, **params})
    run.started = time.perf_counter()
    for number, prompt in enumerate(prompts):
        engine.submit(TokenRequest(prompt=prompt, params=chosen, reuse_prefix=reuse), emit=lambda event, n=number: emit(n, event))
    done.wait()
    if sum(map(len, run.times)) != num_new * len(prompts):
        raise SystemExit("error: a request failed or ended early")
    return run


def prompt(length: int) -> tuple[int, ...]:
    """Random ids that every model here has."""
    return tuple(_RNG.randrange(8192) for _ in range(length))


def first_tokens(engine: Engine, repeats: int) -> dict[str, Any]:
    """Milliseconds to the first token of 1,000: a new prompt, the same again."""
    figures: dict[str, list[float]] = {"cold": [], "hot": []}
    answer(engine, [prompt(_SHARED)], 1)
    for _ in range(repeats):
        ids = prompt(_SHARED)
        for name in figures:
            figures[name].append(1e3 * answer(engine, [ids], 1, reuse=True).first_s)
    found: dict[str, Any] = {name: harness.summary(times) for name, times in figures.items()}
    return {**found, "hot_of_cold": found["hot"]["median"] / found["cold"]["median"]}


def cria(repeats: int) -> dict[str, Any]:
    """Tokens a second of the bundled model, greedy and drawn, and what more requests at once are worth."""
    engine = build_engine(load_model(bundled_model()), EngineConfig(context=1024, max_sequences=max(_CONCURRENCY)), threaded=True)

    def rate(count: int, **params: Any) -> float:
        return answer(engine, [prompt(_CRIA_PROMPT) for _ in range(count)], _CRIA_NEW, **params).tokens_per_s

    tasks = {f"{count} greedy": lambda count=count: rate(count) for count in _CONCURRENCY}
    tasks |= {f"{count} drawn": lambda count=count: rate(count, temperature=0.7, top_p=0.9, seed=1) for count in (1, 32)}
    for task in tasks.values():
        task()
    rates = {name: harness.summary(found) for name, found in harness.interleave(tasks, repeats).items()}
    first = first_tokens(engine, repeats)
    engine.close()
    single = rates["1 greedy"]["median"]
    rows = [(name, f"{found['median']:,.0f}", f"{found['max']:,.0f}", f"{found['median'] / single:.2f}") for name, found in rates.items()]
    harness.table(("cria: requests at once", "tokens/s", "best", "times 1 greedy"), rows)
    return {"tokens_per_s": rates, "times_one": {name: found["median"] / single for name, found in rates.items()}, "first_token_ms": first}


def checkpoint(folder: Path) -> tuple[Path, Path]:
    """Random weights of the 1B shape, as herd's and as llama.cpp's file; made where they are missing."""
    import torch

    from herd.model.init import initialise
    from herd.model.presets import preset
    from herd.model.transformer import Transformer

    own, peer = folder / "hf", folder / "model.gguf"
    if not peer.is_file():
        print(f"writing random weights into {folder}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        with torch.device("meta"):
            model = Transformer(preset("llama-3.2-1b"))
        # llama.cpp opens no file without a tokenizer; that of cria pads itself to the size of the model.
        tokenizer = load_tokenizer(bundled_model())
        save_model(initialise(model, seed=0, dtype=torch.bfloat16), own, tokenizer=tokenizer, overwrite=True)
        convert(own, peer, to="gguf")
    return own, peer


class LlamaCpp:
    """The peer's batched bench; every figure is a process of its own."""

    def __init__(self, programs: Path, model: Path) -> None:
        self._command = [str(programs / _PEER), "-m", str(model), "-t", str(harness.cores()), "--output-format", "jsonl"]

    def _run(self, num_prompt: int, num_new: int, batch: int) -> dict[str, float]:
        tokens = num_prompt + batch * num_new
        sizes = ["-c", str(tokens + 64), "-b", "2048", "-ub", "512", "-npp", str(num_prompt), "-ntg", str(num_new), "-npl", str(batch)]
        done = subprocess.run([*self._command, *sizes, "-pps"], capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            raise SystemExit(f"error: {_PEER} failed: {done.stderr[-500:]}")
        return json.loads(lines[-1])

    def decode(self, batch: int) -> float:
        """Tokens a second."""
        return self._run(_1B_PROMPT, _1B_NEW, batch)["speed_tg"]

    def prefill(self, length: int) -> float:
        """Tokens of the prompt a second."""
        return self._run(length, 1, 1)["speed_pp"]


def peer_programs(folder: Path | None) -> Path | None:
    """Where llama.cpp's bench is; None, and a line that says so, where it is not."""
    if folder is not None and (folder / _PEER).is_file():
        return folder
    print(f"llama.cpp: no {_PEER} in {folder}; herd runs alone" if folder else "llama.cpp: not given (--llama-cpp DIR); herd runs alone")
    return None


def one_billion(folder: Path, programs: Path | None, repeats: int) -> dict[str, Any]:
    """Decoding and prefill of the 1B shape, herd and llama.cpp in turns."""
    own, gguf = checkpoint(folder)
    config = EngineConfig(context=2048, max_sequences=max(_BATCHES))
    engine = build_engine(load_model(own), config, threaded=True)
    shared = prompt(_1B_PROMPT)

    def decode(batch: int) -> float:
        return answer(engine, [shared] * batch, _1B_NEW, reuse=True).decode_per_s

    def prefill(length: int) -> float:
        return length / answer(engine, [prompt(length)], 1).first_s

    peer = None if programs is None else LlamaCpp(programs, gguf)
    results: dict[str, Any] = {}
    for kind, sizes, mine in (("decode", _BATCHES, decode), ("prefill", _PREFILLS, prefill)):
        for size in sizes:
            tasks = {"herd": lambda size=size, mine=mine: mine(size)}
            if peer is not None:
                tasks["llama.cpp"] = lambda size=size, kind=kind, peer=peer: getattr(peer, kind)(size)
            mine(size)
            found = {name: harness.summary(rates) for name, rates in harness.interleave(tasks, repeats).items()}
            ratio = found["herd"]["median"] / found["llama.cpp"]["median"] if peer else None
            results[f"{kind} {size}"] = {"tokens_per_s": found, "ratio": ratio}
    results["first_token_ms"] = first_tokens(engine, repeats)
    engine.close()
    rows = [
        (name, *(f"{found['tokens_per_s'][one]['median']:,.1f}" if one in found["tokens_per_s"] else "" for one in ("herd", "llama.cpp")),
         f"{found['ratio']:.2f}" if found["ratio"] else "")
        for name, found in results.items() if "tokens_per_s" in found
    ]  # fmt: skip
    harness.table(("1B, bfloat16, tokens/s", "herd", "llama.cpp", "herd/llama.cpp"), rows)
    return results


def main() -> None:
    """Run what the command line asks for."""
    options = harness.parser(__doc__, repeats=5)
    options.add_argument("--only", nargs="+", choices=("cria", "1b"), default=["cria", "1b"])
    options.add_argument("--llama-cpp", type=Path, metavar="DIR", help=f"the folder of {_PEER}")
    options.add_argument("--checkpoints", type=Path, metavar="DIR", help="keep the random weights here (default: a temporary folder)")
    chosen = options.parse_args()
    results: dict[str, Any] = {"kernels": dispatch.table()[0].runs}
    if "cria" in chosen.only:
        results["cria"] = cria(chosen.repeats)
    if "1b" in chosen.only:
        with tempfile.TemporaryDirectory() as temporary:
            folder = chosen.checkpoints or Path(temporary)
            results["1b"] = one_billion(folder, peer_programs(chosen.llama_cpp), chosen.repeats)
    firsts = [(name, found["first_token_ms"]) for name, found in results.items() if isinstance(found, dict)]
    rows = [(n, f"{f['cold']['median']:,.2f}", f"{f['hot']['median']:,.2f}", f"{f['hot_of_cold']:.3f}") for n, f in firsts]
    harness.table((f"first token of {_SHARED:,}, ms", "cold", "hot", "hot/cold"), rows)
    harness.report(chosen.json, "engine", PACKAGES, results)


if __name__ == "__main__":
    main()
