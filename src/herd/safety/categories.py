"""The hazard categories of Llama Guard 3: S1 to S14, custom ones beside them, and leaving some out.

S1 to S13 follow the MLCommons taxonomy; S14 is Meta's own. A category is a code, a name and perhaps a policy text, which the guard is
shown below the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from herd.base.errors import ConfigError, did_you_mean

_CODE = re.compile(r"S[1-9][0-9]{0,2}")
MAX_CATEGORIES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """A hazard: its code (S and a number), name, and a policy text that may be empty."""

    code: str
    name: str
    policy: str = ""

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise ConfigError(f"a category has the code {self.code!r}", hint="codes are S and a number from 1 to 999, as S15")
        if not self.name.strip() or "\n" in self.name:
            raise ConfigError(f"category {self.code} is named {self.name!r}", hint="a name is one line that is not empty")


_NAMES = (
    "Violent Crimes",
    "Non-Violent Crimes",
    "Sex Crimes",
    "Child Exploitation",
    "Defamation",
    "Specialized Advice",
    "Privacy",
    "Intellectual Property",
    "Indiscriminate Weapons",
    "Hate",
    "Self-Harm",
    "Sexual Content",
    "Elections",
    "Code Interpreter Abuse",
)
DEFAULT_CATEGORIES: tuple[Category, ...] = tuple(Category(code=f"S{index}", name=name) for index, name in enumerate(_NAMES, start=1))
NAMES: dict[str, str] = {category.code: category.name for category in DEFAULT_CATEGORIES}


def choose_categories(
    categories: Sequence[Category] = DEFAULT_CATEGORIES, *, extra: Iterable[Category] = (), exclude: Iterable[str] = ()
) -> tuple[Category, ...]:
    """The categories that a guard is asked about.

    Args:
        categories: the list to begin with.
        extra: custom ones, after it.
        exclude: codes to leave out.

    Raises:
        ConfigError: a code twice, a code to exclude that is not there, none left, or over 64.
    """
    both = [*categories, *extra]
    codes = [category.code for category in both]
    twice = next((code for index, code in enumerate(codes) if code in codes[:index]), None)
    if twice is not None:
        raise ConfigError(f"two categories have the code {twice}", hint="give a custom category a number of its own, as S15")
    left_out = set(exclude)
    for code in sorted(left_out):
        if code not in codes:
            raise ConfigError(
                f"there is no category {code!r} to exclude", hint=did_you_mean(code, codes, otherwise="codes: " + ", ".join(codes))
            )
    kept = tuple(category for category in both if category.code not in left_out)
    if not 1 <= len(kept) <= MAX_CATEGORIES:
        raise ConfigError(f"{len(kept)} categories are left, there must be 1 to {MAX_CATEGORIES}", hint="exclude fewer, or add fewer")
    return kept
