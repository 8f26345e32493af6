"""Energy, carbon and cost by the nameplate method of the model cards: hours x watts x PUE, times the grid's carbon intensity.

Location-based: what the grid emits, whatever certificates were bought. Nothing is measured here; a run that measures its energy gives its
own kilowatt hours to `account_energy`. The constants of each published card are data, `cards.toml`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from herd.base.config_io import from_dict
from herd.base.errors import ConfigError, NotFoundError, did_you_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """What a device draws, what the building adds (PUE), and what the grid emits."""

    watts: float | int
    pue: float | int = 1.1
    grid_kg_per_kwh: float | int = 0.385

    def __post_init__(self) -> None:
        for name, least in (("watts", 0.0), ("pue", 1.0), ("grid_kg_per_kwh", 0.0)):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, it must be at least {least:g}", hint="a PUE of 1 is a building without losses"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What was used. `device_hours` x `watts` is `device_kwh`; `energy_kwh` has the building's part too."""

    device_hours: float | int
    device_kwh: float | int
    energy_kwh: float
    carbon_kg: float
    cost: float | int | None = None

    @property
    def carbon_t(self) -> float:
        """Carbon in tonnes of CO2 equivalent."""
        return self.carbon_kg / 1000


def account(device_hours: float | int, power: Power, *, price_per_hour: float | int | None = None) -> Account:
    """The account of so many hours of devices, by the nameplate. Raises ConfigError for hours below 0."""
    if not 0 <= device_hours < math.inf:
        raise ConfigError(f"device hours are {device_hours}, they must be 0 or more", hint="hours x devices")
    return account_energy(device_hours * power.watts / 1000, power, device_hours=device_hours, price_per_hour=price_per_hour)


def account_energy(
    device_kwh: float | int, power: Power, *, device_hours: float | int, price_per_hour: float | int | None = None
) -> Account:
    """The account of energy that was measured at the devices."""
    energy = device_kwh * power.pue
    return Account(
        device_hours=device_hours,
        device_kwh=device_kwh,
        energy_kwh=energy,
        carbon_kg=energy * power.grid_kg_per_kwh,
        cost=None if price_per_hour is None else device_hours * price_per_hour,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CardRow:
    """A model's line of a card."""

    model: str
    device_hours: int
    tonnes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A published card: its constants, its lines, and to how many decimals it prints tonnes."""

    name: str
    title: str
    watts: float
    pue: float
    grid_kg_per_kwh: float
    decimals: int
    rows: tuple[CardRow, ...]

    @property
    def power(self) -> Power:
        """The constants."""
        return Power(watts=self.watts, pue=self.pue, grid_kg_per_kwh=self.grid_kg_per_kwh)

    def printed(self, tonnes: float) -> float:
        """Tonnes as the card prints them. Llama 2's card cuts off after two decimals, later ones round."""
        if self.decimals > 0:
            scale = 10**self.decimals
            return math.floor(tonnes * scale) / scale
        return float(round(tonnes, self.decimals))


@cache
def cards() -> Mapping[str, Card]:
    """The published cards, by name."""
    data = tomllib.loads((files("herd.plan") / "cards.toml").read_text(encoding="utf-8"))
    found: list[Card] = [from_dict(Card, row, where=f"card {row.get('name')}") for row in data["card"]]
    return {card.name: card for card in found}


def find_card(name: str) -> Card:
    """The card of that name. Raises NotFoundError, with the nearest name."""
    found = cards()
    if name not in found:
        raise NotFoundError(f"no card is named {name!r}", hint=did_you_mean(name, found, otherwise="cards: " + ", ".join(found)))
    return found[name]
