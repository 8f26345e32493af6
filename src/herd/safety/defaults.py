"""The shields that stand where nobody chose any, and shields by name for command lines and configurations.

Without published weights: harm at what is said and answered, injection at what comes in, Code Shield at answers and calls, secrets at what
goes out. By name also `pii`, which redacts personal data everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from herd.base.errors import ConfigError, did_you_mean
from herd.safety.code_shield import CodeShield
from herd.safety.detectors import HarmShield, InjectionShield
from herd.safety.patterns import pii_shield, secret_shield
from herd.safety.shields import DEADLINE_S, Shields
from herd.safety.verdict import Shield, TouchPoint

_OUTWARD = frozenset({TouchPoint.OUTPUT, TouchPoint.TOOL_INPUT})
MAKERS: Mapping[str, Callable[[float | None], Shield]] = {
    "harm": lambda threshold: HarmShield(threshold=threshold),
    "injection": lambda threshold: InjectionShield(threshold=threshold, embedded_threshold=threshold),
    "code-shield": lambda threshold: CodeShield(),
    "secrets": lambda threshold: secret_shield(points=_OUTWARD),
    "pii": lambda threshold: pii_shield(),
}
DEFAULT_NAMES = ("harm", "injection", "code-shield", "secrets")
WITH_THRESHOLD = ("harm", "injection")


def make_shield(name: str, *, threshold: float | None = None) -> Shield:
    """A shield that ships, by name. Raises ConfigError for a name that there is not, or a threshold where there is no score."""
    if name not in MAKERS:
        raise ConfigError(f"there is no shield {name!r}", hint=did_you_mean(name, MAKERS, otherwise="shields: " + ", ".join(MAKERS)))
    if threshold is not None and name not in WITH_THRESHOLD:
        raise ConfigError(f"shield {name!r} has no threshold", hint="shields with one: " + ", ".join(WITH_THRESHOLD))
    return MAKERS[name](threshold)


def default_shields(*more: Shield, names: Sequence[str] = DEFAULT_NAMES, deadline_s: float = DEADLINE_S) -> Shields:
    """The shields that ship, and any others beside them. Raises ConfigError as `make_shield` and `Shields` do."""
    return Shields([*(make_shield(name) for name in names), *more], deadline_s=deadline_s)
