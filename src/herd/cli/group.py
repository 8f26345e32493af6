"""A command group whose help lists its commands under headings, each with its whole first sentence."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_NO_LIMIT = 400


class Sections(TyperGroup):
    """Commands are listed under their `rich_help_panel`, in the order in which they were added."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sections; names share one column."""
        sections: dict[str, list[tuple[str, str]]] = {}
        names = self.list_commands(ctx)
        width = max(map(len, names))
        for name in names:
            command = self.get_command(ctx, name)
            if command is None or command.hidden:
                continue
            heading = getattr(command, "rich_help_panel", None)
            rows = sections.setdefault(heading if isinstance(heading, str) else "Commands", [])
            rows.append((name.ljust(width), command.get_short_help_str(_NO_LIMIT)))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
