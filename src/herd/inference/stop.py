"""Stop texts in a stream: text goes out at once, except an end that could be the beginning of a stop text.

The stop text that is complete first ends the answer, the longest of those that end together: however the text is cut, the result is one.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Feed with `push`; `stopped` is true once a stop text, `found`, has come. What follows it is dropped."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._include = include
        self._held: str = ""
        self.stopped = False
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take text; returns what is safe to show."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        text = self._held + text
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, stop = min(found, key=lambda item: (item[0] + len(item[1]), item[0]))
            self.stopped, self.found, self._held = True, stop, ""
            return text[: place + len(stop)] if self._include else text[:place]
        keep = self._open_end(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _open_end(self, text: str) -> int:
        """Length of the longest end that some stop text begins with."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

    def finish(self) -> str:
        """What was held back, now that no more comes."""
        text, self._held = self._held, ""
        return text
