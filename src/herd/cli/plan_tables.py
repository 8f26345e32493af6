"""How plans are shown: tables and facts of `herd plan` on stdout. Knows plans and how to spell their numbers; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from herd.cli.output import facts, line, table

if TYPE_CHECKING:
    from herd.plan.accounting import Account
    from herd.plan.published import Comparison
    from herd.plan.search import Found
    from herd.plan.serve import ServePlan
    from herd.plan.train import TrainPlan

_DAY_S = 86_400


def gb(size_bytes: float | int) -> str:
    """Bytes in decimal units, which is how devices are sold."""
    return f"{size_bytes / 1e9:,.2f} GB" if size_bytes >= 1e8 or not size_bytes else f"{size_bytes / 1e6:,.2f} MB"


def amount(value: float | int) -> str:
    """A number that may be large or small."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def seconds(value: float | int) -> str:
    """A duration for people."""
    for unit, size in (("days", _DAY_S), ("h", 3600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1000:,.2f} ms"


def figure(value: float | int) -> str:
    """A number with the digits that matter."""
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 10_000 else f"{value:,.2f}"


def show_train(plan: TrainPlan) -> None:
    """A training plan."""
    device, mesh, batch = plan.device, plan.mesh, plan.batch
    verdict = f"fits: {gb(plan.fullest.total)} of {device.memory_gb:,.4g} GB on the fullest"
    if not plan.fits:
        verdict = f"does not fit: {gb(plan.fullest.total)} on the fullest, {device.memory_gb:,.4g} GB are there"
    facts(
        {
            "model": f"{plan.model}, {plan.config.num_parameters:,} parameters",
            "hardware": f"{mesh.size:,} x {device.title}",
            "mesh": str(mesh),
            "batch": f"{batch.tokens:,} tokens in sequences of {batch.sequence:,}",
            "micro-batches": f"{plan.num_micro_batches} of {batch.micro_batch} a replica and step",
            "precision": f"{batch.precision}, recomputation: {batch.recompute}",
            "memory": verdict,
            "speed": f"{plan.tflops:,.4g} TFLOPs a device, {plan.mfu:.1%} of its peak; {plan.tokens_per_s:,.0f} tokens/s",
            "step": seconds(plan.step.total),
        }
    )
    line()
    show_memory(plan)
    line()
    show_step(plan)
    if plan.mesh.size > 1:
        line()
        show_traffic(plan)
    if plan.run is not None:
        line()
        show_run(plan)


def show_memory(plan: TrainPlan) -> None:
    """Bytes by item of the fullest rank and of the pipeline's ends."""
    ranks = {plan.fullest.rank: plan.fullest, 0: plan.memory[0], plan.memory[-1].rank: plan.memory[-1]}
    shown = [ranks[index] for index in sorted(ranks)]
    header = [
        "memory of a device",
        *(f"stage {rank.rank}" + (" (fullest)" if rank is plan.fullest and len(ranks) > 1 else "") for rank in shown),
    ]
    rows = [["layers", *(str(rank.num_layers) for rank in shown)], ["chunks in flight", *(str(rank.in_flight) for rank in shown)]]
    rows += [[item, *(gb(rank.items()[item]) for rank in shown)] for item in shown[0].items()]
    table([*rows, ["total", *(gb(rank.total) for rank in shown)]], header)


def show_step(plan: TrainPlan) -> None:
    """Seconds of a step by part, the longest first."""
    from herd.plan.step_time import BOUNDS

    parts = sorted(plan.step.parts().items(), key=lambda part: -part[1])
    rows = [[BOUNDS[name], seconds(value), f"{value / plan.step.total:.1%}"] for name, value in parts if value > 0]
    rows[0][0] += " (the bound)"
    table(rows, ["a step goes to", "time", "share"])


def show_traffic(plan: TrainPlan) -> None:
    """What a device of the fullest rank sends in a step."""
    rows = [[row.dimension, f"{row.ranks:,}", f"{row.calls:,}", gb(row.sent_bytes)] for row in plan.traffic(plan.fullest.rank)]
    table(rows, ("a device sends in a step", "ranks", "calls", "bytes"))


def show_run(plan: TrainPlan) -> None:
    """Days, failures, energy, cost and carbon."""
    run = plan.run
    assert run is not None
    effective, used, power = run.effective, run.account, plan.power
    lost = f"{effective.restarting:.1%} restarts, {effective.lost:.1%} lost work, {effective.saving:.1%} saves"
    facts(
        {
            "tokens": f"{run.tokens:,.0f} in {run.num_steps:,} steps",
            "compute": seconds(run.compute_s),
            "interruptions": f"{run.num_interruptions:,.1f}, an unexpected one every {effective.interruption_hours:,.1f} h",
            "restarts": f"{seconds(effective.restart_s)} each",
            "saves": f"every {seconds(effective.interval_s)}, {seconds(effective.save_s)} each",
            "effective time": f"{effective.share:.1%} ({lost})",
            "wall time": seconds(run.wall_s),
            "device hours": amount(used.device_hours),
            "energy": f"{amount(used.energy_kwh)} kWh: {power.watts:g} W a device, PUE {power.pue:g}",
            "carbon": f"{_carbon(used)} CO2eq at {power.grid_kg_per_kwh:g} kg/kWh, location-based",
            "cost": _cost(used, plan),
        }
    )


def _carbon(used: Account) -> str:
    return f"{amount(used.carbon_t)} t" if used.carbon_kg >= 1000 else f"{amount(used.carbon_kg)} kg"


def _cost(used: Account, plan: TrainPlan) -> str:
    if used.cost is None:
        return "no price is known: set --price"
    rate = used.cost / used.device_hours if used.device_hours else 0.0
    dated = f", an assumption of {plan.device.price_date}" if rate == plan.device.price_per_hour else ""
    return f"{amount(used.cost)} USD at {rate:g} a device and hour{dated}"


def show_found(found: Sequence[Found]) -> None:
    """Meshes, the best first, and why each next one is worse."""
    rows: list[list[str]] = []
    for place, one in enumerate(found, 1):
        plan = one.plan
        batch = f"{plan.batch.micro_batch}, {plan.batch.recompute}"
        rows.append([str(place), str(plan.mesh), batch, f"{plan.tflops:.1f}", f"{plan.fullest.total / 1e9:.1f}", one.why])
    table(rows, ("", "mesh", "micro-batch, recomputation", "TFLOPs", "GB", "why"))


def show_serve(plan: ServePlan, *, prompt: int, sequences: int) -> None:
    """A served model on hardware of the catalogue."""
    rank, most = plan.fullest, plan.max_sequences
    told = {
        "model": f"{plan.model}, {plan.config.num_parameters:,} parameters",
        "hardware": f"{plan.num_devices} x {plan.device.title}: TP {plan.tp}, PP {plan.pp}",
        "weights": f"{gb(plan.whole.weights)} in {plan.weights}" + (f", {gb(plan.whole.scales)} of scales" if plan.whole.scales else ""),
        "cache": f"{plan.cache_bytes_per_token:,} bytes a token in {plan.cache}",
        "a sequence": f"{gb(plan.context * plan.cache_bytes_per_token)} for {plan.context:,} tokens",
        "with one sequence": gb(plan.model_bytes_with_one),
        "on the fullest device": f"{gb(rank.total)} of {plan.device.memory_gb:,.4g} GB: {gb(rank.weights + rank.scales)} weights, "
        f"{gb(rank.cache_per_sequence)} cache, {gb(rank.activations + rank.scores)} arenas, {gb(rank.reserve)} reserve",
    }
    if not plan.fits:
        facts(told)
        return
    told["sequences at once"] = f"{most:,} of {plan.context:,} tokens"
    for count in sorted({1, min(most, sequences)}):
        speed = plan.decode(count)
        rate = f"{speed.tokens_per_s:,.1f} tokens/s at best, {seconds(speed.step_s)} a token"
        told[f"writing, {count:,} at once"] = f"{rate}; bound by {speed.bound}"
    told["time to first token"] = f"{seconds(plan.first_token_s(prompt))} at best for a prompt of {prompt:,}"
    facts(told)


def show_comparisons(found: Sequence[Comparison]) -> None:
    """Published figures beside ours."""
    rows = [
        [one.what, figure(one.published), figure(one.ours), one.unit, f"{one.difference:+.2%}", "yes" if one.agrees else "NO"]
        for one in found
    ]
    table(rows, ("published", "figure", "herd", "", "difference", "within"))
