"""herd beside the other ways to run a Llama on a CPU: `python -m benchmarks.cpu_peers --llama-cpp DIR [--shapes 1b 110m] [--json FILE]`.

Random weights of two shapes, `1b` (16 layers of 2048, 32/8 heads, ffn 8192, vocabulary 128256, tied) and `110m` (12 of 768, 12/4, 2048,
32000, tied), in 16, 8 and 4 bits: decoding at batch 1, 8 and 32 behind a prompt of 128, a prefill of 1,024, load time and peak memory. All
cores, in turns A B A B; a row has both medians, the median of the ratios of each turn, and what herd reads a second as a share of what a
plain read of memory of that size gave in the same run.

What is compared: bf16 with BF16; 8: int8, one scale a row, with Q8_0; 4: int4 in groups of 32 with Q4_0; the output matrix is of the same
bits on both sides. Weights are random: this is speed, not quality.

Peers, each left out with a word where it is absent:
  --llama-cpp DIR   folder of llama.cpp's llama-batched-bench: cmake -B build -DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release && cmake --build
                    build --target llama-batched-bench; with GCC 12 on a processor with AMX also -DGGML_AMX_INT8=OFF
  --ik-llama DIR    the same program of ik_llama.cpp, built in the same way; run with -rtr 1
  --huggingface     pip install transformers; bf16 only, through generate()
  --openvino-python PYTHON
                    OpenVINO GenAI, in an environment of its own: python -m venv OV; OV/bin/pip install torch --index-url
                    https://download.pytorch.org/whl/cpu; OV/bin/pip install "openvino==2026.4.1" "openvino-genai==2026.4.1.0"
                    "openvino-tokenizers==2026.4.1.0" "optimum-intel==2.2.0" "nncf==3.4.0" "transformers==5.5.4", and where a torchvision of
                    another build came along, OV/bin/pip uninstall torchvision; PYTHON is OV/bin/python. Exported once by optimum-intel, in
                    fp16, int8 and int4 (symmetric, groups of 64), then continuous batching as shipped, its prefix cache off
  --ctranslate2-python PYTHON
                    CTranslate2, int8 alone: OV/bin/pip install "ctranslate2==4.8.5" beside transformers 5.5.4
herd's figures go through its engine on a thread of its own, as in a server; llama.cpp's bench neither samples nor schedules.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.engine import answer, prompt
from benchmarks.foreign_peers import Foreign, foreign_peers
from herd.base.paths import bundled_model
from herd.checkpoint.convert import convert
from herd.checkpoint.load import load_model, save_model
from herd.engine.build import build_engine
from herd.engine.engine import Engine
from herd.engine.memory import EngineConfig
from herd.engine.packed.file import read as read_packed
from herd.engine.packed.file import write
from herd.engine.packed.weights import PackedModel, PackedWeights, pack_model
from herd.kernels import dispatch, memory
from herd.kernels.quantised import QuantWeight, pack_int4
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.presets import preset
from herd.model.quant_linear import QuantLinear
from herd.model.transformer import Transformer
from herd.text.tokenizer import load_tokenizer

PACKAGES = ("llama-herd", "torch", "transformers")
_PROGRAM = "llama-batched-bench"
_KINDS = {"bf16": "BF16", "8": "Q8_0", "4": "Q4_0"}
_PROMPT, _NEW, _PREFILL, _GROUP = 128, 32, 1024, 32
_CONTEXT = 2048


def shape(name: str) -> ModelConfig:
    """The config of a shape."""
    if name == "1b":
        return preset("llama-3.2-1b").with_context(_CONTEXT)
    return ModelConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=_CONTEXT,
        rope_theta=5e5,
        tie_word_embeddings=True,
    )


# ---- files ----
def rounded(weight: Tensor, bits: int) -> QuantWeight:
    """A matrix rounded to the nearest: int8 with a scale a row, or int4 in groups."""
    n, k = weight.shape
    width, most = (k, 127) if bits == 8 else (_GROUP, 7)
    grouped = weight.float().view(n, k // width, width)
    scales = (grouped.abs().amax(dim=2) / most).clamp(min=1e-8)
    scales = scales if bits == 8 else scales.half().float()
    numbers = (grouped / scales[:, :, None]).round().clamp(-most - 1, most).view(n, k)
    values = numbers.to(torch.int8) if bits == 8 else pack_int4((numbers + 8).to(torch.uint8))
    return QuantWeight(kind="int8" if bits == 8 else "int4", values=values, scales=scales)


def quantised(folder: Path, bits: int) -> Transformer:
    """The checkpoint with every matrix of `bits`, the tied output matrix too."""
    model = load_model(folder)
    for block in model.model.layers:
        for part, names in (
            (block.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
            (block.mlp, ("gate_proj", "up_proj", "down_proj")),
        ):
            for name in names:
                setattr(part, name, QuantLinear(rounded(getattr(part, name).weight.detach(), bits)))
    model.lm_head = QuantLinear(rounded(model.model.embed_tokens.weight.detach(), bits))
    return model


def make_files(folder: Path, name: str, bits: list[str], *, peers: bool) -> None:
    """Random weights, herd's packed files and, for peers, GGUF; what is there already stays."""
    whole = folder / name / "hf"
    if not whole.is_dir():
        print(f"writing random weights of {name} into {folder}", file=sys.stderr)
        with torch.device("meta"):
            model = Transformer(shape(name))
        # llama.cpp opens no file without a tokenizer; that of cria pads itself to the size of the model.
        save_model(initialise(model, seed=0, dtype=torch.bfloat16), whole, tokenizer=load_tokenizer(bundled_model()), overwrite=True)
    for kind in bits:
        if peers and not (folder / name / f"{_KINDS[kind]}.gguf").is_file():
            convert(whole, folder / name / f"{_KINDS[kind]}.gguf", to="gguf", quantisation=_KINDS[kind])
        packed = folder / name / f"{kind}.herdpack"
        if kind != "bf16" and not packed.is_file():
            write(packed, pack_model(quantised(whole, int(kind))), {})


