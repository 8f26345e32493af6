"""`herd merge` and `herd average`: models made of trained parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from herd.cli.load import JsonOption

_Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 instead of the model's own.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at DST.")]


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A folder with adapter_config.json, from herd or from PEFT.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model that the adapter belongs to. [default: the one it names]")
    ] = None,
    dtype: _Dtype = None,
    overwrite: _Overwrite = False,
    json: JsonOption = False,
) -> None:
    """Add a LoRA or DoRA adapter to its model's weights: a plain model that chat, serve and transformers load."""
    from herd.base.errors import UsageError
    from herd.checkpoint.hf import main_dtype
    from herd.checkpoint.load import as_dtype, save_model
    from herd.checkpoint.open import open_checkpoint
    from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
    from herd.checkpoint.reward import is_reward_model, save_reward_model
    from herd.cli.output import note, print_json
    from herd.model.reward import RewardModel
    from herd.recipes.tune_export import is_reward_adapter, merged
    from herd.train.adapters.files import read_adapter_config

    config, named = read_adapter_config(adapter)
    base = model or named
    if base is None:
        raise UsageError(f"{adapter} does not say which model it belongs to", hint="pass --model MODEL")
    path = resolve_model(base)
    reward = is_reward_adapter(adapter)
    if dtype is not None:
        stored = as_dtype(dtype)
    elif is_reward_model(path):
        stored = as_dtype("bfloat16")
    else:
        with open_checkpoint(path) as source:
            stored = main_dtype(source)
    made = merged(path, adapter, reward=reward, dtype=stored)
    tokenizer = load_checkpoint_tokenizer(path)
    if isinstance(made, RewardModel):
        save_reward_model(made, target, tokenizer=tokenizer, overwrite=overwrite)
    else:
        save_model(made, target, tokenizer=tokenizer, overwrite=overwrite)
    if json:
        print_json({"path": str(target), "model": base, "rank": config.rank, "dtype": str(stored).removeprefix("torch.")})
        return
    note(f"wrote {base} with the adapter of rank {config.rank} to {target}" + ("" if reward else f": herd chat --model {target}"))


def average(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Two models or more: paths, hub names or aliases.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DST", help="The folder to write.")],
    weights: Annotated[str | None, typer.Option(help="Shares in the order of the models, as 2,1,1. [default: all alike]")] = None,
    dtype: _Dtype = None,
    overwrite: _Overwrite = False,
    json: JsonOption = False,
) -> None:
    """Average the weights of models of one shape, as Llama 3.1 does with those of different data and settings."""
    from herd.base.progress import track_steps
    from herd.checkpoint.average import average_models, shares
    from herd.checkpoint.resolve import resolve_model
    from herd.cli.output import note, print_json

    numbers = None if weights is None else _numbers(weights)
    paths = [resolve_model(model) for model in models]
    with track_steps("averaging", total=None) as advance:
        count = average_models(paths, output, weights=numbers, dtype=dtype, overwrite=overwrite, progress=advance)
    found = shares(len(models), numbers)
    if json:
        print_json({"path": str(output), "models": dict(zip(models, found, strict=True)), "num_tensors": count})
        return
    mix = ", ".join(f"{share:.3g} {model}" for model, share in zip(models, found, strict=True))
    note(f"wrote {count} tensors to {output}: {mix}")


def _numbers(text: str) -> list[float]:
    from herd.base.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--weights {text!r} are no numbers", hint="write them as 2,1,1") from error
