"""What a run that trains for rounding rounds to. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from herd.base.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class QatConfig:
    """The scheme of the blocks' matrices while they are trained, and of what is written; an empty `scheme` trains as ever.

    `group` inputs share a scale in int4, with a zero point unless `symmetric`. A starting model that is quantised keeps its own schemes.
    """

    scheme: Literal["", "int4", "int8", "w8a8", "fp8"] = ""
    group: int = 128
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.group < 2 or self.group % 2:
            raise ConfigError(f"quant.group is {self.group}, it must be even", hint="32, 64 and 128 are usual")
