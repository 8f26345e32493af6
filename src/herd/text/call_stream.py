"""Calls as they are written: the name once it is known, then the arguments as JSON text, piece by piece.

For text that a grammar holds to calls: what begins as a call is one, so nothing is ever taken back. JSON calls, <function=...> tags and
code for the interpreter come in pieces; a Python list and `tool.call(...)` are no JSON, so they come whole, by `reply.CallDone`. The pieces
of a call, joined, are its arguments as `json.dumps` writes them, however the text was cut. Linear in the text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import regex

from herd.text.messages import BUILTIN_TOOLS, CODE_INTERPRETER
from herd.text.tool_calls import FUNCTION_CLOSE, FUNCTION_OPEN

_JSON_HEAD = r'\{\s*+(?:"type"\s*+:\s*+"function"\s*+,\s*+)?"name"\s*+:\s*+"([\w.-]++)"\s*+,\s*+"(?:parameters|arguments)"\s*+:\s*+\{'
_TAG_HEAD = rf'{FUNCTION_OPEN}\s*+"?([\w.-]++)"?\s*+>\s*+\{{'
_FIRST = {"json": regex.compile(r"\s*+" + _JSON_HEAD), "tag": regex.compile(r"\s*+" + _TAG_HEAD)}
_LATER = {
    "json": regex.compile(r"\s*+\}[\s;,]*+" + _JSON_HEAD),
    "tag": regex.compile(rf"\s*+(?:{FUNCTION_CLOSE})?+[\s;,]*+" + _TAG_HEAD),
}
_MAX_HEAD = 1000
_CODE_KNOWN = 80
"""The parser of calls looks for `.call(` in so many characters; code without it there is code."""
_PLAIN = regex.compile(r'[^"\\]++')
_MAX_SCALAR = 400
_SCALAR = regex.compile(rf"[^\s,:\[\]{{}}\"]{{1,{_MAX_SCALAR}}}+")


@dataclass(frozen=True, kw_only=True, slots=True)
class CallBegan:
    """A call of a tool; its arguments follow."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallText:
    """The next piece of the JSON text of the arguments."""

    text: str


