"""What Llama's papers and cards print, beside what this package computes: the planner's own examination, which tests hold.

Published figures: Llama 3 report (arXiv 2407.21783), table 4 and sections 3.3 and 3.4; model cards of Llama 2, 3, 3.1 and 3.2. Rows of
table 4 are planned with the report's schedule (interleaved, one slot a chunk, so 8 chunks a rank), ZeRO-2, and one set of assumptions for
all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from herd.model.config import ModelConfig
from herd.model.presets import preset
from herd.plan.accounting import account, cards
from herd.plan.failures import effective_time, save_s
from herd.plan.flops import flops_per_token
from herd.plan.hardware import find_device
from herd.plan.mesh import Batch, Mesh
from herd.plan.serve import cache_bytes_per_token, serve_plan
from herd.plan.train import TrainPlan, train_plan
from herd.plan.weights import model_bytes

HOURS_405B = 30_840_000
"""GPU hours of the 405B, by its card."""
TOKENS_SHORT, TOKENS_LONG = 14.8e12, 0.8e12
"""Tokens of the 405B at 8,192 and in the stage that led to 131,072; together the report's 15.6T."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """A row of the report's table 4."""

    devices: int
    mesh: Mesh
    sequence: int
    batch_per_replica: int
    tflops: float


def _mesh(cp: int, dp: int) -> Mesh:
    return Mesh(tp=8, cp=cp, pp=16, dp=dp, virtual_stages=8, zero=2)


TABLE_4 = (
    TableRow(devices=8192, mesh=_mesh(1, 64), sequence=8192, batch_per_replica=32, tflops=430.0),
    TableRow(devices=16384, mesh=_mesh(1, 128), sequence=8192, batch_per_replica=16, tflops=400.0),
    TableRow(devices=16384, mesh=_mesh(16, 8), sequence=131072, batch_per_replica=16, tflops=380.0),
)
"""The 128K row's DP is 8: copies of the report that print 4 contradict its 16,384 GPUs and 16M tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A published figure and ours. `tolerance` is a share of the published one; 0 means that both have to be equal as printed."""

    group: str
    what: str
    unit: str
    published: float | int
    ours: float | int
    tolerance: float | int

    @property
    def difference(self) -> float:
        """Ours over the published one, less 1."""
        return self.ours / self.published - 1

    @property
    def agrees(self) -> bool:
        """Whether it is within the tolerance."""
        return abs(self.difference) <= self.tolerance + 1e-12

    def to_dict(self) -> dict[str, Any]:
        """As JSON sends it."""
        return {**asdict(self), "difference": self.difference, "agrees": self.agrees}


def table_plan(row: TableRow) -> TrainPlan:
    """A row of table 4, planned. Norms and SwiGLU's product are computed again, the mildest that fits: no matrix product is repeated."""
    batch = Batch(sequence=row.sequence, tokens=row.mesh.dp * row.batch_per_replica * row.sequence, recompute="elementwise")
    return train_plan("405b", "meta-24k-roce", mesh=row.mesh, batch=batch)


def _training() -> list[Comparison]:
    found: list[Comparison] = []
    for row in TABLE_4:
        plan, label = table_plan(row), f"{row.devices:,} GPUs at {row.sequence:,}"
        found += [
            Comparison(
                group="training", what=f"{label}: GPUs of the mesh", unit="", published=row.devices, ours=row.mesh.size, tolerance=0
            ),
            Comparison(group="training", what=f"{label}: tokens a batch", unit="", published=2**24, ours=plan.batch.tokens, tolerance=0),
            Comparison(
                group="training", what=f"{label}: TFLOPs a GPU", unit="TFLOPs", published=row.tflops, ours=plan.tflops, tolerance=0.1
            ),
            Comparison(
                group="training",
                what=f"{label}: model FLOPs utilisation",
                unit="%",
                published=_MFU[row.tflops],
                ours=100 * plan.mfu,
                tolerance=0.1,
            ),
        ]
    return found


_MFU = {430.0: 43.0, 400.0: 41.0, 380.0: 38.0}


