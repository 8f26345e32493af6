"""Several shields at a touch point: together, under one deadline, failing closed; and their verdicts in the shapes of others."""

from __future__ import annotations

import asyncio
import json

import pytest
from openai.types import ModerationCreateResponse
from told_shields import Told  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError, GateError
from herd.safety.moderation import OPENAI_CATEGORIES, moderation_object, run_shield_response
from herd.safety.patterns import pii_shield, regex_shield, secret_shield
from herd.safety.shields import Shields, require
from herd.safety.verdict import Content, Finding, Shield, TouchPoint, redact, worst
from herd.text.messages import ToolCall


def test_shields_stand_at_their_points_and_see_the_text() -> None:
    first, second = Told(name="first", points=frozenset({TouchPoint.INPUT})), Told(name="second", points=frozenset({TouchPoint.OUTPUT}))
    shields = Shields([first, second])
    report = asyncio.run(shields.input("a bad word"))
    assert [verdict.shield for verdict in report.verdicts] == ["first"]
    assert (report.blocked, report.categories) == (True, ("S1",))
    assert not asyncio.run(shields.output("good")).unsafe and len(second.seen) == 1
    assert asyncio.run(shields.tool_output("bad")).verdicts == ()


def test_they_run_at_once() -> None:
    async def run() -> None:
        gate = asyncio.Barrier(3)

        class Meets(Told):
            async def check(self, content: Content):  # type: ignore[no-untyped-def]
                await gate.wait()
                return await super().check(content)

        report = await Shields([Meets(name=str(index)) for index in range(3)], deadline_s=30.0).input("good")
        assert not report.unsafe and len(report.verdicts) == 3

    asyncio.run(run())


def test_a_shield_that_raises_or_hangs_is_a_violation_unless_it_may_fail() -> None:
    broken, slow = Told(name="broken", error=ValueError("no")), Told(name="slow", hangs=True)
    report = asyncio.run(Shields([broken, slow], deadline_s=0.05).input("good"))
    assert report.blocked and all(verdict.failed and verdict.unsafe for verdict in report.verdicts)
    assert "ValueError: no" in report.verdicts[0].reason and "no verdict within 0.05 s" in report.verdicts[1].reason
    lenient = asyncio.run(Shields([broken, slow], deadline_s=0.05, fail_open=["broken", "slow"]).input("good"))
    assert not lenient.unsafe and all(verdict.failed for verdict in lenient.verdicts)


def test_a_real_objection_comes_before_a_failure() -> None:
    report = asyncio.run(Shields([Told(name="broken", error=ValueError("no")), Told()]).input("bad"))
    assert report.violation is not None and report.violation.shield == "told"


def test_cancelling_is_no_verdict() -> None:
    async def run() -> None:
        task = asyncio.create_task(Shields([Told(hangs=True)]).input("x"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_a_treatment_can_be_chosen_by_name() -> None:
    report = asyncio.run(Shields([Told()], treatments={"told": "warn"}).input("bad"))
    assert report.unsafe and not report.blocked and require(report) == "bad"


def test_calls_and_results_are_judged_at_their_points() -> None:
    shield = Told(word="rm -rf")
    report = asyncio.run(Shields([shield]).tool_input(ToolCall(name="shell", arguments={"line": "rm -rf /"})))
    assert report.blocked and json.loads(shield.seen[0].text) == {"name": "shell", "parameters": {"line": "rm -rf /"}}


def test_redactions_of_several_shields_are_applied_once() -> None:
    shields = Shields([pii_shield(), secret_shield(action="redact"), regex_shield({"project": r"Apollo\d"}, action="redact")])
    report = asyncio.run(shields.input("Mail anna@example.org about Apollo7 and ghp_" + "a1B2" * 9))
    assert report.text == "Mail [email] about [project] and [secret]"
    assert not report.unsafe and require(report) == report.text


def test_what_is_blocked_is_refused_with_the_shields_reason() -> None:
    with pytest.raises(GateError, match="stopped by told: S1"):
        require(asyncio.run(Shields([Told()]).input("bad")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shields([Told(), Told()]), "two shields are named 'told'"),
        (lambda: Shields([Told()], fail_open=["tald"]), "no shield 'tald'"),
        (lambda: Shields([Told()], treatments={"x": "warn"}), "no shield 'x'"),
        (lambda: Shields([Told()], deadline_s=0.0), "must be above 0"),
        (lambda: Shields([Told()], deadline_s=float("nan")), "must be above 0"),
    ],
)
def test_a_set_that_cannot_be_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        make()


def test_everything_that_ships_is_a_shield() -> None:
    assert all(isinstance(shield, Shield) for shield in (pii_shield(), secret_shield(), Told()))


def test_overlapping_redactions_leave_no_piece() -> None:
    findings = [
        Finding(rule="a", start=2, end=6, label="a", replacement="[a]"),
        Finding(rule="b", start=4, end=9, label="b", replacement="[b]"),
    ]
    assert redact("0123456789", findings) == "01[a]9"
    assert worst([]) == "ignore" and worst(["warn", "block", "ignore"]) == "block"


def test_moderations_are_openais_with_our_categories_beside_them() -> None:
    reports = [asyncio.run(Shields([Told()]).input(text)) for text in ("bad", "good")]
    data = moderation_object(reports, id="modr-1", model="guard")
    parsed = ModerationCreateResponse.model_validate(data)
    flagged, fine = parsed.results
    assert flagged.flagged and flagged.categories.violence and flagged.category_scores.violence == 0.9
    assert not fine.flagged and not any(data["results"][1]["categories"].values())
    assert data["results"][0]["categories"]["Violent Crimes"] and set(OPENAI_CATEGORIES) < set(data["results"][0]["categories"])
    assert data["results"][0]["categories"].keys() == data["results"][0]["category_scores"].keys()
    assert all(kinds == ["text"] for kinds in data["results"][0]["category_applied_input_types"].values())
    json.dumps(data)


def test_run_shield_gives_a_violation_with_its_level_or_none() -> None:
    assert run_shield_response(asyncio.run(Shields([Told()]).input("good"))) == {"violation": None}
    violation = run_shield_response(asyncio.run(Shields([Told()]).input("bad")))["violation"]
    assert (violation["violation_level"], violation["metadata"]["violation_type"]) == ("error", "S1")
    warned = run_shield_response(asyncio.run(Shields([Told()], treatments={"told": "warn"}).input("bad")))
    assert warned["violation"]["violation_level"] == "warn"
