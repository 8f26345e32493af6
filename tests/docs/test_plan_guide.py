"""The tables of the planning guide are those that the planner computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_tables_of_the_planning_guide_are_fresh() -> None:
    done = subprocess.run([sys.executable, str(DOCS / "plan_tables.py"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_documented_assumptions_are_the_real_ones() -> None:
    from herd.plan.assumptions import Assumptions

    documented: dict[str, str] = {}
    for line in (DOCS / "guides" / "planning.md").read_text(encoding="utf-8").partition("| assumption |")[2].splitlines():
        if line.startswith("| `"):
            names, values = (cell.split(",") for cell in line.strip("|").split("|")[:2])
            documented |= {name.strip(" `"): value.strip() for name, value in zip(names, values, strict=True)}
        elif not line:
            break
    assert {name: float(value.replace("true", "1")) for name, value in documented.items()} == Assumptions().to_dict()


def test_a_stale_table_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import plan_tables  # pyright: ignore[reportMissingImports]

    text = "<!-- plan:run -->\n\n| stale |\n\n<!-- end -->\n"
    assert "stale" not in plan_tables.render(text) and "| days |" in plan_tables.render(text)
    page = tmp_path / "planning.md"
    page.write_text(text)
    monkeypatch.setattr(plan_tables, "PAGE", page)
    assert plan_tables.main(["--check"]) == 1 and page.read_text() == text
    assert plan_tables.main([]) == 0 and plan_tables.main(["--check"]) == 0 and plan_tables.main(["--what"]) == 2
