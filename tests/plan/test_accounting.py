"""Energy and carbon: the published cards' figures, and the arithmetic of an account."""

from __future__ import annotations

import pytest

from herd.base.errors import ConfigError, NotFoundError
from herd.plan.accounting import Power, account, account_energy, cards, find_card


def tonnes(card: str) -> dict[str, float]:
    chosen = find_card(card)
    return {row.model: account(row.device_hours, chosen.power).carbon_t for row in chosen.rows}


def test_llama_2_rows_are_exact() -> None:
    card = find_card("llama-2")
    assert {model: card.printed(value) for model, value in tonnes("llama-2").items()} == {"7B": 31.22, "13B": 62.44, "70B": 291.42}


def test_llama_3_and_3_2_rows_are_exact_as_they_round() -> None:
    for name, expected in (("llama-3", {"8B": 390.0, "70B": 1900.0}), ("llama-3.2", {"1B": 107.0, "3B": 133.0})):
        card = find_card(name)
        assert {model: card.printed(value) for model, value in tonnes(name).items()} == expected


def test_llama_3_1_rows_are_within_the_rounding_of_their_hours() -> None:
    found = tonnes("llama-3.1")
    for model, published, tolerance in (("8B", 420, 0.01), ("70B", 2040, 0.01), ("405B", 8930, 0.0005)):
        assert found[model] == pytest.approx(published, rel=tolerance)
    assert sum(found.values()) == pytest.approx(11_390, rel=0.0015)


def test_published_tonnes_are_in_the_data_as_published() -> None:
    assert {name: [row.tonnes for row in card.rows] for name, card in cards().items()} == {
        "llama-2": [31.22, 62.44, 291.42],
        "llama-3": [390.0, 1900.0],
        "llama-3.1": [420.0, 2040.0, 8930.0],
        "llama-3.2": [107.0, 133.0],
    }


def test_an_account_is_hours_times_watts_times_pue_times_grid() -> None:
    used = account(1000.0, Power(watts=700.0, pue=1.2, grid_kg_per_kwh=0.5), price_per_hour=2.0)
    assert (used.device_kwh, used.energy_kwh, used.carbon_kg, used.cost) == pytest.approx((700.0, 840.0, 420.0, 2000.0))
    assert used.carbon_t == pytest.approx(0.42)
    assert account(1000.0, Power(watts=700.0)).cost is None


def test_measured_energy_takes_the_place_of_the_nameplate() -> None:
    used = account_energy(500.0, Power(watts=700.0, pue=1.2, grid_kg_per_kwh=0.5), device_hours=1000.0)
    assert (used.device_hours, used.device_kwh, used.energy_kwh, used.carbon_kg) == pytest.approx((1000.0, 500.0, 600.0, 300.0))


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"pue is 0\.9, it must be at least 1"):
        Power(watts=1.0, pue=0.9)
    with pytest.raises(ConfigError, match="device hours are -1"):
        account(-1.0, Power(watts=1.0))
    with pytest.raises(NotFoundError, match="'llama-31'") as caught:
        find_card("llama-31")
    assert "llama-3.1" in str(caught.value.hint)
