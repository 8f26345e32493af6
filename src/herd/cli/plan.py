"""`herd plan`: what something takes, before it is done."""

from __future__ import annotations

from typing import Annotated

import typer

from herd.cli.load import JsonOption
from herd.cli.serve import BudgetOption, CacheOption, ContextOption, MemoryOption, SequencesOption

app = typer.Typer(help="What something takes, before it is done.", no_args_is_help=True)


@app.command("serve")
def serve(
    model: Annotated[str, typer.Argument(help="Path, hub name or alias; only its headers are read.")] = "cria",
    memory: MemoryOption = None,
    context: ContextOption = None,
    max_sequences: SequencesOption = 64,
    token_budget: BudgetOption = 512,
    dtype: Annotated[str | None, typer.Option(help="Of the weights. [default: as stored]")] = None,
    kv_dtype: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """The memory that `herd serve` with the same options allocates, item by item; exit code 4 if it does not fit."""
    from dataclasses import asdict

    from herd.base.memory import gib, parse_size
    from herd.checkpoint.open import open_checkpoint
    from herd.checkpoint.resolve import resolve_model
    from herd.cli.output import facts, print_json
    from herd.engine.memory import EngineConfig, plan_memory

    engine = EngineConfig(
        context=context,
        max_sequences=max_sequences,
        token_budget=token_budget,
        cache_dtype=kv_dtype,
        memory_bytes=None if memory is None else parse_size(memory),
    )
    with open_checkpoint(resolve_model(model)) as source:
        config = source.config
        stored = next(iter(source.tensors.values())).dtype
    kind = dtype or str(stored).removeprefix("torch.")
    plan = plan_memory(config, engine, dtype=kind)
    if json:
        print_json({**asdict(plan), "total_bytes": plan.total_bytes, "dtype": kind})
        return
    rows = {name.removesuffix("_bytes"): gib(value) for name, value in asdict(plan).items() if name.endswith("_bytes")}
    cached = f"{plan.num_blocks:,} blocks, {plan.cache_tokens:,} tokens over all requests"
    facts({**rows, "total": gib(plan.total_bytes), "context": f"{plan.context:,} tokens", "cache holds": cached})
