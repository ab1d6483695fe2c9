"""The rule of a guard, worked by hand."""

from typing import Any

import pytest

from castor.config.guard import Guard
from serve.gateway.verdict import Rule, Verdict
from serve.judgement import JUDGES, Judgement, JudgeName, Moderation

HARM, THEFT = "violence,aiding", "theft"  # keys of the data sets hold commas


def view(*flagged: str, harm: float = 0.4, theft: float = 0.1, severity: int | None = None) -> Moderation:
    return Moderation({HARM: harm, THEFT: theft}, flagged, severity)


def verdict(cost: float | None = None, moderation: Moderation | None = None, **guard: Any) -> Verdict:
    return Rule(Guard(**guard), JUDGES).verdict(Judgement(cost, None, moderation))


@pytest.mark.parametrize(
    ("cost", "moderation", "guard", "unsafe", "flagged"),
    [
        # the cost alone: zero is the boundary, and is safe
        (-1e-9, None, {}, False, ()),
        (0.0, None, {}, False, ()),
        (1e-9, None, {}, True, ()),
        (1.0, None, {"cost_limit": 1.0}, False, ()),
        (1.1, None, {"cost_limit": 1.0}, True, ()),
        (-0.9, None, {"cost_limit": -1.0}, True, ()),
        (1.0, None, {"combine": "all"}, True, ()),
        (-1.0, None, {"combine": "all"}, False, ()),
        # the moderation model alone
        (None, view(), {}, False, ()),
        (None, view(HARM), {}, True, (HARM,)),
        (None, view(HARM, THEFT), {"combine": "all"}, True, (HARM, THEFT)),
        (None, view(), {"combine": "all"}, False, ()),
        # both
        (-1.0, view(HARM), {}, True, (HARM,)),
        (1.0, view(), {}, True, ()),
        (-1.0, view(), {}, False, ()),
        (-1.0, view(HARM), {"combine": "all"}, False, (HARM,)),
        (1.0, view(), {"combine": "all"}, False, ()),
        (1.0, view(HARM), {"combine": "all"}, True, (HARM,)),
        # a threshold takes the place of the calibrated decision for its category, in both directions
        (None, view(HARM, harm=0.4), {"categories": {HARM: 0.5}}, False, ()),
        (None, view(harm=0.4), {"categories": {HARM: 0.3}}, True, (HARM,)),
        (None, view(harm=0.4), {"categories": {HARM: 0.4}}, False, ()),
        (None, view(HARM, harm=1.0), {"categories": {HARM: 1.0}}, False, ()),
        (None, view(HARM, THEFT, harm=1.0), {"categories": {HARM: 1.0}}, True, (THEFT,)),
        (None, view(harm=0.4, theft=0.2), {"categories": {HARM: 0.0, THEFT: 0.0}}, True, (HARM, THEFT)),
        (None, view(THEFT, harm=0.4), {"categories": {HARM: 0.1}}, True, (THEFT, HARM)),
        # mild harm is none where the guard says so, however it was found; a model without levels knows no mild one
        (None, view(HARM, severity=1), {}, True, (HARM,)),
        (None, view(HARM, severity=1), {"severity": 2}, False, ()),
        (None, view(HARM, severity=2), {"severity": 2}, True, (HARM,)),
        (None, view(HARM, severity=2), {"severity": 3}, False, ()),
        (None, view(HARM, severity=3), {"severity": 3}, True, (HARM,)),
        (None, view(harm=0.4, severity=1), {"severity": 2, "categories": {HARM: 0.1}}, False, ()),
        (None, view(HARM), {"severity": 3}, True, (HARM,)),
        (1.0, view(HARM, severity=1), {"severity": 2}, True, ()),
        (1.0, view(HARM, severity=1), {"severity": 2, "combine": "all"}, False, ()),
        # nobody has said that it is safe
        (None, None, {}, True, ()),
        (None, None, {"combine": "all"}, True, ()),
    ],
)
def test_what_is_unsafe(
    cost: float | None, moderation: Moderation | None, guard: dict, unsafe: bool, flagged: tuple[str, ...]
) -> None:
    found = verdict(cost, moderation, **guard)
    assert (found.unsafe, found.flagged) == (unsafe, flagged)


def test_a_reward_is_no_verdict() -> None:
    assert Rule(Guard(), ("reward",)).verdict(Judgement(reward=5.0)).unsafe


ALL: tuple[JudgeName, ...] = ("cost", "reward", "moderation")


@pytest.mark.parametrize(
    ("present", "guard", "every", "first", "staged"),
    [
        (ALL, {}, ALL, ("cost",), True),
        (("moderation", "cost"), {}, ("cost", "moderation"), ("cost",), True),
        (("cost", "reward"), {}, ("cost", "reward"), ("cost",), False),
        (("moderation", "reward"), {}, ("reward", "moderation"), ("moderation",), False),
        (ALL, {"windows": {"first_stage": "all"}}, ALL, ("cost", "moderation"), False),
        # when both must agree, the cost alone would hold back what the two of them let go
        (ALL, {"combine": "all"}, ALL, ("cost", "moderation"), False),
    ],
)
def test_who_is_asked(present: Any, guard: dict, every: Any, first: Any, staged: bool) -> None:
    rule = Rule(Guard.model_validate(guard), present)
    assert (rule.every, rule.first, rule.staged) == (every, first, staged)


@pytest.mark.parametrize(
    ("present", "limit", "suspicion", "cost", "suspicious"),
    [
        (ALL, 0.0, 0.5, -0.6, False),
        (ALL, 0.0, 0.5, -0.5, False),
        (ALL, 0.0, 0.5, -0.4, True),
        (ALL, 0.0, 0.5, 3.0, True),
        (ALL, 2.0, 0.5, 1.4, False),
        (ALL, 2.0, 0.5, 1.6, True),
        (ALL, 0.0, 0.0, -1e-9, False),
        (("cost", "reward"), 0.0, 0.5, -0.4, False),  # there is nobody else to ask
        (ALL, 0.0, 0.5, None, False),
    ],
)
def test_what_is_suspicious(present: Any, limit: float, suspicion: float, cost: float | None, suspicious: bool) -> None:
    rule = Rule(Guard.model_validate({"cost_limit": limit, "windows": {"suspicion": suspicion}}), present)
    assert rule.suspicious(Verdict(False, Judgement(cost), ())) == suspicious


def test_what_a_client_is_told() -> None:
    found = Rule(Guard(), ALL).verdict(Judgement(1.5, -2.0, view(HARM, severity=2)))
    assert found.wire == {
        "unsafe": True, "cost": 1.5, "reward": -2.0, "categories": {HARM: 0.4, THEFT: 0.1}, "flagged": [HARM],
        "severity": 2,
    }  # fmt: skip
    safe = verdict(-1.0, view(severity=2)).wire
    assert (safe["severity"], safe["flagged"], safe["unsafe"]) == (0, [], False)  # it would be 2 if it were unsafe
    assert verdict(-1.0, view(HARM)).wire["severity"] is None
    alone = verdict(-1.0).wire
    assert (alone["categories"], alone["severity"], alone["reward"]) == (None, None, None)
