"""Labels for a quality classifier from a model's judgement: a prompt, and what its answer means. The model is given as a function.

As the paper has it (section 3.1.1): a chat model is told what good text is and judges documents; a classifier is trained on its judgements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from herd.data.records import Record

Ask = Callable[[str], str]
"""A prompt's answer."""

_SCORE = re.compile(r"[0-5]")
_EXCERPT = 3000
PROMPT = """\
Judge how much the text between the lines would teach a reader. Add one point for each of these that is true:
1. It holds information about the world, not only advertisement, navigation or chatter.
2. It is written in whole sentences that follow from one another.
3. It explains something so that a pupil would understand it.
4. It stays with its subject and leaves little out.
5. It could stand in a textbook or a good encyclopaedia.
Answer with the number of points alone, from 0 to 5.

-----
{text}
-----
Points:"""


def judge(text: str, ask: Ask) -> int | None:
    """The points that a model gives a text, by its first 3,000 characters; None if its answer holds no number from 0 to 5."""
    found = _SCORE.search(ask(PROMPT.format(text=text[:_EXCERPT])))
    return int(found.group()) if found else None


def labelled(records: Iterable[Record], ask: Ask, *, good_from: int = 3) -> Iterator[Record]:
    """Records with `points` and `label` (good, poor); those without a judgement are left out."""
    for record in records:
        points = judge(str(record.get("text", "")), ask)
        if points is not None:
            yield {**record, "points": points, "label": "good" if points >= good_from else "poor"}
