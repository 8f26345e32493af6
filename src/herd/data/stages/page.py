"""From a page to its text, once the address has been judged. A record that has a text already passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from herd.data.records import Record
from herd.data.stages.stage import Drop, Note


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractText:
    """Puts the main text of `html` into `text`; drops pages that have none."""

    kind: ClassVar[str] = "extract"
    routes: tuple[str, ...] = ()
    min_characters: int = 1

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def apply(self, record: Record, note: Note) -> Record | Drop:
        """By the record's `html`."""
        if isinstance(record.get("text"), str):
            return record
        from herd.data.web import html_to_text

        text = html_to_text(record["html"])
        if len(text) < self.min_characters:
            return Drop("no text on the page", f"{len(text)} characters")
        return {**{name: value for name, value in record.items() if name != "html"}, "text": text}
