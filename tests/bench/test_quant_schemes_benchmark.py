"""The table of schemes: which differences are told as such, and what is set beside what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_a_difference_within_its_error_is_even() -> None:
    from benchmarks.quant_schemes import verdict

    noise = torch.randn(4000, generator=torch.Generator().manual_seed(0)).abs() * 0.01
    assert verdict(noise, noise + 0.001).startswith("better: KL")
    assert verdict(noise + 0.001, noise).startswith("worse")
    shuffled = noise[torch.randperm(4000, generator=torch.Generator().manual_seed(1))]
    assert verdict(noise, shuffled).startswith("even")


def test_the_mix_is_set_beside_one_scheme_of_no_fewer_bytes() -> None:
    from benchmarks.quant_schemes import findings

    def row(scheme: str, method: str, bits: float, **more: Any) -> dict[str, Any]:
        return {"scheme": scheme, "method": method, "block_bits": bits, "perplexity_change": 0.004, **more}

    rows = {
        "int8 rtn": row("int8", "rtn", 8.1),
        "int4 g128 rtn": row("int4 g128", "rtn", 4.13),
        "int4 g128 gptq": row("int4 g128", "gptq", 4.13),
        "int4 g32 gptq": row("int4 g32", "gptq", 4.5),
        "auto 4.25bpw gptq": row("auto 4.25bpw", "gptq", 4.25, budget_bits=4.25),
    }
    kls = {name: torch.full((10,), float(place)) for place, name in enumerate(rows)}
    found = findings(rows, kls)
    assert found["int8 rtn within 0.5 % perplexity"] == "yes: +0.400%"
    assert found["int4 g128 gptq against rounding"].startswith("worse")
    beside = [question for question in found if question.startswith("auto")]
    assert beside == ["auto 4.25bpw gptq (4.25 bits) against int4 g32 gptq (4.50 bits)"]


def test_models_that_are_there_are_named() -> None:
    from benchmarks.quant_schemes import there

    [case] = there(["qat=cria"])
    assert case.scheme == "qat" and case.make(Path(), Path()).name == "cria"
