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
_PHONE = re.compile(
    r"(?<![\w+.-])(?<!\d[ /-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ ./-]?\d{2,4}){2,5}"
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
    return 13 <= len(digits) <= 19 and digits[0] in "3456" and len(set(digits)) > 1 and luhn(digits)


def _is_iban(text: str) -> bool:
    compact = text.replace(" ", "")
    turned = compact[4:] + compact[:4]
    return 15 <= len(compact) <= 34 and int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def _is_address(text: str) -> bool:
    """A public address: those of private networks and of documentation name nobody."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 8 <= len(digits) <= 15 and not re.fullmatch(r"\d{4}-\d{2}-\d{2}|0?\d[ /-]\d{2}[ /-]\d{4}", text)


_KINDS: tuple[tuple[str, str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", "@", _EMAIL, lambda text: True),
    ("iban", "", _IBAN, _is_iban),
    ("card", "", _CARD, _is_card),
    ("ip", ".", _IPV4, _is_address),
    ("ip", ":", _IPV6, _is_address),
    ("phone", "", _PHONE, _is_phone),
)
KINDS = ("email", "phone", "ip", "iban", "card")
"""What is looked for."""

_DIGITS = re.compile(r"\d")


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
    has_digits = _DIGITS.search(text) is not None
    for name, sign, pattern, check in _KINDS:
        if name not in kinds or sign not in text or not (has_digits or name == "email"):
            continue

        def mark(match: re.Match[str], name: str = name, check: Callable[[str], bool] = check) -> str:
            if not check(match.group()):
                return match.group()
            found[name] = found.get(name, 0) + 1
            return f"[{name}]"

        text = pattern.sub(mark, text)
    return text, found
