"""The feature table of the page's guide: what it says of us is what tests check, each by its name, and nothing is said without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guides" / "page.md"
B1 = (
    *(
        "streaming markdown, code copy",
        "stop",
        "regenerate, edit",
        "branches",
        "system prompt, sampling",
        "tool calls, arguments, approval",
    ),
    *(
        "attachments",
        "statistics, context gauge",
        "reasoning",
        "dark mode, phone layout",
        "log for screen readers",
        "works with no network",
    ),
)
"""The rows of the comparison that the page was planned by: none may be missing."""


def rows() -> list[list[str]]:
    """Cells of the table's rows."""
    table = GUIDE.read_text(encoding="utf-8").partition("| Feature |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def names_in(path: Path) -> set[str]:
    """The names of a file's tests, skipped ones left out."""
    found = ast.parse(path.read_text(encoding="utf-8")).body
    functions = [node for node in found if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name for node in functions if not any("mark.skip" in ast.unparse(mark).split("(")[0] for mark in node.decorator_list)}


def test_every_yes_of_ours_names_a_test_of_the_page_that_exists() -> None:
    known: set[str] = set().union(*(names_in(path) for path in (ROOT / "tests" / "page").glob("test_*.py")))
    table = rows()
    assert len(table) > 20 and all(len(cells) == 6 for cells in table)
    for feature, *_, ours, named in table:
        tests = re.findall(r"`(test_\w+)`", named)
        if ours == "-":
            assert not tests and named, f"{feature}: a no needs its reason, and has no test"
        else:
            assert tests, f"{feature}: {ours!r} names no test"
        assert set(tests) <= known, f"{feature}: there is no test {set(tests) - known}"


def test_every_row_of_the_plan_is_in_the_table() -> None:
    features = [cells[0] for cells in rows()]
    assert len(set(features)) == len(features)
    assert not [row for row in B1 if not any(row in feature for feature in features)]


def test_what_is_told_of_others_is_yes_no_or_not_established() -> None:
    for _, *others, _, _ in rows():
        for cell in others:
            assert re.fullmatch(r"(y|-|\?|[a-z][\w ,]*)( ?[,/] ?(y|-|\?|[\w ]+))*", cell), cell
