"""Preference losses: TRL's own numbers, values worked out by hand, the papers' formulas, and what the settings refuse."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objective_rows import columns_of, small_judged  # pyright: ignore[reportMissingImports]
from small_run import small_model, small_stage  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError
from herd.train.callback import measure
from herd.train.objectives.branches import KL_ONLY
from herd.train.objectives.config import PreferenceConfig
from herd.train.objectives.kto import Kto
from herd.train.objectives.preference import Preference, log_odds, pair_losses
from herd.train.objectives.reference import reference_logprobs
from herd.train.step import train_step

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "trl_losses.json").read_text(encoding="utf-8"))["losses"]
PLAIN = PreferenceConfig(nll_weight=0.0)


def six_pairs() -> dict[str, Any]:
    return columns_of(small_judged(6, seed=21), reference=small_model(11))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sigmoid", PLAIN),
        ("sigmoid_norm", PreferenceConfig(nll_weight=0.0, length_normalised=True, beta=2.0)),
        ("hinge", PreferenceConfig(nll_weight=0.0, loss="hinge")),
        ("ipo", PreferenceConfig(nll_weight=0.0, loss="ipo", length_normalised=True)),
        ("robust", PreferenceConfig(nll_weight=0.0, loss="robust", label_smoothing=0.2)),
        ("simpo 0.0", PreferenceConfig(nll_weight=0.0, loss="simpo", beta=2.0, gamma=1.0)),
        ("simpo 0.1", PreferenceConfig(nll_weight=0.0, loss="simpo", beta=2.0, gamma=1.0, label_smoothing=0.1)),
        ("orpo", PreferenceConfig(nll_weight=0.0, loss="orpo")),
    ],
)
def test_losses_are_those_of_trl(name: str, config: PreferenceConfig) -> None:
    assert measure(small_model(3), Preference(config=config), six_pairs())["loss"] == pytest.approx(GOLDEN[name], rel=2e-5)


def test_the_likelihood_by_token_is_trls_and_is_added_with_its_weight() -> None:
    columns, model = six_pairs(), small_model(3)
    by_token = PreferenceConfig(nll_per="token", nll_end=False, nll_weight=0.2)
    found = measure(model, Preference(config=by_token), columns)
    assert found["loss"] == pytest.approx(GOLDEN["sigmoid"] + 0.2 * GOLDEN["sft"], rel=2e-5)
    assert found["nll_better"] == pytest.approx(GOLDEN["sft"], rel=2e-5)


def test_the_loss_begins_at_log_two_where_policy_and_reference_are_one_model() -> None:
    columns = columns_of(small_judged(6, seed=21), reference=small_model(3))
    found = measure(small_model(3), Preference(config=PLAIN), columns)
    assert found["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert found["margin"] == pytest.approx(0, abs=1e-6)


# Better answer's log-ratio 2, worse one's -1: h = 3. Worked out with a calculator.
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PreferenceConfig(beta=0.1), 0.5543552),  # -log s(0.3)
        (PreferenceConfig(beta=0.1, label_smoothing=0.1), 0.5843552),  # 0.9 * 0.5543552 + 0.1 * 0.8543552
        (PreferenceConfig(beta=0.1, loss="robust", label_smoothing=0.1), 0.5168552),  # (0.9 * 0.5543552 - 0.1 * 0.8543552) / 0.8
        (PreferenceConfig(beta=0.1, loss="hinge"), 0.7),
        (PreferenceConfig(beta=0.1, loss="ipo"), 4.0),  # (3 - 5)^2
        (PreferenceConfig(beta=0.5, loss="simpo", gamma=0.5), 0.3132617),  # -log s(1)
    ],
)
def test_pair_losses_by_hand(config: PreferenceConfig, expected: float) -> None:
    assert float(pair_losses(config, torch.tensor([2.0]), torch.tensor([-1.0]))) == pytest.approx(expected, abs=1e-6)


def test_the_odds_ratio_by_hand() -> None:
    # p = 0.5 and p = 0.2: odds 1 and 0.25, ratio 4, -log s(log 4) = log 1.25.
    better, worse = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.2)])
    assert float(log_odds(better)) == pytest.approx(0, abs=1e-6) and float(log_odds(worse)) == pytest.approx(math.log(0.25), rel=1e-5)
    loss = pair_losses(PreferenceConfig(loss="orpo", beta=1.0), better, worse)
    assert float(loss) == pytest.approx(math.log(1.25), rel=1e-5)
    assert bool(torch.isfinite(log_odds(torch.tensor([0.0, -1e-12, -80.0]))).all())


def test_header_and_end_tokens_have_no_part_in_the_preference() -> None:
    # Another end token changes nothing but the likelihood; a token of content does.
    judged = small_judged(6, seed=21)
    other = [
        dataclasses.replace(item, answers=tuple(dataclasses.replace(answer, ids=[*answer.ids[:-1], 5]) for answer in item.answers))
        for item in judged
    ]
    model, reference = small_model(3), small_model(11)
    for config, same in ((PLAIN, True), (dataclasses.replace(PLAIN, end_tokens=True), False)):
        before, after = (
            measure(model, Preference(config=config), columns_of(some, reference=reference))["loss"] for some in (judged, other)
        )
        assert (before == pytest.approx(after, rel=1e-6)) is same


def test_the_gradient_of_a_masked_token_is_zero() -> None:
    columns, model = six_pairs(), small_model(3, tied=False)
    ends = columns["tokens"][columns["answer"] & ~columns["counts"]]
    only_ends = set(ends.tolist()) - set(columns["tokens"][~(columns["answer"] & ~columns["counts"])].tolist())
    objective = Preference(config=PLAIN)
    objective.sums(model, columns, torch.float32, {}).terms["pairs"].backward()
    assert only_ends and model.model.embed_tokens.weight.grad is not None
    assert float(model.model.embed_tokens.weight.grad[list(only_ends)].abs().max()) == 0.0


def test_training_on_pairs_raises_accuracy_and_margin_and_keeps_the_likelihood() -> None:
    columns = six_pairs()
    for config in (PreferenceConfig(), PreferenceConfig(loss="simpo", beta=2.0, gamma=0.5, nll_weight=0.0), PreferenceConfig(loss="orpo")):
        model, objective = small_model(11), Preference(config=config)
        before = measure(model, objective, columns)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        stage = small_stage(batch_size=len(columns["tokens"]), micro_batch_size=1)
        for _ in range(25):
            train_step(model, optimizer, columns, stage, lr=1e-3, objective=objective)
        after = measure(model, objective, columns)
        assert after["loss"] < before["loss"] and after["accuracy"] == 1.0 and after["margin"] > before["margin"]
        if config.nll_weight:
            assert after["nll_better"] < before["nll_better"]


def test_kto_by_the_formula_of_its_paper() -> None:
    policy, reference = small_model(3), small_model(11)
    judged = small_judged(5, seed=2, grades=(1, KL_ONLY))
    judged = [
        dataclasses.replace(item, answers=(dataclasses.replace(item.answers[0], grade=number % 2), item.answers[1]))
        for number, item in enumerate(judged)
    ]
    columns = columns_of(judged, reference=reference)

    def ratio(prompt: list[int], answer: Any) -> float:
        ids = torch.tensor([[*prompt, *answer.ids]])
        mask = torch.tensor(([False] * len(prompt) + list(answer.counts))[1:])
        with torch.no_grad():
            both = [model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0][mask].sum() for model in (policy, reference)]
        return float(both[0] - both[1])

    z = max(0.0, float(np.mean([ratio(list(item.prompt), item.answers[1]) for item in judged])))
    beta, good_weight, bad_weight = 0.3, 1.2, 0.7
    losses = []
    for item in judged:
        r = ratio(list(item.prompt), item.answers[0])
        good = item.answers[0].grade == 1
        value = 1 / (1 + math.exp(-beta * ((r - z) if good else (z - r))))
        losses.append((good_weight if good else bad_weight) * (1 - value))
    config = PreferenceConfig(loss="kto", beta=beta, desirable_weight=good_weight, undesirable_weight=bad_weight)
    found = measure(policy, Kto(config=config), columns, micro_batch_size=2)
    assert found["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-4)
    assert found["z"] == pytest.approx(z, rel=1e-4, abs=1e-6)


def test_the_reference_point_is_zero_at_least_and_has_no_gradient() -> None:
    columns = columns_of(small_judged(4, seed=2, grades=(1, KL_ONLY)), reference=small_model(11))
    model, objective = small_model(3), Kto(config=PreferenceConfig(loss="kto"))
    assert objective.prepare(model, [{**columns, "reference": columns["reference"] + 100}], torch.float32) == {"z": 0.0}
    assert objective.prepare(model, [{**columns, "reference": columns["reference"] - 100}], torch.float32)["z"] > 0


def test_a_reference_in_another_micro_batch_size_is_the_same() -> None:
    columns, model = columns_of(small_judged(9, seed=4)), small_model(11)
    np.testing.assert_allclose(
        reference_logprobs(model, columns, micro_batch_size=1), reference_logprobs(model, columns, micro_batch_size=3), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta": math.nan}, "beta is nan"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "ipo has no label_smoothing"),
        ({"gamma": 0.5}, "sigmoid has no gamma"),
        ({"nll_weight": -1.0}, "nll_weight is -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ConfigError) as refused:
        PreferenceConfig(**changes)
    assert fragment in refused.value.message and refused.value.hint
