"""Peers of `cpu_peers` that live in a Python of their own: OpenVINO GenAI and CTranslate2, exported once and driven over pipes.

Their exporters need other releases of transformers than herd's tests do, hence the interpreter of their own. Exports lie beside the random
weights, `FOLDER/ov-SHAPE/fp16|int8|int4` and `FOLDER/ct2-SHAPE/int8`; what is there already is taken. `foreign_worker` is the other side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

PROMPT, NEW, PREFILL = 128, 32, 1024
_WORKER = Path(__file__).with_name("foreign_worker.py")
_OPENVINO = {
    "bf16": ("fp16", ("--weight-format", "fp16")),
    "8": ("int8", ("--weight-format", "int8")),
    "4": ("int4", ("--weight-format", "int4", "--sym", "--group-size", "64", "--ratio", "1.0")),
}
"""By kind of weights: the folder and how optimum-intel exports it. OpenVINO computes fp16 files in bf16 where the processor has it."""


def left_out(peer: str, why: str) -> None:
    """Say why a peer is not measured."""
    print(f"{peer}: left out, {why}", file=sys.stderr)


class Foreign:
    """An engine in another process, loaded while it is measured."""

    def __init__(self, python: Path, engine: str, folder: Path, prompts: Any) -> None:
        command = [str(python), str(_WORKER), engine, str(folder), str(harness.cores())]
        self._engine, self._prompt = engine, prompts
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        loaded = self._answer()
        self.load_s, self.peak_rss = loaded["load_s"], loaded["peak_rss"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found = json.loads(line)
                if "error" in found:
                    raise SystemExit(f"error: {self._engine} failed: {found['error']}")
                return found
        raise SystemExit(f"error: {self._engine} ended with {self._process.wait()}")

    def _seconds(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": [list(prompt) for prompt in prompts], "new": new}) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        self.peak_rss = found["peak_rss"]
        return found["seconds"]

    def decode(self, batch: int) -> float:
        """Tokens a second: what more tokens take than one."""
        prompts = [self._prompt(PROMPT)] * batch
        return batch * (NEW - 1) / (self._seconds(prompts, NEW) - self._seconds(prompts, 1))

    def prefill(self) -> float:
        """Tokens of a prompt a second."""
        return PREFILL / self._seconds([self._prompt(PREFILL)], 1)

    def loading(self) -> dict[str, Any]:
        """Seconds to load, the interpreter's imports among them, and the peak memory so far."""
        return {"load_s": self.load_s, "peak_rss": self.peak_rss}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _exported(python: Path, peer: str, target: Path, module: str, arguments: Sequence[str]) -> bool:
    """Whether an export is there, made now where it was not; a word where that failed."""
    if any(target.glob("*model.bin")):
        return True
    print(f"exporting {target.parent.name}/{target.name} for {peer}", file=sys.stderr)
    run = f"import sys; sys.argv[0] = {peer!r}; from {module} import main; sys.exit(main())"
    done = subprocess.run([str(python), "-c", run, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        left_out(peer, f"its export failed: {done.stderr.strip()[-400:]}")
    return not done.returncode


def _has(python: Path | None, peer: str, modules: str) -> Path | None:
    """The interpreter, where it has the modules; else a word."""
    if python is None:
        left_out(peer, f"no --{peer}-python given")
        return None
    try:
        done = subprocess.run([str(python), "-c", f"import {modules}"], capture_output=True, text=True, check=False)
    except OSError as error:
        left_out(peer, f"{python} does not run: {error}")
        return None
    if done.returncode:
        left_out(peer, f"{python} cannot import {modules}: {done.stderr.strip().splitlines()[-1]}")
        return None
    return python


def foreign_peers(options: Any, folder: Path, name: str, kind: str, prompts: Any) -> dict[str, Foreign]:
    """Those that are here for a shape and a kind of weights. `prompts` makes random ids of a length."""
    found: dict[str, Foreign] = {}
    source = str(folder / name / "hf")
    python = _has(options.openvino_python, "openvino", "openvino_genai")
    if python is not None:
        label, how = _OPENVINO[kind]
        target = folder / f"ov-{name}" / label
        arguments = ("export", "openvino", "--model", source, "--task", "text-generation-with-past", *how, str(target))
        if _exported(python, "openvino", target, "optimum.commands.optimum_cli", arguments):
            found["openvino"] = Foreign(python, "openvino", target, prompts)
    if kind != "8":
        if options.ctranslate2_python is not None:
            left_out("ctranslate2", f"it has int8 and float32 on this processor, nothing to set beside {kind}")
        return found
    python = _has(options.ctranslate2_python, "ctranslate2", "ctranslate2")
    if python is not None:
        target = folder / f"ct2-{name}" / "int8"
        arguments = ("--model", source, "--output_dir", str(target), "--quantization", "int8")
        if _exported(python, "ctranslate2", target, "ctranslate2.converters.transformers", arguments):
            found["ctranslate2"] = Foreign(python, "ctranslate2", target, prompts)
    return found
