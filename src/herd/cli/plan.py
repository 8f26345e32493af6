"""`herd plan`: what training and serving take, before they are done; and what published runs took, beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from herd.cli.load import JsonOption
from herd.cli.serve import BudgetOption, CacheOption, ContextOption, MemoryOption, PrefixDirOption, SequencesOption

if TYPE_CHECKING:
    from herd.model.config import ModelConfig
    from herd.plan.assumptions import Assumptions
    from herd.plan.hardware import Device
    from herd.plan.mesh import Batch
    from herd.plan.search import Found

app = typer.Typer(help="What training and serving take, before they are done.", no_args_is_help=True)

ModelArgument = Annotated[str, typer.Argument(help="A shape as 405b, 70b, 8b, 3b, 1b, a preset, or the path of a model.")]
HardwareOption = Annotated[str, typer.Option(help="A name of `herd plan hardware`, or here: this machine after `herd doctor --measure`.")]
AssumeOption = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE, an assumption of `herd plan hardware NAME`, as matmul=0.75; several times.")
]
PueOption = Annotated[float, typer.Option(help="What the building adds to the devices' energy.")]
GridOption = Annotated[float, typer.Option(help="Carbon intensity of the grid, kg CO2eq a kWh.")]
PriceOption = Annotated[float | None, typer.Option(help="USD a device and hour. [default: the catalogue's]")]
_COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([KMBT]?|[KM]i)", re.IGNORECASE)
_POWERS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20}


def parse_count(text: str) -> float:
    """Tokens of `15.6T`, `300M`, `16Mi` (2^20 each) or `1e9`. Raises UsageError."""
    from herd.base.errors import UsageError

    match = _COUNT.fullmatch(text.strip().replace("_", "").replace(",", ""))
    if match is None:
        raise UsageError(f"{text!r:.40} is no number of tokens", hint="write 15.6T, 300M, 16Mi or 1000000")
    return float(match[1]) * _POWERS[match[2].upper()]


def _shape(model: str) -> tuple[str, ModelConfig]:
    """The shape that a name or a path stands for; only headers are read."""
    from herd.plan.models import find_shape, preset_name

    if preset_name(model) is not None and not Path(model).exists():
        return find_shape(model)
    from herd.checkpoint.open import open_checkpoint
    from herd.checkpoint.resolve import resolve_model

    with open_checkpoint(resolve_model(model)) as source:
        return model, source.config


def _supposed(device: Device, changes: list[str] | None) -> Assumptions:
    from herd.base.config_io import apply_overrides
    from herd.plan.assumptions import default_assumptions

    return apply_overrides(default_assumptions(device), changes or [])


@app.command("train")
def train(
    model: ModelArgument = "405b",
    hardware: HardwareOption = "h100-80gb",
    gpus: Annotated[
        int | None, typer.Option(help="Devices, for which the best mesh is looked for. [default: those of the mesh given]")
    ] = None,
    tp: Annotated[int | None, typer.Option(help="Tensor parallel devices. [default: searched]")] = None,
    cp: Annotated[int | None, typer.Option(help="Context parallel devices. [default: searched]")] = None,
    pp: Annotated[int | None, typer.Option(help="Pipeline stages. [default: searched]")] = None,
    dp: Annotated[int | None, typer.Option(help="Data parallel replicas. [default: searched]")] = None,
    virtual_stages: Annotated[int | None, typer.Option(help="Interleaved chunks of each pipeline rank. [default: searched]")] = None,
    zero: Annotated[int | None, typer.Option(help="Shared: 1 optimiser, 2 gradients too, 3 parameters too. [default: searched]")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Sequences that a replica computes at once. [default: searched]")] = None,
    recompute: Annotated[str | None, typer.Option(help="none, elementwise, selective or full. [default: the mildest that fits]")] = None,
    sequence: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 8192,
    batch_tokens: Annotated[str, typer.Option(help="Tokens of a global batch; Mi are 2^20.")] = "16Mi",
    precision: Annotated[str, typer.Option(help="bf16, fp8, fp32 or bf16-pure.")] = "bf16",
    tokens: Annotated[str, typer.Option(help="Tokens of the whole run, as 15.6T.")] = "15.6T",
    assume: AssumeOption = None,
    pue: PueOption = 1.1,
    grid: GridOption = 0.385,
    price: PriceOption = None,
    restart_minutes: Annotated[float, typer.Option(help="From an interruption until the run trains again.")] = 10.0,
    top: Annotated[int, typer.Option(help="Meshes listed.")] = 5,
    json: JsonOption = False,
) -> None:
    """What a training run takes: memory, step time and its bound, the best mesh and why the next is worse; exit code 4 if it does not fit.

    Then days with failures and restarts, energy, cost and carbon of the whole run. With --gpus, sizes that are given are kept and the
    others searched; without, those that are not given are 1.
    """
    from dataclasses import replace

    from herd.cli.output import line, print_json
    from herd.cli.plan_tables import show_found, show_train
    from herd.plan.accounting import Power
    from herd.plan.failures import Reliability
    from herd.plan.hardware import find_device
    from herd.plan.mesh import Batch, as_precision
    from herd.plan.train import with_run

    device = find_device(hardware)
    batch = Batch(sequence=sequence, tokens=int(parse_count(batch_tokens)), precision=as_precision(precision))
    given = {"tp": tp, "cp": cp, "pp": pp, "dp": dp, "virtual_stages": virtual_stages, "zero": zero, "micro_batch": micro_batch}
    fixed = {name: value for name, value in given.items() if value is not None}
    found = _find(_shape(model), device, gpus, batch, fixed, recompute, _supposed(device, assume), top)
    power, reliability = Power(watts=device.watts, pue=pue, grid_kg_per_kwh=grid), Reliability(restart_s=60 * restart_minutes)
    best = replace(found[0].plan, power=power)
    best = with_run(best, parse_count(tokens), price_per_hour=price, reliability=reliability)
    if json:
        others = [{"mesh": str(one.plan.mesh), "tflops_per_device": one.plan.tflops, "why": one.why} for one in found]
        print_json({**best.to_dict(), "ranking": others})
    else:
        show_train(best)
        if len(found) > 1:
            line()
            show_found(found)
    best.require_fit()


def _find(
    shape: tuple[str, ModelConfig],
    device: Device,
    gpus: int | None,
    batch: Batch,
    fixed: dict[str, int],
    recompute: str | None,
    supposed: Assumptions,
    top: int,
) -> list[Found]:
    """The meshes to show, the best first. A mesh that is given whole is planned even where it does not fit."""
    from dataclasses import replace

    from herd.plan.mesh import Mesh, as_recompute
    from herd.plan.search import Found, best_meshes, mildest, why_best
    from herd.plan.train import train_plan

    name, config = shape
    load = batch if recompute is None else replace(batch, recompute=as_recompute(recompute))
    policy = None if recompute is None else load.recompute
    sizes = {key: fixed[key] for key in ("tp", "cp", "pp", "dp") if key in fixed}
    size = 1
    for value in sizes.values():
        size *= value
    # Without --gpus what is not given is 1; with it, replicas make up for what is left.
    if gpus is None or len(sizes) == 4:
        sizes = {"tp": 1, "cp": 1, "pp": 1, "dp": 1, **sizes}
        if gpus is not None and gpus != size:
            from herd.base.errors import UsageError

            raise UsageError(f"--gpus {gpus:,} is not the {size:,} of the mesh given", hint="leave --gpus or one of the sizes out")
        chunks = {"virtual_stages": fixed.get("virtual_stages", 1), "zero": fixed.get("zero", 2)}
        mesh = Mesh(**sizes, **chunks)
        load = replace(load, micro_batch=fixed.get("micro_batch", 1))
        if policy is None:
            load = mildest(config, mesh, load, device, supposed) or replace(load, recompute="full")
        plan = train_plan(config, device, mesh=mesh, batch=load, assumptions=supposed, name=name)
        return [Found(plan=plan, why=why_best(plan))]
    return best_meshes(config, device, gpus, batch=load, assumptions=supposed, recompute=policy, fixed=fixed, top=max(1, top), name=name)


@app.command("serve")
def serve(
    model: Annotated[str, typer.Argument(help="Path, hub name, alias, or a shape as 405b; only headers are read.")] = "cria",
    hardware: Annotated[
        str | None,
        typer.Option(help="A name of `herd plan hardware`: plan for that. [default: what herd's own engine takes on this machine]"),
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="With --hardware: devices, split as well as they go.")] = None,
    tp: Annotated[int | None, typer.Option(help="With --hardware: devices that share every layer. [default: 1]")] = None,
    pp: Annotated[int | None, typer.Option(help="With --hardware: stages behind one another. [default: 1]")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="With --hardware: bf16, fp32, fp8 (as Meta's 405B), fp8-linear, int8 or int4. [default: bf16]"),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="With --hardware: a prompt whose time to the first token is told.")] = 4096,
    assume: AssumeOption = None,
    memory: MemoryOption = None,
    context: ContextOption = None,
    max_sequences: SequencesOption = 64,
    token_budget: BudgetOption = 512,
    dtype: Annotated[str | None, typer.Option(help="Of the weights in herd's own engine. [default: as stored]")] = None,
    kv_dtype: CacheOption = None,
    prefix_dir: PrefixDirOption = None,
    json: JsonOption = False,
) -> None:
    """The memory that `herd serve` with the same options allocates, item by item; exit code 4 if it does not fit.

    With --hardware: the same question for hardware that need not be here. Weights and cache by format, sequences at once, tokens a second
    and time to the first token at best, and what bounds them. --memory, --dtype and --prefix-dir are of herd's own engine alone.
    """
    if hardware is None:
        _refuse("--hardware", gpus=gpus, tp=tp, pp=pp, weights=weights, assume=assume)
        _serve_here(model, memory, context, max_sequences, token_budget, dtype, kv_dtype, prefix_dir, json=json)
        return
    _refuse(None, memory=memory, dtype=dtype, prefix_dir=prefix_dir)
    _serve_there(model, hardware, gpus, tp, pp, weights, prompt_tokens, assume, context, max_sequences, token_budget, kv_dtype, json=json)


def _refuse(needed: str | None, **options: Any) -> None:
    """Raises UsageError for options that mean nothing here."""
    from herd.base.errors import UsageError

    for name, value in options.items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            if needed is None:
                raise UsageError(f"{flag} is of herd's own engine, and --hardware plans without it", hint=f"leave {flag} or --hardware out")
            raise UsageError(f"{flag} goes with {needed}", hint=f"add {needed} NAME; `herd plan hardware` lists the names")


def _serve_there(
    model: str,
    hardware: str,
    gpus: int | None,
    tp: int | None,
    pp: int | None,
    weights: str | None,
    prompt_tokens: int,
    assume: list[str] | None,
    context: int | None,
    max_sequences: int,
    token_budget: int,
    kv_dtype: str | None,
    *,
    json: bool,
) -> None:
    from herd.base.errors import UsageError
    from herd.cli.output import print_json
    from herd.cli.plan_tables import show_serve
    from herd.plan.hardware import find_device
    from herd.plan.serve import as_cache_dtype, serve_plan, split_devices
    from herd.plan.weights import as_format

    device, (name, config) = find_device(hardware), _shape(model)
    split = (tp or 1, pp or 1)
    if gpus is not None:
        if tp is not None or pp is not None:
            raise UsageError("--gpus chooses --tp and --pp itself", hint="leave --gpus out, or --tp and --pp")
        split = split_devices(config, device, gpus) or (0, 0)
        if split == (0, 0):
            raise UsageError(f"{gpus} devices split neither the heads nor the layers of {name} evenly", hint="take 1, 2, 4, 8 or 16")
    plan = serve_plan(
        config,
        device,
        tp=split[0],
        pp=split[1],
        weights=as_format(weights or "bf16"),
        cache=as_cache_dtype(kv_dtype or "bf16"),
        context=context,
        token_budget=token_budget,
        assumptions=_supposed(device, assume),
        name=name,
    )
    if json:
        print_json({**plan.to_dict(), "prompt_tokens": prompt_tokens, "first_token_s": plan.first_token_s(prompt_tokens)})
    else:
        show_serve(plan, prompt=prompt_tokens, sequences=max_sequences)
    plan.require_fit()


def _stored(model: str, dtype: str | None) -> tuple[ModelConfig, str, int | None]:
    """A model's config, the dtype that it computes in, and what its weights take where some are quantised: those as they are stored.

    Without a `dtype` it is the one on disk, of a quantised model and of a published shape that is not here bfloat16.
    """
    from math import prod

    from herd.base.errors import NotFoundError
    from herd.checkpoint.open import open_checkpoint
    from herd.checkpoint.quant_hf import QuantHfSource
    from herd.checkpoint.resolve import resolve_model
    from herd.engine.memory import dtype_bytes
    from herd.plan.models import find_shape, preset_name

    try:
        path = resolve_model(model)
    except NotFoundError:
        if preset_name(model) is None:
            raise
        return find_shape(model)[1], dtype or "bfloat16", None
    with open_checkpoint(path) as source:
        if not isinstance(source, QuantHfSource):
            return source.config, dtype or str(next(iter(source.tensors.values())).dtype).removeprefix("torch."), None
        kind = dtype or "bfloat16"  # what `load_for_engine` computes in
        sizes = (
            info.size_bytes if name in source.quantised else prod(info.shape) * dtype_bytes(kind) for name, info in source.tensors.items()
        )
        return source.config, kind, sum(sizes)


def _serve_here(
    model: str,
    memory: str | None,
    context: int | None,
    max_sequences: int,
    token_budget: int,
    dtype: str | None,
    kv_dtype: str | None,
    prefix_dir: Path | None,
    *,
    json: bool,
) -> None:
    """What the engine allocates on this machine, to the byte."""
    from dataclasses import asdict

    from herd.base.memory import gib, parse_size
    from herd.cli.output import facts, print_json
    from herd.engine.memory import EngineConfig, plan_memory

    engine = EngineConfig(
        context=context,
        max_sequences=max_sequences,
        token_budget=token_budget,
        cache_dtype=kv_dtype,
        prefix_dir=None if prefix_dir is None else str(prefix_dir),
        memory_bytes=None if memory is None else parse_size(memory),
    )
    config, kind, weights_bytes = _stored(model, dtype)
    plan = plan_memory(config, engine, dtype=kind, weights_bytes=weights_bytes)
    if json:
        print_json({**asdict(plan), "total_bytes": plan.total_bytes, "dtype": kind})
        return
    rows = {name.removesuffix("_bytes"): gib(value) for name, value in asdict(plan).items() if name.endswith("_bytes")}
    cached = f"{plan.num_blocks:,} blocks, {plan.cache_tokens:,} tokens over all requests"
    facts({**rows, "total": gib(plan.total_bytes), "context": f"{plan.context:,} tokens", "cache holds": cached})


@app.command("hardware")
def hardware(
    name: Annotated[str | None, typer.Argument(help="One of them, whole: figures, sources and assumptions. None lists all.")] = None,
    json: JsonOption = False,
) -> None:
    """The hardware that plans can be made for: memory, rates, links, watts and prices, with sources."""
    from herd.cli.output import facts, line, note, print_json, table
    from herd.plan.assumptions import default_assumptions
    from herd.plan.hardware import find_device, known_devices

    if name is not None:
        device = find_device(name)
        supposed = default_assumptions(device).to_dict()
        if json:
            print_json({**device.to_dict(), "assumptions": supposed})
            return
        plain = {key: str(value) for key, value in device.to_dict().items() if key != "sources" and value is not None}
        facts({**plain, **{f"source {index}": text for index, text in enumerate(device.sources, 1)}})
        line()
        facts({f"assumed {key}": str(value) for key, value in supposed.items()})
        return
    devices = known_devices()
    if json:
        print_json([device.to_dict() for device in devices.values()])
        return
    header = ("name", "memory", "reads", "bf16", "fp8", "link", "network", "watts", "USD/h", "")
    rows = [
        [
            key,
            f"{device.memory_gb:,.0f} GB",
            f"{device.memory_gb_per_s:,.0f} GB/s",
            f"{device.bf16_tflops:,.1f}",
            "-" if device.fp8_tflops is None else f"{device.fp8_tflops:,.0f}",
            f"{device.link_gb_per_s:g} GB/s",
            f"{device.network_gb_per_s:g} GB/s",
            f"{device.watts:g}",
            "-" if device.price_per_hour is None else f"{device.price_per_hour:g}",
            device.title,
        ]
        for key, device in devices.items()
    ]
    table(rows, header)
    note("rates are dense TFLOPs; links and networks one direction; one of them whole: herd plan hardware NAME")


@app.command("carbon")
def carbon(
    card: Annotated[str | None, typer.Option(help="Constants of a published card: llama-2, llama-3, llama-3.1 or llama-3.2.")] = None,
    hours: Annotated[str | None, typer.Option(help="Device hours to account for. [default: those of the card's models]")] = None,
    hardware: Annotated[str | None, typer.Option(help="Whose watts and price count, in place of a card's.")] = None,
    pue: Annotated[float | None, typer.Option(help="What the building adds. [default: the card's, else 1.1]")] = None,
    grid: Annotated[float | None, typer.Option(help="kg CO2eq a kWh. [default: the card's, else 0.385]")] = None,
    price: PriceOption = None,
    json: JsonOption = False,
) -> None:
    """Energy, carbon and cost of device hours by the nameplate method; without --hours the published cards, recomputed."""
    from dataclasses import asdict

    from herd.base.errors import UsageError
    from herd.cli.output import facts, print_json, table
    from herd.plan.accounting import Power, account, cards, find_card
    from herd.plan.hardware import find_device

    if hours is None:
        if hardware is not None:
            raise UsageError("--hardware needs --hours", hint="add --hours 1000, or name a --card alone")
        chosen = cards().values() if card is None else [find_card(card)]
        rows = [(one, row, account(row.device_hours, one.power)) for one in chosen for row in one.rows]
        if json:
            told = [{"card": one.name, **asdict(row), "computed_tonnes": used.carbon_t, **asdict(used)} for one, row, used in rows]
            print_json(told)
            return
        lines = [
            [
                one.name,
                row.model,
                f"{row.device_hours:,}",
                f"{used.energy_kwh / 1000:,.0f}",
                f"{row.tonnes:,g}",
                f"{one.printed(used.carbon_t):,g}",
                f"{used.carbon_t:,.3f}",
            ]
            for one, row, used in rows
        ]
        table(lines, ("card", "model", "device hours", "MWh with PUE", "t published", "t computed, as printed", "t computed"))
        return
    device = None if hardware is None else find_device(hardware)
    known = None if card is None else find_card(card)
    if device is None and known is None:
        raise UsageError("--hours needs watts", hint="add --hardware h100-80gb, or --card llama-3.1")
    base = known.power if known else Power(watts=0.0)
    power = Power(
        watts=device.watts if device else base.watts,
        pue=base.pue if pue is None else pue,
        grid_kg_per_kwh=base.grid_kg_per_kwh if grid is None else grid,
    )
    rate = price if price is not None or device is None else device.price_per_hour
    used = account(parse_count(hours), power, price_per_hour=rate)
    if json:
        print_json({**asdict(power), **asdict(used)})
        return
    facts(
        {
            "device hours": f"{used.device_hours:,.0f}",
            "devices": f"{used.device_kwh:,.1f} kWh at {power.watts:g} W",
            "energy": f"{used.energy_kwh:,.1f} kWh with PUE {power.pue:g}",
            "carbon": f"{used.carbon_kg:,.1f} kg CO2eq at {power.grid_kg_per_kwh:g} kg/kWh, location-based",
            "cost": "no price is known: set --price" if used.cost is None else f"{used.cost:,.2f} USD",
        }
    )


@app.command("published")
def published(json: JsonOption = False) -> None:
    """What Llama's report and model cards print, beside what herd computes; exit code 5 if a figure is off its tolerance."""
    from herd.base.errors import GateError
    from herd.cli.output import print_json
    from herd.cli.plan_tables import show_comparisons
    from herd.plan.published import comparisons

    found = comparisons()
    if json:
        print_json([one.to_dict() for one in found])
    else:
        show_comparisons(found)
    off = [one.what for one in found if not one.agrees]
    if off:
        raise GateError(f"{len(off)} figures are off: " + "; ".join(off), hint="an assumption or a formula of herd.plan was changed")
