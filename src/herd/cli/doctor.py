"""`herd doctor`: what this machine has, whether herd works on it, and the largest model that fits."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from herd.cli.load import JsonOption

_PACKAGES = ("torch", "numpy", "safetensors", "tiktoken", "tokenizers", "huggingface_hub", "typer", "prompt_toolkit")
_HEADROOM = 1.2


def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure memory and matrix products too, and keep them as `--hardware here` of herd plan.")
    ] = False,
    watts: Annotated[float | None, typer.Option(help="Power of this machine, kept with what is measured. [default: a guess]")] = None,
    json: JsonOption = False,
) -> None:
    """Check this installation; exit code 5 if something is wrong. Ends with the largest Llama 3.1 that fits and the command for it."""
    from herd.base.errors import GateError, UsageError
    from herd.cli.output import facts, line, print_json

    if watts is not None and not measure:
        raise UsageError(f"--watts {watts:g} goes with --measure", hint="add --measure")
    machine, problems = _machine(), _problems()
    fitting = _largest(machine)
    measured = _measured(watts) if measure else None
    if json:
        kept = {} if measured is None else {"measured": measured}
        print_json({**machine, **kept, "problems": problems, "largest_that_fits": fitting})
    else:
        if measured is not None:
            machine |= {
                "measured memory": f"{measured['memory_gb_per_s']:.1f} GB/s read",
                "measured products": f"{measured['bf16_tflops']:.2f} TFLOPs in bfloat16, {measured['fp32_tflops']:.2f} in float32",
                "kept in": measured["path"],
            }
        facts({name: _text(name, value) for name, value in machine.items()})
        line()
        for problem in problems:
            line(f"problem: {problem}")
        if not problems:
            line("cria answers: this installation works")
        line(
            f"largest published model that fits in 16 bits: {fitting['name']} - {fitting['command']}"
            if fitting
            else "no published model fits; try cria"
        )
    if problems:
        raise GateError(f"{len(problems)} problem(s) found", hint="see the list above")


def _measured(watts: float | None) -> dict[str, Any]:
    """What this machine does at best, measured and kept; and where."""
    from herd.bench.machine import measure_machine
    from herd.plan.hardware import save_here

    device = measure_machine(watts=watts)
    return {**device.to_dict(), "path": str(save_here(device))}


def _text(name: str, value: Any) -> str:
    from herd.base.memory import gib

    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    if value is None:
        return "none"
    return gib(value) if name.endswith("_bytes") else str(value)


def _machine() -> dict[str, Any]:
    import torch

    from herd.base.memory import available_memory, free_disk, total_memory
    from herd.base.paths import home
    from herd.kernels.dispatch import table
    from herd.version import __version__

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "herd": __version__,
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "cpu_kernels": {row.op: row.runs for row in table() if row.device == "cpu"},
        "gpus": gpus,
        "memory_bytes": total_memory(),
        "memory_free_bytes": available_memory(),
        "gpu_memory_free_bytes": torch.cuda.mem_get_info()[0] if gpus else None,
        "disk_free_bytes": free_disk(home()),
        "home": str(home()),
        "code_execution": _code(),
    }


def _code() -> str:
    """The jail that code runs in, or why it is off."""
    from herd.base.errors import HerdError
    from herd.tools.code.choose import choose

    try:
        return f"in {choose().kind}"
    except HerdError as error:
        return f"off: {error.message}" + (f"; {error.hint}" if error.hint else "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _problems() -> list[str]:
    """What does not work, found by using it."""
    from herd.base.errors import HerdError
    from herd.base.settings import resolve_all

    problems = [f"{name} is not installed: pip install {name}" for name in _PACKAGES if _version(name) == "missing"]
    try:
        resolve_all()
    except HerdError as error:
        problems.append(error.message)
    try:
        _answer()
    except Exception as error:  # a doctor reports what is broken, whatever it is
        problems.append(f"cria does not answer: {error.message if isinstance(error, HerdError) else repr(error)}")
    return problems


def _answer() -> None:
    from herd.inference.llm import LLM
    from herd.inference.params import SamplingParams
    from herd.text.messages import Message

    LLM("cria", device="cpu").chat([Message.user("Hello!")], SamplingParams(temperature=0.0, max_tokens=4))


def _largest(machine: dict[str, Any]) -> dict[str, str] | None:
    """The largest instruct model whose 16-bit weights, and a little more, fit in free memory."""
    from herd.model.presets import PRESETS

    names = {"llama-3.1-405b": "llama3.1:405b", "llama-3.1-70b": "llama3.1:70b", "llama-3.1-8b": "llama3.1:8b"}
    names |= {"llama-3.2-3b": "llama3.2:3b", "llama-3.2-1b": "llama3.2:1b"}
    free = machine["gpu_memory_free_bytes"] or machine["memory_free_bytes"] or 0
    for preset, alias in names.items():
        if 2 * PRESETS[preset].num_parameters * _HEADROOM <= free:
            return {"name": preset, "command": f"herd pull {alias} && herd chat --model {alias}"}
    return None
