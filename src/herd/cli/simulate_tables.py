"""How a traced rank is shown: one table, traced beside planned. Knows reports and how to spell their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from herd.cli.output import facts, table
from herd.cli.plan_tables import figure, gb

if TYPE_CHECKING:
    from herd.train.parallel.beside import RankReport, Row


def show_rank(report: RankReport) -> None:
    """A rank's facts and its table."""
    traced = report.simulation
    needed = traced.peak + report.reserve_bytes
    facts(
        {
            "rank": f"{traced.rank}: " + ", ".join(f"{name} {place}" for name, place in traced.place.items()),
            "chunks": "; ".join(traced.chunks),
            "micro-batches": str(traced.num_micro_batches),
            "memory": f"{'fits' if report.fits else 'does not fit'}: {gb(traced.peak)} traced and {gb(report.reserve_bytes)} reserve are "
            f"{gb(needed)} of {gb(report.memory_bytes)} ({report.device})",
        }
    )
    table([(row.what, _value(row, row.traced), _value(row, row.planned)) for row in report.rows], ("", "traced", "planned"))


def _value(row: Row, value: float | int | None) -> str:
    if value is None:
        return "-"
    if row.unit == "B":
        return gb(value)
    return figure(value) + (f" {row.unit}" if row.unit else "")