def open_model(folder: Path, name: str, kind: str) -> Transformer:
    """Herd's model of a kind: mapped."""
    if kind == "bf16":
        return load_model(folder / name / "hf")
    stored, _ = read_packed(folder / name / f"{kind}.herdpack")
    return PackedModel(shape(name), PackedWeights.of(stored), dtype=torch.bfloat16, digest=f"{name}-{kind}")


# ---- peers ----
class Herd:
    """Our own engine."""

    def __init__(self, folder: Path, name: str, kind: str) -> None:
        model = open_model(folder, name, kind)
        self.weight_bytes = model.packed.size_bytes if isinstance(model, PackedModel) else 2 * model.config.num_parameters
        config = EngineConfig(context=_CONTEXT, max_sequences=32, num_blocks=(_CONTEXT + 32 * (_PROMPT + _NEW)) // 16 + 34)
        self._engine: Engine = build_engine(model, config, threaded=True)
        self._prompt = prompt(_PROMPT)

    def decode(self, batch: int) -> float:
        """Tokens a second."""
        return answer(self._engine, [self._prompt] * batch, _NEW, reuse=True).decode_per_s

    def prefill(self) -> float:
        """Tokens of a prompt a second."""
        return _PREFILL / answer(self._engine, [prompt(_PREFILL)], 1).first_s

    def close(self) -> None:
        """Stop the engine's thread."""
        self._engine.close()


class LlamaCpp:
    """llama-batched-bench of llama.cpp, or of a relative with `options` of its own; a process for each figure."""

    def __init__(self, programs: Path, model: Path, *options: str) -> None:
        self._command = [str(programs / _PROGRAM), "-m", str(model), "-t", str(harness.cores()), "--output-format", "jsonl", *options]

    def run(self, num_prompt: int, num_new: int, batch: int) -> dict[str, Any]:
        """The bench's figures, its load time in s and peak memory."""
        sizes = ["-c", str(num_prompt + batch * num_new + 64), "-b", "2048", "-ub", "512"]
        lengths = ["-npp", str(num_prompt), "-ntg", str(num_new), "-npl", str(batch), "-pps"]
        process = subprocess.Popen([*self._command, *sizes, *lengths], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate()
        lines = [line for line in out.splitlines() if line.startswith("{")]
        if process.returncode or not lines:
            raise SystemExit(f"error: {_PROGRAM} failed: {err[-500:]}")
        load = re.search(r"load time\s*=\s*([\d.]+) ms", out + err)
        return {**json.loads(lines[-1]), "load_s": float(load[1]) / 1000 if load else None}

    def decode(self, batch: int) -> float:
        """Tokens a second."""
        return self.run(_PROMPT, _NEW, batch)["speed_tg"]

    def prefill(self) -> float:
        """Tokens of a prompt a second."""
        return self.run(_PREFILL, 1, 1)["speed_pp"]

    def close(self) -> None:
        """Nothing is kept."""


class HuggingFace:
    """transformers' generate(), greedy, bf16."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(harness.cores())
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def _seconds(self, batch: int, length: int, new: int) -> float:
        ids = torch.tensor([prompt(length)] * batch)
        with torch.inference_mode():
            return harness.seconds(
                lambda: self._model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
                )
            )

    def decode(self, batch: int) -> float:
        """Tokens a second: what more tokens take than one."""
        return batch * (_NEW - 1) / (self._seconds(batch, _PROMPT, _NEW) - self._seconds(batch, _PROMPT, 1))

    def prefill(self) -> float:
        """Tokens of a prompt a second."""
        return _PREFILL / self._seconds(1, _PREFILL, 1)

    def close(self) -> None:
        """Nothing runs."""


def peers_of(options: Any, folder: Path, name: str, kind: str) -> dict[str, Any]:
    """The peers that are here, and a word about the others."""
    gguf, found = folder / name / f"{_KINDS[kind]}.gguf", {}
    for label, programs, extra in (("llama.cpp", options.llama_cpp, ()), ("ik_llama", options.ik_llama, ("-rtr", "1"))):
        if programs is None or not (programs / _PROGRAM).is_file():
            print(f"{label}: left out, no {_PROGRAM} {'given' if programs is None else f'in {programs}'}", file=sys.stderr)
        else:
            found[label] = LlamaCpp(programs, gguf, *extra)
    if kind == "bf16" and options.huggingface:
        found["huggingface"] = HuggingFace(folder / name / "hf")
    return found | foreign_peers(options, folder, name, kind, prompt)


# ---- measuring ----
class PlainRead:
    """A plain read of memory of this size, by all threads."""

    def __init__(self, size_bytes: int) -> None:
        self._data = memory.zeros((size_bytes,), torch.uint8).fill_(1)

    def rate(self) -> float:
        """Bytes a second, the median of a few."""
        library = dispatch.choice().library
        assert library is not None, "this benchmark is of the C kernels"
        size, read = self._data.nbytes, library.read
        return statistics.median(size / harness.seconds(lambda: read(self._data.data_ptr(), size)) for _ in range(5))


def loading(folder: Path, name: str, kind: str) -> dict[str, Any]:
    """In a process of its own: seconds to an engine that is ready, and the peak memory after a few tokens."""
    return harness.child("benchmarks.cpu_peers", "--child", str(folder), name, kind)


def load_child(folder: Path, name: str, kind: str) -> None:
    """What `loading` runs."""
    dispatch.choice()
    before = harness.peak_rss_bytes()
    started = time.perf_counter()
    one = Herd(folder, name, kind)
    loaded = time.perf_counter() - started
    one.decode(1)
    first = time.perf_counter() - started
    print(
        json.dumps(
            {"load_s": loaded, "first_s": first, "peak_rss": harness.peak_rss_bytes(), "before": before, "weights": one.weight_bytes}
        )
    )
    one.close()


def measure(options: Any, folder: Path, name: str, kind: str) -> dict[str, Any]:
    """One shape in one kind, everybody in turns."""
    sides: dict[str, Any] = {"herd": Herd(folder, name, kind), **peers_of(options, folder, name, kind)}
    size = sides["herd"].weight_bytes
    results: dict[str, Any] = {"weights_bytes": size}
    plain = PlainRead(size)
    figures: list[tuple[str, Callable[[Any], float]]] = [
        (f"decode {batch}", lambda side, batch=batch: side.decode(batch)) for batch in options.batches
    ]
    if not options.no_prefill:
        figures.append((f"prefill {_PREFILL}", lambda side: side.prefill()))
    for label, figure in figures:
        figure(sides["herd"])
        turns = {who: lambda side=side, figure=figure: figure(side) for who, side in sides.items()}
        found = harness.interleave(turns | ({"read": plain.rate} if label == "decode 1" else {}), options.repeats)
        ratios = {
            who: statistics.median(mine / theirs for mine, theirs in zip(found["herd"], rates, strict=True))
            for who, rates in found.items() if who != "herd"
        }  # fmt: skip
        if label == "decode 1":
            results["read_bytes_per_s"] = statistics.median(found.pop("read"))
            results["share_of_read"] = size * ratios.pop("read")
        results[label] = {"tokens_per_s": {who: harness.summary(rates) for who, rates in found.items()}, "ratio": ratios}
    results["peers_loading"] = {who: side.loading() for who, side in sides.items() if isinstance(side, Foreign)}
    for side in sides.values():
        side.close()
    results["loading"] = loading(folder, name, kind)
    return results


def show(name: str, kind: str, results: dict[str, Any]) -> None:
    """A table of one shape and kind."""
    rows = []
    for label, found in results.items():
        if not isinstance(found, dict) or "ratio" not in found:
            continue
        for who, rates in found["tokens_per_s"].items():
            ratio = "" if who == "herd" else f"{found['ratio'][who]:.2f}"
            rows.append((f"{name} {kind}: {label}", who, f"{rates['median']:,.1f}", f"{rates['min']:,.1f} - {rates['max']:,.1f}", ratio))
    harness.table(("", "", "tokens/s", "lowest - highest", "herd / it"), rows)
    load, read = results["loading"], ""
    if "share_of_read" in results:
        gigabytes = results["read_bytes_per_s"] / 1e9
        read = f"; a plain read of as much: {gigabytes:.1f} GB/s, decoding one takes {results['share_of_read']:.0%} of it"
    print(f"{results['weights_bytes'] / 1e6:,.0f} MB of weights{read}")
    memory_mb = f"peak {load['peak_rss'] / 1e6:,.0f} MB ({load['before'] / 1e6:,.0f} MB before)"
    print(f"ready after {load['load_s']:.2f} s, {_NEW} tokens after {load['first_s']:.2f} s, {memory_mb}")
    for who, its in results["peers_loading"].items():
        print(f"{who}: ready after {its['load_s']:.2f} s with its imports, peak {(its['peak_rss'] or 0) / 1e6:,.0f} MB")
    print()


def main() -> None:
    """Run what the command line asks for."""
    options = harness.parser(__doc__, repeats=5)
    options.add_argument("--shapes", nargs="+", choices=("1b", "110m"), default=["1b", "110m"])
    options.add_argument("--bits", nargs="+", choices=tuple(_KINDS), default=list(_KINDS))
    options.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    options.add_argument("--no-prefill", action="store_true")
    options.add_argument("--llama-cpp", type=Path, metavar="DIR")
    options.add_argument("--ik-llama", type=Path, metavar="DIR")
    options.add_argument("--huggingface", action="store_true")
    options.add_argument("--openvino-python", type=Path, metavar="PYTHON")
    options.add_argument("--ctranslate2-python", type=Path, metavar="PYTHON")
    options.add_argument("--checkpoints", type=Path, metavar="DIR", help="keep the random weights here (default: a temporary folder)")
    options.add_argument("--make", action="store_true", help="write the files and measure nothing")
    options.add_argument("--child", nargs=3, help="used by the benchmark itself")
    chosen = options.parse_args()
    if chosen.child:
        load_child(Path(chosen.child[0]), *chosen.child[1:])
        return
    results: dict[str, Any] = {"kernels": dispatch.table()[0].runs}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.checkpoints or Path(temporary)).absolute()
        for name in chosen.shapes:
            make_files(folder, name, chosen.bits, peers=bool(chosen.llama_cpp or chosen.ik_llama))
            for kind in chosen.bits if not chosen.make else ():
                results[f"{name} {kind}"] = measure(chosen, folder, name, kind)
                show(name, kind, results[f"{name} {kind}"])
    harness.report(chosen.json, "cpu_peers", PACKAGES, {**results, "load_average": os.getloadavg()})


if __name__ == "__main__":
    main()