def compute_days(config: ModelConfig) -> float:
    """Days that 15.6T tokens take at table 4's TFLOPs on 16,384 GPUs, without interruptions."""
    seconds = 0.0
    for row, tokens in zip(TABLE_4[1:], (TOKENS_SHORT, TOKENS_LONG), strict=True):
        seconds += tokens * flops_per_token(config, row.sequence) / (row.devices * row.tflops * 1e12)
    return seconds / 86_400


def _whole_run() -> list[Comparison]:
    config, device = preset("llama-3.1-405b"), find_device("meta-24k-roce")
    days = compute_days(config)
    effective = effective_time(16_384, save_s(config, device, 16_384, "bf16"))
    card_days = HOURS_405B / 16_384 / 24

    def row(what: str, unit: str, published: float | int, ours: float | int, tolerance: float | int) -> Comparison:
        return Comparison(group="run", what=what, unit=unit, published=published, ours=ours, tolerance=tolerance)

    return [
        row("15.6T tokens of the 405B", "FLOPs", 3.8e25, 6 * config.num_parameters * 15.6e12, 0.005),
        row("compute of 15.6T tokens at the published TFLOPs", "days", 72.3, days, 0.002),
        row("the card's GPU hours on 16,384 GPUs", "days", 78.4, card_days, 0.001),
        row("hours between unexpected interruptions at 16,384 GPUs", "h", 3.1, effective.interruption_hours, 0.005),
        row("effective training time (over 90 %; 72.3 / 78.4 days)", "%", 100 * 72.3 / 78.4, 100 * effective.share, 0.01),
        row("wall time with failures, restarts and saves", "days", 78.4, days / effective.share, 0.01),
    ]


def _sizes() -> list[Comparison]:
    big = preset("llama-3.1-405b")
    eight = serve_plan(big, "h100-80gb", tp=8, weights="fp8", name="llama-3.1-405b")

    def row(what: str, published: float | int, ours: float | int, tolerance: float = 0.0, unit: str = "GB") -> Comparison:
        return Comparison(group="serving", what=what, unit=unit, published=published, ours=ours, tolerance=tolerance)

    names = {"8B": "llama-3.1-8b", "70B": "llama-3.1-70b", "405B": "llama-3.1-405b"}
    weights = {"8B": 16.06, "70B": 141.11, "405B": 811.71}
    caches = {"8B": 131_072, "70B": 327_680, "405B": 516_096}
    return [
        *(row(f"{name} in BF16", weights[name], round(model_bytes(preset(names[name]), "bf16").total / 1e9, 2)) for name in names),
        row("405B in FP8 as released, without scales", 487.2, round(eight.whole.weights / 1e9, 1)),
        row("one shard of eight of it, without scales", 60_903_292_928, eight.ranks[0].weights, unit="bytes"),
        row("405B in FP8 with one sequence of 131,072 tokens", 554.9, round(eight.model_bytes_with_one / 1e9, 1)),
        *(
            row(f"{name}: cache of a token", caches[name], cache_bytes_per_token(preset(names[name]), "bf16"), unit="bytes")
            for name in names
        ),
    ]


_CARD_TOLERANCE = {("llama-3.1", "8B"): 0.01, ("llama-3.1", "70B"): 0.01, ("llama-3.1", "405B"): 0.0005}


def _carbon() -> list[Comparison]:
    found: list[Comparison] = []
    for card in cards().values():
        for line in card.rows:
            tonnes, tolerance = account(line.device_hours, card.power).carbon_t, _CARD_TOLERANCE.get((card.name, line.model), 0.0)
            ours = tonnes if tolerance else card.printed(tonnes)
            what = f"{card.name}: {line.model}, {line.device_hours:,} h"
            found.append(Comparison(group="carbon", what=what, unit="t", published=line.tonnes, ours=ours, tolerance=tolerance))
    last = cards()["llama-3.1"]
    total = sum(account(line.device_hours, last.power).carbon_t for line in last.rows)
    found.append(Comparison(group="carbon", what="llama-3.1: all three", unit="t", published=11_390, ours=total, tolerance=0.0015))
    return found


def comparisons() -> list[Comparison]:
    """Every published figure beside ours."""
    return [*_training(), *_whole_run(), *_sizes(), *_carbon()]