def _inside(text: str) -> str:
    """Text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class _JsonText:
    """One JSON object, rewritten with the separators and escapes of `json.dumps`. Begins after its opening brace."""

    def __init__(self) -> None:
        self._depth = 1
        self._in_string = False
        self._held = ""

    @property
    def done(self) -> bool:
        """Whether the object is closed."""
        return self._depth == 0

    def push(self, text: str) -> tuple[str, str]:
        """What the text adds, and what of it follows the object."""
        text, self._held = self._held + text, ""
        out: list[str] = []
        place = 0
        while place < len(text) and self._depth:
            step = self._string if self._in_string else self._outside
            moved = step(text, place, out)
            if moved == place:
                self._held = text[place:]
                return "".join(out), ""
            place = moved
        return "".join(out), text[place:]

    def _outside(self, text: str, place: int, out: list[str]) -> int:
        """The next symbol or scalar; a scalar is held until what ends it has come."""
        character = text[place]
        scalar = _SCALAR.match(text, place)
        if scalar is not None:
            if scalar.end() == len(text) and len(scalar[0]) < _MAX_SCALAR:
                return place
            out.append(_rewritten(scalar[0]))
            return scalar.end()
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        out.append({",": ", ", ":": ": "}.get(character, "" if character.isspace() else character))
        return place + 1

    def _string(self, text: str, place: int, out: list[str]) -> int:
        plain = _PLAIN.match(text, place)
        if plain is not None:
            out.append(_inside(plain[0]))
            return plain.end()
        if text[place] == '"':
            self._in_string = False
            out.append('"')
            return place + 1
        end = _escape_end(text, place)
        if end > place:
            out.append(_unescaped(text[place:end]))
        return end


def _escape_end(text: str, place: int) -> int:
    """Where the escape at a place ends, a surrogate pair being one; the place itself while that is not known."""
    size = 6 if text[place + 1 : place + 2] == "u" else 2
    if len(text) < place + size:
        return place
    if size == 6 and text[place + 2] in "dD" and text[place + 3] in "89abAB":
        low = text[place + 6 : place + 12]
        if len(low) < 6 and low[:2] in ("", "\\", "\\u"):
            return place
        if low[:2] == "\\u" and low[2] in "dD" and low[3] in "cdefCDEF":
            return place + 12
    return place + size


def _unescaped(text: str) -> str:
    try:
        return _inside(json.loads(f'"{text}"'))
    except ValueError:
        return _inside(text)


def _rewritten(scalar: str) -> str:
    try:
        return json.dumps(json.loads(scalar), allow_nan=False)
    except ValueError:
        return scalar


class CallStream:
    """Feed with the raw text of calls (`reply.CallDelta`), then `finish`. `num_begun` calls were told."""

    def __init__(self) -> None:
        self._state: Literal["open", "head", "arguments", "code", "whole"] = "open"
        self._form: Literal["json", "tag"] = "json"
        self._held = ""
        self._json = _JsonText()
        self.num_begun = 0

    def push(self, text: str) -> list[CallBegan | CallText]:
        """Take raw text; returns what is known of calls."""
        out: list[CallBegan | CallText] = []
        while text:
            if self._state == "open":
                text = self._open(text)
            elif self._state == "head":
                text = self._head(text, out)
            elif self._state == "arguments":
                added, text = self._json.push(text)
                _add(out, added)
                if self._json.done:
                    self._state = "head"
            elif self._state == "code":
                text = self._code(text, out)
            else:
                return out
        return out

    def finish(self) -> list[CallBegan | CallText]:
        """The end of the answer. Arguments that were cut stay so."""
        closing = self._state == "code" and self.num_begun
        self._state = "whole"
        return [CallText(text='"}')] if closing else []

    def _open(self, text: str) -> str:
        """Choose by the first characters."""
        text, self._held = self._held + text, ""
        stripped = text.lstrip()
        if len(text) - len(stripped) > _MAX_HEAD:
            self._state = "whole"
            return text
        if not stripped or (FUNCTION_OPEN.startswith(stripped) and stripped != FUNCTION_OPEN):
            self._held = text
            return ""
        self._form = "tag" if stripped.startswith(FUNCTION_OPEN) else "json"
        self._state = "head" if self._form == "tag" or stripped[0] == "{" else "whole" if stripped[0] == "[" else "code"
        return text

    def _head(self, text: str, out: list[CallBegan | CallText]) -> str:
        text, self._held = self._held + text, ""
        found = (_LATER if self.num_begun else _FIRST)[self._form].match(text, partial=True)
        if found is not None and found.partial and len(text) < _MAX_HEAD:
            self._held = text
            return ""
        if found is None or found.partial or found[1] in BUILTIN_TOOLS[:-1]:
            self._state = "whole"  # a built-in tool's arguments are read as a whole, and what follows calls is the parser's
            return ""
        self._begin(found[1], "{", out)
        self._state, self._json = "arguments", _JsonText()
        return text[found.end() :]

    def _code(self, text: str, out: list[CallBegan | CallText]) -> str:
        if not self.num_begun:
            text, self._held = self._held + text, ""
            stripped = text.lstrip()
            if ".call(" in stripped[:_CODE_KNOWN]:
                self._state = "whole"
                return ""
            if len(stripped) < _CODE_KNOWN:
                self._held = text
                return ""
            self._begin(CODE_INTERPRETER, '{"code": "', out)
        _add(out, _inside(text))
        return ""

    def _begin(self, name: str, opening: str, out: list[CallBegan | CallText]) -> None:
        self.num_begun += 1
        out.append(CallBegan(name=name))
        _add(out, opening)


def _add(out: list[CallBegan | CallText], text: str) -> None:
    """Pieces of one call that come together are one."""
    last = out[-1] if out else None
    if isinstance(last, CallText):
        out[-1] = CallText(text=last.text + text)
    elif text:
        out.append(CallText(text=text))
