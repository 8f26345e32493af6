"""Personal data out of a text: e-mail addresses, telephone numbers, IP addresses, bank accounts and cards become marks.

What has a check sum is checked (IBAN modulo 97, cards by Luhn), addresses are parsed, so that a date, a version or an ISBN stays.
Telephone numbers are those written as such: with a + or with an area code in brackets or after 0, in groups. Names and street addresses
are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from herd.base.errors import ConfigError, did_you_mean
from herd.data.records import Record
from herd.data.stages.stage import Drop, Note

_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[a-zA-Z0-9-]{1,63}\.)+[a-zA-Z]{2,24}(?![\w@-])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,4})?(?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![\w.-])(?<!\d[ -])(?:\d[ -]?){12,18}\d(?![\w-]|\.\d)")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])")
_CARD_GROUPS = re.compile(r"\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{5}")
_NO_PHONE = re.compile(r"0\d (?:19|20)\d\d \d\d$|\d{1,2}[ /-]\d{1,2}[ /-](?:19|20)\d\d\b|\+\d+\.\d+$|\+12345|123-456")
"""Dates, decimals with a sign, and numbers that stand for a number."""
_PHONE = re.compile(
    r"(?<![\w+./=-])(?<!\d[ /-])(?:\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ ./-]?\d{2,4}){2,5}"
    r"|\(\d{2,5}\)[ ./-]?\d{2,4}(?:[ ./-]\d{2,4}){1,4}"
    r"|0\d{1,4}[ /-]\d{2,4}(?:[ /-]?\d{2,4}){1,4}"
    r"|\d{3}-\d{3}-\d{4})(?![\w-]|[.,]\d)"
)


def luhn(digits: str) -> bool:
    """Whether a card number's last digit is the one that the others ask for."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    if _CARD_GROUPS.fullmatch(text) is None:
        return False
    return 13 <= len(digits) <= 19 and digits[0] in "3456" and len(set(digits)) > 1 and luhn(digits)


def _is_iban(text: str) -> bool:
    compact = text.replace(" ", "")
    turned = compact[4:] + compact[:4]
    return 15 <= len(compact) <= 34 and int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def _is_address(text: str) -> bool:
    """A public address: those of private networks and of documentation name nobody."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 4:
        return address.is_global and max(address.packed) > 9  # smaller ones are versions and sections nearly always
    return address.is_global and len(text.replace("::", ":").split(":")) > 3


def _is_phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 8 <= len(digits) <= 15 and _NO_PHONE.match(text) is None


_AT = re.compile("@")
_COUNTRY = re.compile(r"[0-9](?<=[A-Z]{2}[0-9])[0-9]")
_DOTTED = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]")
_COLONS = re.compile(r":[0-9a-fA-F]{0,4}:")
_LONG_NUMBER = re.compile(r"[0-9](?:[ ()/.-]{0,2}[0-9]){6}")

_KINDS: tuple[tuple[str, re.Pattern[str], re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", _AT, _EMAIL, lambda text: True),
    ("iban", _COUNTRY, _IBAN, _is_iban),
    ("card", _LONG_NUMBER, _CARD, _is_card),
    ("ip", _DOTTED, _IPV4, _is_address),
    ("ip", _COLONS, _IPV6, _is_address),
    ("phone", _LONG_NUMBER, _PHONE, _is_phone),
)
"""What each looks like, and before that a sign of it that is quick to look for: most texts hold none."""

KINDS = ("email", "phone", "ip", "iban", "card")
"""What is looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PiiRemoval:
    """Puts `[email]`, `[phone]`, `[ip]`, `[iban]`, `[card]` in the place of what it finds.

    `kinds` says which of them it looks for; texts with more than `max_found` are dropped (0: none is).
    """

    kind: ClassVar[str] = "pii"
    routes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = KINDS
    max_found: int = 0

    def __post_init__(self) -> None:
        for name in self.kinds:
            if name not in KINDS:
                raise ConfigError(f"unknown kind of personal data {name!r}", hint=did_you_mean(name, KINDS, otherwise=", ".join(KINDS)))

    def files(self) -> tuple[str, ...]:
        """None."""
        return ()

    def apply(self, record: Record, note: Note) -> Record | Drop:
        """By the record's `text`."""
        text, found = remove_pii(record["text"], self.kinds)
        total = sum(found.values())
        if self.max_found and total > self.max_found:
            return Drop("full of personal data", ", ".join(f"{count} {name}" for name, count in found.items()))
        for name, count in found.items():
            note(name, count)
        return {**record, "text": text} if total else record


def remove_pii(text: str, kinds: tuple[str, ...] = KINDS) -> tuple[str, dict[str, int]]:
    """A text with marks in the place of personal data, and how many of each kind there were."""
    found: dict[str, int] = {}
    for name, sign, pattern, check in _KINDS:
        if name not in kinds or sign.search(text) is None:
            continue

        def mark(match: re.Match[str], name: str = name, check: Callable[[str], bool] = check) -> str:
            if not check(match.group()):
                return match.group()
            found[name] = found.get(name, 0) + 1
            return f"[{name}]"

        text = pattern.sub(mark, text)
    return text, found
