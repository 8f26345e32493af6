"""Code Shield: code that a model writes is searched for insecure forms, and the gravest one found decides what becomes of it.

Rules are data, `code_rules.json`: a pattern for a line, the languages it is for, a CWE and a severity (error, warning, advice), which
lead to block, warn and ignore. Comments are not code and are left alone. In an answer, fenced blocks are searched by their own language and
the rest by the rules of all languages; a line is looked at alone, so what spans lines is not seen. Patterns are bounded, and lines beyond
4,000 characters are looked at in overlapping pieces.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from herd.base.errors import ConfigError, did_you_mean
from herd.safety.verdict import Content, Finding, TouchPoint, Treatment, Verdict, worst

Language = Literal["c", "cpp", "csharp", "java", "javascript", "php", "python", "rust"]
LANGUAGES: tuple[Language, ...] = ("c", "cpp", "csharp", "java", "javascript", "php", "python", "rust")
Severity = Literal["error", "warning", "advice"]
TREATMENT: Mapping[Severity, Treatment] = {"error": "block", "warning": "warn", "advice": "ignore"}
USER_MESSAGE = "Sorry, I found security concerns in the code."
_ALIASES: Mapping[str, Language] = {
    "c++": "cpp",
    "cc": "cpp",
    "cxx": "cpp",
    "hpp": "cpp",
    "h": "c",
    "c#": "csharp",
    "cs": "csharp",
    "js": "javascript",
    "jsx": "javascript",
    "mjs": "javascript",
    "node": "javascript",
    "ts": "javascript",
    "tsx": "javascript",
    "typescript": "javascript",
    "py": "python",
    "python3": "python",
    "ipython": "python",
    "rs": "rust",
}
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*$", re.MULTILINE)
_HASH = frozenset({"python", "php"})
_SLASHES = frozenset(LANGUAGES) - {"python"}
_PIECE, _OVERLAP = 4000, 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One insecure form."""

    id: str
    languages: frozenset[str]
    cwe: str
    severity: Severity
    regex: re.Pattern[str]
    detail: str


@cache
def rules() -> tuple[Rule, ...]:
    """The rules that ship."""
    entries: list[dict[str, Any]] = json.loads(files("herd.safety").joinpath("code_rules.json").read_text(encoding="utf-8"))
    return tuple(
        Rule(
            id=entry["id"],
            languages=frozenset(entry["languages"]),
            cwe=entry["cwe"],
            severity=entry["severity"],
            regex=re.compile(entry["pattern"]),
            detail=entry["detail"],
        )
        for entry in entries
    )


def language_of(name: str) -> Language | None:
    """The language that a fence or a caller names; None for one without rules of its own."""
    lowered = name.lower().strip()
    return _ALIASES.get(lowered) or next((language for language in LANGUAGES if language == lowered), None)


def _as_language(name: str | None) -> Language | None:
    if name is None:
        return None
    found = language_of(name)
    if found is None:
        raise ConfigError(f"no rules for the language {name!r}", hint=did_you_mean(name, LANGUAGES, otherwise=", ".join(LANGUAGES)))
    return found


def scan(code: str, language: str | None = None) -> list[Finding]:
    """Every insecure form in a piece of code; without a language, by the rules of all. Raises ConfigError for one without rules."""
    return list(_scan(code, _as_language(language), 0, 1))


def scan_answer(text: str) -> list[Finding]:
    """Every insecure form in an answer: fenced blocks by their language, what stands around them by the rules of all."""
    findings: list[Finding] = []
    for start, end, language in _blocks(text):
        findings += _scan(text[start:end], language, start, text.count("\n", 0, start) + 1)
    return findings


def _blocks(text: str) -> Iterator[tuple[int, int, Language | None]]:
    """The pieces of an answer with their language; a fence that is never closed reaches to the end."""
    place, opened, language = 0, "", None
    for match in _FENCE.finditer(text):
        mark = match[1]
        if not opened:
            yield place, match.start(), None
            opened, language, place = mark, language_of(match[2]), match.end()
        elif mark[0] == opened[0] and len(mark) >= len(opened) and not match[2]:
            yield place, match.start(), language
            opened, language, place = "", None, match.end()
    yield place, len(text), language


