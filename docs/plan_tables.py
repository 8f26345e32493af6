"""Write the computed tables of docs/guides/planning.md, between its markers; `--check` fails when one is stale.

Run: `python docs/plan_tables.py [--check]`. `make docs` runs it, a test checks it. Every figure of herd's in those tables is computed here.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

from herd.plan.mesh import RECOMPUTE, Batch, Mesh
from herd.plan.published import TABLE_4, comparisons, table_plan
from herd.plan.search import best_meshes
from herd.plan.train import train_plan

PAGE = Path(__file__).parent / "guides" / "planning.md"
_SECTION = re.compile(r"<!-- plan:(\w+) -->\n.*?<!-- end -->", re.DOTALL)
_S = 8192


def _rows(header: str, rows: list[list[str]]) -> str:
    columns = header.count("|") - 1
    return "\n".join([header, "|---" * columns + "|", *("| " + " | ".join(row) + " |" for row in rows)])


def _training() -> str:
    rows: list[list[str]] = []
    for row in TABLE_4:
        plan, mesh = table_plan(row), row.mesh
        difference = plan.tflops / row.tflops - 1
        rows.append(
            [
                *(
                    f"{row.devices:,}",
                    str(mesh.tp),
                    str(mesh.cp),
                    str(mesh.pp),
                    str(mesh.dp),
                    f"{row.sequence:,}",
                    f"{plan.batch.tokens:,}",
                ),
                *(
                    f"{row.tflops:g}",
                    f"{plan.tflops:.0f} ({difference:+.1%})",
                    f"{plan.step.total:.2f} s",
                    f"{plan.fullest.total / 1e9:.1f} GB",
                ),
            ]
        )
    header = "| GPUs | TP | CP | PP | DP | sequence | tokens a batch | TFLOPs a GPU, published | planned | a step | memory of a GPU |"
    return _rows(header, rows)


def _parts() -> str:
    plans = [table_plan(row) for row in TABLE_4]
    names = sorted(plans[0].step.parts(), key=lambda name: -max(plan.step.parts()[name] / plan.step.total for plan in plans))
    rows = [[name, *(f"{plan.step.parts()[name] / plan.step.total:.1%}" for plan in plans)] for name in names]
    return _rows("| share of a step | " + " | ".join(f"{row.devices:,} at {row.sequence:,}" for row in TABLE_4) + " |", rows)


def _memory() -> str:
    rows: list[list[str]] = []
    for policy in RECOMPUTE[:2]:
        for row in TABLE_4[1:]:
            plan = table_plan(row)
            batch = Batch(sequence=row.sequence, recompute=policy)
            rank = train_plan("405b", plan.device, mesh=row.mesh, batch=batch).fullest
            items = rank.items()
            told = [f"{items[name] / 1e9:.1f}" for name in ("parameters", "gradients", "optimizer", "activations")]
            rest = sum(items[name] for name in ("logits", "buffers", "reserve")) / 1e9
            fits = "yes" if rank.total <= plan.device.memory_bytes else "no"
            rows.append([policy, f"{row.sequence:,}", *told, f"{rest:.1f}", f"{rank.total / 1e9:.1f}", fits])
    return _rows("| recomputed | sequence | parameters | gradients | optimiser | activations | rest | GB in all | fits 80 GB |", rows)


def _figures(group: str) -> str:
    rows = [
        [one.what, _number(one.published), _number(one.ours), one.unit, f"{one.difference:+.2%}"]
        for one in comparisons()
        if one.group == group
    ]
    return _rows("| | published | herd | | difference |", rows)


def _number(value: float) -> str:
    if value >= 1e15:
        return f"{value:.2e}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def _others() -> str:
    """Runs of other systems on H100s that their makers published, in tokens a second and GPU."""
    titan = "torchtitan, 500 W boards"
    nvidia = "Megatron"
    whole = Batch(tokens=16 * _S, micro_batch=2, recompute="selective")
    wide = Batch(tokens=512 * _S, micro_batch=16, recompute="full")
    runs: list[tuple[str, str, float, Mesh | int, Batch]] = [
        (nvidia, "8b", 13_812, 8, Batch(tokens=128 * _S, precision="fp8")),
        (nvidia, "70b", 1621, 64, Batch(tokens=128 * _S, precision="fp8")),
        (nvidia, "405b", 315, 1024, Batch(tokens=512 * _S, precision="fp8")),
        (titan, "8b", 6667, Mesh(dp=8, zero=3), whole),
        (titan, "8b", 8532, Mesh(dp=8, zero=3), replace(whole, precision="fp8")),
        (titan, "70b", 597, Mesh(tp=8, dp=32, zero=3), wide),
        (titan, "70b", 829, Mesh(tp=8, dp=32, zero=3), replace(wide, precision="fp8")),
        (titan, "405b", 128, Mesh(tp=8, pp=8, dp=8, virtual_stages=2, zero=1), Batch(tokens=256 * _S, recompute="full", precision="fp8")),
    ]
    rows: list[list[str]] = []
    for source, model, published, mesh, batch in runs:
        if isinstance(mesh, int):
            plan = best_meshes(model, "h100-80gb", mesh, batch=batch)[0].plan
        else:
            plan = train_plan(model, "h100-80gb", mesh=mesh, batch=batch)
        rate = plan.tokens_per_s / plan.mesh.size
        rows.append(
            [
                source,
                model.upper(),
                f"{plan.mesh.size:,}",
                batch.precision,
                f"{published:,}",
                f"{rate:,.0f}",
                f"{rate / published - 1:+.0%}",
            ]
        )
    return _rows("| system | model | GPUs | precision | tokens/s a GPU, published | planned | difference |", rows)


SECTIONS = {
    "training": _training,
    "parts": _parts,
    "memory": _memory,
    "run": lambda: _figures("run"),
    "serving": lambda: _figures("serving"),
    "carbon": lambda: _figures("carbon"),
    "others": _others,
}


def render(page: str) -> str:
    """The page with its tables computed anew. Raises KeyError for a marker that names none."""
    return _SECTION.sub(lambda found: f"<!-- plan:{found[1]} -->\n\n{SECTIONS[found[1]]()}\n\n<!-- end -->", page)


def main(arguments: list[str]) -> int:
    """Write the page, or with --check compare it; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print("error: unknown arguments\n\nhint: python docs/plan_tables.py [--check]", file=sys.stderr)
        return 2
    page = PAGE.read_text(encoding="utf-8")
    fresh = render(page)
    if arguments:
        if fresh != page:
            print(f"error: the tables of {PAGE} are stale\n\nhint: run python docs/plan_tables.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
