"""The cluster bootstrap: values, coverage, agreement with scipy, and what has no interval."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from castor.statistics.bootstrap import Measure, Statistic, measure, wilson
from castor.statistics.classification import f1, mean, share


def one(statistic: Statistic, prompts: np.ndarray, seed: int = 0) -> Measure | None:
    return measure({"it": statistic}, prompts, seed=seed)[""]["it"]


def test_one_row_a_prompt_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=300)
    ours = one(mean(values), np.arange(300))
    reference = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=5).confidence_interval
    assert ours is not None
    assert (ours.n, ours.prompts) == (300, 300)
    assert ours.value == pytest.approx(values.mean(), abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx(tuple(reference), abs=0.06 * (reference.high - reference.low))


def test_rows_of_one_prompt_are_drawn_together() -> None:
    """Ten copies of every row say no more than one: the interval stays as wide, over rows it would shrink by √10."""
    hits = np.random.default_rng(0).random(80) < 0.7
    alone = one(share(hits), np.arange(80))
    tenfold = one(share(np.repeat(hits, 10)), np.repeat(np.arange(80), 10))
    over_rows = one(share(np.repeat(hits, 10)), np.arange(800))
    assert alone is not None
    assert tenfold is not None
    assert over_rows is not None
    assert (tenfold.value, tenfold.low, tenfold.high) == (alone.value, alone.low, alone.high)
    assert over_rows.high - over_rows.low < 0.5 * (alone.high - alone.low)


def test_intervals_over_prompts_cover_where_those_over_rows_do_not() -> None:
    rng = np.random.default_rng(1)
    over_prompts = over_rows = 0
    for trial in range(40):
        rate = rng.beta(2, 2, size=60)  # each prompt has a difficulty of its own; the mean is 0.5
        hits = (rng.random((60, 12)) < rate[:, None]).ravel()
        clustered, flat = one(share(hits), np.repeat(np.arange(60), 12), trial), one(share(hits), np.arange(720), trial)
        assert clustered is not None
        assert flat is not None
        over_prompts += clustered.low <= 0.5 <= clustered.high
        over_rows += flat.low <= 0.5 <= flat.high
    assert over_prompts >= 34
    assert over_rows <= 31


def test_a_group_is_measured_on_its_rows_alone() -> None:
    hits = np.array([True, False, True, True, False, True])
    first = np.array([True, True, True, True, False, False])
    found = measure({"share": share(hits)}, np.array([0, 0, 1, 2, 3, 4]), {"first": first, "rest": ~first})
    assert found["first"]["share"] is not None
    assert found["rest"]["share"] is not None
    assert (found["first"]["share"].value, found["first"]["share"].n, found["first"]["share"].prompts) == (0.75, 4, 3)
    assert (found["rest"]["share"].value, found["rest"]["share"].n) == (0.5, 2)


def test_a_figure_that_does_not_exist_is_none() -> None:
    nothing = np.zeros(6, dtype=bool)
    assert one(f1(nothing, nothing), np.arange(6)) is None
    assert one(share(nothing, among=nothing), np.arange(6)) is None
    assert one(share([True, False]), np.array([4, 4])) is None  # one prompt has no interval
    assert one(share([]), np.array([], dtype=np.int64)) is None


def test_a_share_of_0_or_1_gets_the_interval_of_wilson_with_prompts_as_trials() -> None:
    found = one(share(np.ones(20, dtype=bool)), np.repeat(np.arange(10), 2))
    assert found is not None
    assert (found.low, found.high, found.n, found.prompts) == (wilson(10, 10).low, 1.0, 20, 10)


def test_resamples_without_the_figure_are_left_out() -> None:
    """One positive among 12: a third of the resamples have none, and no F1 of these enters the interval."""
    actual = np.arange(12) == 0
    found = one(f1(actual, actual), np.arange(12))
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_same_seed_gives_the_same_interval_in_any_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, prompts = np.random.default_rng(2).random(50) < 0.4, np.arange(50) // 2
    whole = one(share(hits), prompts, seed=4)
    assert whole == one(share(hits), prompts, seed=4)
    assert whole != one(share(hits), prompts, seed=5)
    monkeypatch.setattr("castor.statistics.bootstrap.CELLS_AT_ONCE", 100)
    assert one(share(hits), prompts, seed=4) == whole


def test_a_term_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="it: row 1"):
        one(mean([0.0, math.nan, 1.0]), np.arange(3))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30))
def test_an_interval_holds_its_value(rows: list[tuple[bool, int]]) -> None:
    found = one(share([hit for hit, _ in rows]), np.array([prompt for _, prompt in rows]))
    assert (found is None) == (len({prompt for _, prompt in rows}) < 2)
    if found is not None:
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.value == pytest.approx(np.mean([hit for hit, _ in rows]))