def _scan(code: str, language: Language | None, offset: int, first_line: int) -> Iterator[Finding]:
    chosen = [rule for rule in rules() if language is None or "any" in rule.languages or language in rule.languages]
    place = 0
    comment = ""
    for number, line in enumerate(code.split("\n"), start=first_line):
        bare, comment = without_comments(line, language, comment)
        seen: set[tuple[str, int]] = set()
        for begin in range(0, max(len(bare), 1), _PIECE - _OVERLAP):
            piece = bare[begin : begin + _PIECE]
            for rule in chosen:
                for match in rule.regex.finditer(piece):
                    start = place + begin + match.start()
                    if (rule.id, start) not in seen:
                        seen.add((rule.id, start))
                        yield _finding(rule, offset + start, offset + start + max(len(match[0]), 1), number)
            if begin + _PIECE >= len(bare):
                break
        place += len(line) + 1


def _finding(rule: Rule, start: int, end: int, line: int) -> Finding:
    return Finding(rule=rule.id, start=start, end=end, label=rule.cwe, treatment=TREATMENT[rule.severity], line=line, detail=rule.detail)


def without_comments(line: str, language: Language | None, comment: str) -> tuple[str, str]:
    """A line with its comments blanked out, and the mark that closes a comment still open behind it.

    Without a language only lines that begin with a comment's mark are left out: what ends a line in one language divides in another.
    """
    if comment:
        end = line.find(comment)
        if end < 0:
            return "", comment
        line, comment = " " * (end + len(comment)) + line[end + len(comment) :], ""
    if language is None:
        stripped = line.lstrip()
        quiet = stripped.startswith(("# ", "//", "* ", "-- ")) or (stripped.startswith("/*") and stripped.rstrip().endswith("*/"))
        return ("" if quiet else line), ""
    return _blank(line, hashes=language in _HASH, slashes=language in _SLASHES, triple=language == "python")


def _blank(line: str, *, hashes: bool, slashes: bool, triple: bool) -> tuple[str, str]:
    """Walk a line, minding quotes, and blank what is a comment; triple-quoted text at a line's beginning is a docstring."""
    stripped = line.lstrip()
    if triple and stripped[:3] in ('"""', "'''"):
        closed = stripped.find(stripped[:3], 3)
        return ("", stripped[:3]) if closed < 0 else ("", "")
    kept: list[str] = []
    quote, index = "", 0
    while index < len(line):
        character, two = line[index], line[index : index + 2]
        if quote:
            if character == "\\":
                kept.append(two)
                index += 2
                continue
            quote = "" if character == quote else quote
        elif character in "\"'`":
            quote = character
        elif (hashes and character == "#") or (slashes and two == "//"):
            return "".join(kept), ""
        elif slashes and two == "/*":
            end = line.find("*/", index + 2)
            if end < 0:
                return "".join(kept), "*/"
            kept.append(" " * (end + 2 - index))
            index = end + 2
            continue
        kept.append(character)
        index += 1
    return "".join(kept), ""


class CodeShield:
    """Code Shield as a shield, at outputs and calls: a call's text is searched as it is, an answer by its fences."""

    def __init__(
        self, *, name: str = "code-shield", points: frozenset[TouchPoint] = frozenset({TouchPoint.OUTPUT, TouchPoint.TOOL_INPUT})
    ) -> None:
        self.name, self.points = name, points

    async def check(self, content: Content) -> Verdict:
        """Judge a text, on a thread."""
        return await asyncio.to_thread(self.judge, content)

    def judge(self, content: Content) -> Verdict:
        """Judge a text."""
        text = code_of_call(content.text) if content.point is TouchPoint.TOOL_INPUT else None
        findings = scan_answer(content.text) if text is None else [_placeless(found) for found in scan_answer(text)]
        treatment = worst([found.treatment for found in findings])
        unsafe = treatment != "ignore"
        told = [found for found in findings if found.treatment != "ignore"]
        return Verdict(
            shield=self.name,
            unsafe=unsafe,
            treatment=treatment,
            categories=tuple(dict.fromkeys(found.label for found in told)),
            reason="; ".join(dict.fromkeys(f"{found.rule} ({found.label}, line {found.line}): {found.detail}" for found in told)),
            user_message=USER_MESSAGE if unsafe else "",
            findings=tuple(findings),
        )


def code_of_call(text: str) -> str | None:
    """The texts among a call's arguments, where `text` is a call as JSON: what a line is must not hang on JSON's escapes."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    texts: list[str] = []
    waiting = [call]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            waiting += reversed(list(value.values()))
        elif isinstance(value, list):
            waiting += reversed(value)
    return "\n".join(texts)


def _placeless(finding: Finding) -> Finding:
    """A finding in a call's code: its place is not one of the JSON's, so it must not claim characters there."""
    return Finding(
        rule=finding.rule, start=0, end=0, label=finding.label, treatment=finding.treatment, line=finding.line, detail=finding.detail
    )
