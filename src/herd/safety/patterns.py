"""Shields of patterns: regular expressions of the application's own, personal data, and secrets of common providers.

Every pattern is linear: bounded repeats, no nested ones, so that no text can make it run away. What looks like a card, an account or an
address is checked by the number's own rule before it counts. Rules of secrets are data, `secrets.json`.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from ipaddress import ip_address
from typing import Any, Literal

from herd.base.errors import ConfigError, did_you_mean
from herd.safety.verdict import ALL_POINTS, Content, Finding, TouchPoint, Treatment, Verdict, worst

Action = Literal["block", "redact", "warn"]
ACTIONS: tuple[Action, ...] = ("block", "redact", "warn")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """A rule: where it may be (`regex`), whether what is found is it (`valid`), and what to call it."""

    name: str
    label: str
    regex: re.Pattern[str]
    valid: Callable[[str], bool] = bool
    group: int = 0


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdecimal())


def is_card(text: str) -> bool:
    """Whether digits are a card's: 13 to 19 of them with Luhn's check digit, not all the same.

    >>> is_card("4111 1111 1111 1111"), is_card("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(digit) for digit in _digits(text)]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [digit if index % 2 == 0 else digit * 2 - 9 * (digit > 4) for index, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether an account number has ISO 13616's check digits: rearranged, with letters as numbers, it is 1 modulo 97.

    >>> is_iban("DE89 3704 0044 0532 0130 00"), is_iban("DE89 3704 0044 0532 0130 01")
    (True, False)
    """
    plain = "".join(text.split()).upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def is_ip(text: str) -> bool:
    """Whether it is an address that may belong to someone: valid, not of loopback, not unspecified."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def is_phone(text: str) -> bool:
    """Whether it has as many digits as a telephone number, and is no date, no card and no national id."""
    digits = _digits(text)
    if not 8 <= len(digits) <= 15 or is_card(text):
        return False
    return not re.fullmatch(r"\d{3}-\d{2}-\d{4}|\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ]\d{4}", text.strip())


def _is_ssn(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def entropy(text: str) -> float:
    """Bits a character, by the text's own frequencies.

    >>> entropy("aaaa"), entropy("abcd")
    (0.0, 2.0)
    """
    counts = Counter(text).values()
    return abs(sum(count / len(text) * math.log2(len(text) / count) for count in counts))


PERSONAL: tuple[Pattern, ...] = (
    Pattern(
        name="email",
        label="email",
        regex=re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"),
    ),
    Pattern(name="iban", label="iban", regex=re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), valid=is_iban),
    Pattern(name="card", label="card", regex=re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"), valid=is_card),
    Pattern(name="us-ssn", label="national-id", regex=re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), valid=_is_ssn),
    Pattern(
        name="phone",
        label="phone",
        regex=re.compile(
            r"(?<![\w.,:/+-])(?:(?:\+|00)[1-9]\d{0,2}[ ./-]?(?:\(\d{1,4}\)[ ./-]?)?\d{1,5}(?:[ ./-]?\d{2,5}){1,5}"
            r"|\(\d{2,5}\)[ ./-]?\d{2,5}(?:[ ./-]\d{2,5}){0,3}|0\d{1,4}[ /-]\d{2,5}(?:[ -]?\d{2,5}){1,3}"
            r"|\d{3}[-.]\d{3}[-.]\d{4})(?![\w.-]\d|\w)"
        ),
        valid=is_phone,
    ),
    Pattern(name="ipv4", label="ip", regex=re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)"), valid=is_ip),
    Pattern(name="ipv6", label="ip", regex=re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"), valid=is_ip),
)
PERSONAL_KINDS = tuple(dict.fromkeys(pattern.label for pattern in PERSONAL))


@cache
def secret_patterns() -> tuple[Pattern, ...]:
    """The rules of `secrets.json`: a provider's form of key, and how many bits a character the key has at least."""
    rules: list[dict[str, Any]] = json.loads(files("herd.safety").joinpath("secrets.json").read_text(encoding="utf-8"))
    return tuple(_secret(rule) for rule in rules)


def _secret(rule: Mapping[str, Any]) -> Pattern:
    least = float(rule.get("entropy", 0.0))
    return Pattern(
        name=rule["id"],
        label="secret",
        regex=re.compile(rule["pattern"]),
        valid=lambda text: entropy(text) >= least,
        group=int(rule.get("group", 0)),
    )


def search(text: str, patterns: Collection[Pattern]) -> Iterator[tuple[Pattern, int, int]]:
    """Every valid match: its rule, first character and the character after its last."""
    for pattern in patterns:
        for match in pattern.regex.finditer(text):
            if pattern.valid(match[pattern.group]):
                yield pattern, match.start(pattern.group), match.end(pattern.group)


class PatternShield:
    """A shield of patterns. `redact` replaces what is found by `[label]` and lets the text go on.

    Raises ConfigError for an action that there is not.
    """

    def __init__(
        self, name: str, patterns: Collection[Pattern], *, action: Action = "block", points: frozenset[TouchPoint] = ALL_POINTS
    ) -> None:
        if action not in ACTIONS:
            raise ConfigError(f"unknown action {action!r} of shield {name!r}", hint="actions: " + ", ".join(ACTIONS))
        self.name, self.points, self.action = name, points, action
        self.patterns = tuple(patterns)

    async def check(self, content: Content) -> Verdict:
        """Judge a text; long ones on a thread."""
        return await asyncio.to_thread(self.judge, content.text)

    def judge(self, text: str) -> Verdict:
        """Judge a text."""
        treatment: Treatment = "block" if self.action == "block" else "warn" if self.action == "warn" else "ignore"
        findings = [
            Finding(
                rule=pattern.name,
                start=start,
                end=end,
                label=pattern.label,
                treatment=treatment,
                line=text.count("\n", 0, start) + 1,
                replacement=f"[{pattern.label}]" if self.action == "redact" else None,
            )
            for pattern, start, end in search(text, self.patterns)
        ]
        findings.sort(key=lambda found: (found.start, -found.end))
        labels = tuple(dict.fromkeys(found.label for found in findings))
        unsafe = bool(findings) and self.action != "redact"
        said = f"found: {', '.join(dict.fromkeys(found.rule for found in findings))}" if findings else ""
        return Verdict(
            shield=self.name,
            unsafe=unsafe,
            treatment=worst([found.treatment for found in findings]) if unsafe else "ignore",
            categories=labels,
            reason=said,
            user_message=f"The text holds {', '.join(labels)}, which may not be passed on." if unsafe else "",
            findings=tuple(findings),
        )


def pii_shield(
    *,
    action: Action = "redact",
    kinds: Collection[str] = PERSONAL_KINDS,
    name: str = "pii",
    points: frozenset[TouchPoint] = ALL_POINTS,
) -> PatternShield:
    """Personal data: e-mail addresses, telephone numbers, accounts, cards, national ids, addresses on the net.

    Raises ConfigError for a kind that there is not.
    """
    for kind in kinds:
        if kind not in PERSONAL_KINDS:
            otherwise = "kinds: " + ", ".join(PERSONAL_KINDS)
            raise ConfigError(f"unknown kind {kind!r} of personal data", hint=did_you_mean(kind, PERSONAL_KINDS, otherwise=otherwise))
    return PatternShield(name, [pattern for pattern in PERSONAL if pattern.label in kinds], action=action, points=points)


def secret_shield(*, action: Action = "block", name: str = "secrets", points: frozenset[TouchPoint] = ALL_POINTS) -> PatternShield:
    """Keys, tokens and passwords in the forms of common providers."""
    return PatternShield(name, secret_patterns(), action=action, points=points)


def regex_shield(
    rules: Mapping[str, str], *, action: Action = "block", name: str = "regex", points: frozenset[TouchPoint] = ALL_POINTS
) -> PatternShield:
    """An application's own rules, by name. Raises ConfigError for a pattern that is none.

    The patterns are Python's, and whoever writes one answers for its running time: the deadline of `Shields` stands behind them.
    """
    patterns: list[Pattern] = []
    for rule, text in rules.items():
        try:
            patterns.append(Pattern(name=rule, label=rule, regex=re.compile(text)))
        except re.error as error:
            raise ConfigError(f"the pattern of rule {rule!r} is none: {error}", hint="write it in Python's syntax") from error
    return PatternShield(name, patterns, action=action, points=points)
