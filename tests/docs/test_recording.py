"""The film in the README is of this herd: its commands exist, its first scene is what `herd` prints, it is laid out as by a terminal."""

from __future__ import annotations

import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

from herd.cli.welcome import welcome

DOCS = Path(__file__).resolve().parents[2] / "docs"
IMAGES = DOCS / "guides" / "images"


@pytest.fixture(name="recording")
def recording_fixture(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script."""
    pytest.importorskip("pty", reason="needs a pseudo-terminal")
    monkeypatch.syspath_prepend(str(DOCS))
    import recording  # pyright: ignore[reportMissingImports]

    return recording


def scenes_of(cast: str) -> list[str]:
    """What each scene of the film shows."""
    events = [json.loads(line) for line in cast.splitlines()[1:]]
    text = "".join(str(data) for _, _, data in events).replace("\r\n", "\n")
    return list(text.split("\x1b[2J\x1b[H")[1:])


def test_the_film_shows_the_commands_of_the_script_and_what_herd_prints(recording: ModuleType) -> None:
    cast = (IMAGES / "terminal.cast").read_text(encoding="utf-8")
    assert json.loads(cast.splitlines()[0]) == {"version": 2, "width": recording.COLUMNS, "height": recording.ROWS, "title": "herd"}
    times = [json.loads(line)[0] for line in cast.splitlines()[1:]]
    assert times == sorted(times)
    scenes = scenes_of(cast)
    assert [scene.splitlines()[0].removeprefix("$ ") for scene in scenes] == list(recording.COMMANDS)
    assert scenes[0] == f"$ herd\n{welcome()}\n", "run docs/recording.py: herd prints something else by now"
    assert all(len(scene.splitlines()) > 1 for scene in scenes)


def test_the_picture_is_the_film(recording: ModuleType) -> None:
    cast = (IMAGES / "terminal.cast").read_text(encoding="utf-8")
    root = ElementTree.fromstring((IMAGES / "terminal.svg").read_text(encoding="utf-8"))
    drawn = "".join(node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text"))
    assert re.sub(r"\s", "", drawn) == re.sub(r"\s", "", "".join(scenes_of(cast)))
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))


def test_the_commands_of_the_film_exist(recording: ModuleType) -> None:
    from test_docs import problem  # pyright: ignore[reportMissingImports]

    assert not {line: why for line in recording.COMMANDS if len(shlex.split(line)) > 1 and (why := problem(line)) is not None}


def test_a_screen_wraps_and_knows_no_escapes(recording: ModuleType) -> None:
    wide = "x" * (recording.COLUMNS + 3)
    said = [recording.Said(at=0.0, text="\x1b[1mbold\x1b[0m\r\n"), recording.Said(at=1.0, text=wide + "\n  end")]
    pieces = [(piece.row, piece.column, piece.text) for piece in recording.laid_out(said)]
    assert pieces == [(0, 0, "bold"), (1, 0, "x" * recording.COLUMNS), (2, 0, "xxx"), (3, 0, "  end")]
    with pytest.raises(SystemExit, match="needs more than"):
        recording.laid_out([recording.Said(at=0.0, text="line\n" * (recording.ROWS + 1))])


def test_waits_are_shortened_and_typing_is_steady(recording: ModuleType) -> None:
    printed = [recording.Said(at=9.0, text="late"), recording.Said(at=9.1, text="r")]
    said, end = recording.scene("herd", printed, 5.0)
    times = [one.at for one in said]
    assert "".join(one.text for one in said) == "$ herd\r\nlater" and times == sorted(times) and times[0] == 5.0
    assert said[-2].at - said[-3].at == pytest.approx(recording.WAIT_S) and said[-1].at - said[-2].at == pytest.approx(0.1)
    assert end == pytest.approx(times[-1] + recording.LOOK_S)
