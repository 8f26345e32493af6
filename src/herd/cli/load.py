"""Options that commands with a model share, and loading it with what the settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from herd.base import settings

if TYPE_CHECKING:
    from herd.inference.llm import LLM

ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Path, hub name or alias. [variable: HERD_MODEL; default: cria]")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or auto. [variable: HERD_DEVICE; default: auto]")]
DtypeOption = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. [variable: HERD_DTYPE; default: auto, as stored]")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads. [variable: HERD_THREADS; default: all cores]")]
TemperatureOption = Annotated[float | None, typer.Option("--temperature", "-t", help="0 is greedy. [default: 0.6]")]
TopPOption = Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this mass. [default: 0.9]")]
MaxTokensOption = Annotated[int | None, typer.Option(help="New tokens at most. [default: 512]")]
SeedOption = Annotated[int | None, typer.Option(help="The same seed gives the same answer. [default: drawn]")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def load_llm(model: str | None, *, device: str | None = None, dtype: str | None = None, threads: int | None = None) -> LLM:
    """The model that flags and settings name, refused before loading if its weights do not fit in memory."""
    import torch

    from herd.checkpoint.resolve import resolve_model
    from herd.cli.fits import check_fits
    from herd.inference.llm import LLM

    count = settings.value("threads", threads)
    if count:
        torch.set_num_threads(count)
    chosen = settings.value("model", model)
    kind = settings.value("dtype", dtype)
    place = settings.value("device", device)
    if place == "auto":
        place = "cuda" if torch.cuda.is_available() else "cpu"
    path = resolve_model(chosen)
    check_fits(path, dtype=None if kind == "auto" else kind, device=place)
    llm = LLM(path, dtype=None if kind == "auto" else kind, device=place)
    llm.name = chosen
    return llm
