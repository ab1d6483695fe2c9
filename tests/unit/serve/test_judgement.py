"""What is no judgement: nonsense of every kind is named, and nothing that could stand for a verdict passes."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.judgement import JUDGES, Judgement, JudgeName, Moderation

GOOD = Moderation({"harm": 0.7, "theft": 0.1}, ("harm",), 2)
ALL = Judgement(-1.5, 2.0, GOOD)


def moderation(**changes: Any) -> Judgement:
    values = {"probabilities": GOOD.probabilities, "flagged": GOOD.flagged, "severity": GOOD.severity} | changes
    return Judgement(-1.5, 2.0, Moderation(**values))


@pytest.mark.parametrize(
    "judgement",
    [
        ALL, Judgement(0.0, -0.0, GOOD), Judgement(np.float64(1), 1e300, GOOD), moderation(severity=None, flagged=()),
        moderation(probabilities={"harm": 0.0, "theft": 1.0}), *(moderation(severity=level) for level in (1, 2, 3)),
    ],
)  # fmt: skip
def test_what_is_one(judgement: Judgement) -> None:
    assert judgement.problem(JUDGES) is None


def test_what_was_not_asked_for_may_be_missing() -> None:
    assert Judgement().problem(()) is None
    assert Judgement(cost=1.0).problem(("cost",)) is None
    assert Judgement(moderation=GOOD).problem(("moderation",)) is None
    for name in JUDGES:
        assert Judgement().problem((name,)) == f"the {name} model gave no number"


@pytest.mark.parametrize("name", ["cost", "reward"])
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1, True, "1.0", [1.0], {}, 1j, np.float32(1), GOOD, Ellipsis], ids=str
)
def test_a_score_that_is_none(name: JudgeName, value: Any) -> None:
    """Asked for or not: a verdict counts what is there."""
    for asked in (JUDGES, (name,), ()):
        problem = Judgement(**({"cost": 1.0, "reward": 1.0, "moderation": GOOD} | {name: value})).problem(asked)
        assert problem == f"the {name} model gave a number that is not finite"


@pytest.mark.parametrize(
    ("judgement", "problem"),
    [
        *((Judgement(1.0, 1.0, value), "no moderation") for value in (0.5, "safe", {"harm": 0.1}, [], True)),
        *((moderation(probabilities=value), "no number") for value in ({}, None, [0.5], "harm")),
        *(
            (moderation(probabilities={"harm": value, "theft": 0.1}), "not finite")
            for value in (math.nan, math.inf, None, "0.1", 1, True)
        ),
        *(
            (moderation(probabilities={"harm": value, "theft": 0.1}), "probability that is none")
            for value in (-1e-9, 1.1)
        ),
        *(
            (moderation(flagged=value), "category that it does not have")
            for value in (("arson",), ("harm", "arson"), None, "harm", (["harm"],), (1,))
        ),
        *((moderation(severity=value), "severity that is none") for value in (0, -1, 4, 1.0, "2", True, math.nan)),
    ],
)
def test_a_view_of_a_moderation_model_that_is_none(judgement: Judgement, problem: str) -> None:
    for asked in (JUDGES, ("moderation",), ()):
        assert problem in (judgement.problem(asked) or "")


VALUE = st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=2) | st.lists(st.floats())
VIEW = st.builds(
    Moderation,
    st.dictionaries(st.sampled_from(["harm", "theft"]), st.floats(-0.1, 1.1) | VALUE) | VALUE,
    st.lists(st.sampled_from(["harm", "theft", "arson"])).map(tuple) | VALUE,
    st.integers(0, 4) | VALUE,
)
ASKED = st.lists(st.sampled_from(JUDGES), unique=True).map(tuple)


@given(st.builds(Judgement, st.floats() | VALUE, st.floats() | VALUE, VIEW | VALUE), ASKED)
def test_anything_at_all_is_a_judgement_or_has_a_problem(judgement: Judgement, asked: tuple[JudgeName, ...]) -> None:
    if judgement.problem(asked) is not None:
        return
    for name in asked:
        assert getattr(judgement, name) is not None
    for number in (judgement.cost, judgement.reward):
        assert number is None or (type(number) is float and math.isfinite(number))
    view = judgement.moderation
    if view is not None:
        assert view.probabilities
        assert all(0 <= number <= 1 for number in view.probabilities.values())
        assert set(view.flagged) <= set(view.probabilities)
        assert view.severity in (None, 1, 2, 3)
