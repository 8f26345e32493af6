"""Options that commands with a model share, and loading it with what the settings say."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from herd.base import settings
from herd.base.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from herd.inference.llm import LLM

ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Path, hub name or alias. [variable: HERD_MODEL; default: cria]")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or auto. [variable: HERD_DEVICE; default: auto]")]
DtypeOption = Annotated[
    str | None, typer.Option(help="auto, float32, bfloat16 or float16. [variable: HERD_DTYPE; default: auto, as stored]")
]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads. [variable: HERD_THREADS; default: all cores]")]
TpOption = Annotated[int, typer.Option("--tp", help="Processes on the CPU that share every layer of the model.")]
PpOption = Annotated[int, typer.Option("--pp", help="Stages, each a process, that have the layers behind one another.")]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        help="0 takes the likeliest token every time; higher is more varied. [variable: HERD_TEMPERATURE; default: 0.6]",
    ),
]
TopPOption = Annotated[
    float | None, typer.Option(help="Draw from the likeliest tokens up to this mass. [variable: HERD_TOP_P; default: 0.9]")
]
MaxTokensOption = Annotated[int | None, typer.Option(help="New tokens at most. [variable: HERD_MAX_TOKENS; default: 512]")]
SeedOption = Annotated[int | None, typer.Option(help="The same seed gives the same answer. [default: drawn anew]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_DEVICES = ("auto", "cpu", "cuda")
_MAX_THREADS = 1024


def load_llm(
    model: str | None, *, device: str | None = None, dtype: str | None = None, threads: int | None = None, tp: int = 1, pp: int = 1
) -> LLM:
    """The model that flags and settings name, refused before loading if its weights do not fit in memory."""
    from herd.checkpoint.resolve import resolve_model
    from herd.cli.fits import check_fits
    from herd.engine.packed.mapped import locate
    from herd.inference.llm import LLM
    from herd.kernels.dispatch import set_num_threads

    count = _thread_count(threads)
    if count:
        set_num_threads(count)
    chosen = settings.value("model", model)
    kind = settings.value("dtype", dtype)
    place = choose_device(settings.value("device", device))
    if (tp, pp) != (1, 1) and device is None:
        place = "cpu"
    path, dtype = resolve_model(chosen), None if kind == "auto" else kind
    packed = locate(path, dtype) if place == "cpu" and (tp, pp) == (1, 1) else None
    if packed is None or "torch" in sys.modules:
        _limit_torch(count)
    check_fits(path, dtype=dtype, device=place, packed=packed)
    llm = LLM(path, dtype=dtype, device=place, tp=tp, pp=pp)
    llm.name = chosen
    return llm


def set_threads(flag: int | None) -> int:
    """Let torch use as many CPU threads as flag and settings say; returns how many, 0 for every core. Raises UsageError out of range."""
    count = _thread_count(flag)
    _limit_torch(count)
    return count


def _thread_count(flag: int | None) -> int:
    """How many CPU threads flag and settings say, 0 for every core. Raises UsageError out of range."""
    count = settings.value("threads", flag)
    if not 0 <= count <= _MAX_THREADS:
        raise UsageError(
            f"threads is {count}, it must be 0 (all cores) to {_MAX_THREADS}", hint="leave --threads and HERD_THREADS out to use every core"
        )
    return count


def _limit_torch(count: int) -> None:
    if count:
        import torch

        torch.set_num_threads(count)


def check_device(place: str) -> str:
    """The device, which need not be here. Raises UsageError for one that is none."""
    kind, colon, index = place.partition(":")
    if kind not in _DEVICES or (colon and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f"unknown device {place!r}", hint=did_you_mean(kind, _DEVICES, otherwise="devices: auto, cpu, cuda, cuda:1"))
    return place


def choose_device(place: str) -> str:
    """The device that a setting names; `auto` takes a GPU where there is one. Raises UsageError for one that is unknown or not there."""
    from herd.kernels.torch_build import default_device

    kind, _, index = check_device(place).partition(":")
    if kind == "auto":
        return default_device()
    if kind == "cuda":
        import torch

        if int(index or 0) >= torch.cuda.device_count():
            raise UsageError(f"there is no {place} on this machine", hint="use --device cpu; `herd doctor` lists the GPUs that torch sees")
    return place
