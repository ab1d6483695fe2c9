"""Calibration error, Brier score and the reliability curve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from castor.statistics.bootstrap import Statistic
from castor.statistics.calibration import brier_score, expected_calibration_error, reliability


def value(statistic: Statistic) -> float:
    return float(statistic.of(statistic.terms.sum(axis=0)))


def test_calibration_error_by_hand() -> None:
    probability = [0.1, 0.2, 0.6, 0.7, 0.9]
    unsafe = [False, True, True, False, True]
    # two bins: |0.3 - 1| and |2.2 - 2|, over 5 rows
    assert value(expected_calibration_error(probability, unsafe, bins=2)) == pytest.approx((0.7 + 0.2) / 5)


def test_ends_of_bins_belong_where_they_should() -> None:
    curve = reliability([0.0, 0.5, 1.0], [False, True, True], np.arange(3), bins=2)
    assert [(point.low, point.high, point.n) for point in curve] == [(0.0, 0.5, 1), (0.5, 1.0, 2)]


def test_a_calibrated_model_has_next_to_no_error() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(20_000)
    unsafe = rng.random(20_000) < probability
    assert value(expected_calibration_error(probability, unsafe)) < 0.02
    assert value(expected_calibration_error(probability**3, unsafe)) > 0.2


def test_the_curve_has_an_interval_for_each_bin_of_several_prompts() -> None:
    probability = np.array([0.05] * 30 + [0.95] * 30 + [0.5] * 3)
    unsafe = np.array([False] * 27 + [True] * 3 + [True] * 24 + [False] * 6 + [True] * 3)
    prompts = np.array([*range(60), 60, 60, 60])
    low, middle, high = reliability(probability, unsafe, prompts)
    assert low.observed is not None
    assert high.observed is not None
    assert (low.n, low.observed.value, low.confidence) == (30, 0.1, pytest.approx(0.05))
    assert low.observed.low < 0.1 < low.observed.high
    assert high.observed.value == 0.8
    assert middle.observed is None  # one prompt


@settings(max_examples=40)
@given(
    st.integers(2, 40).flatmap(lambda n: st.tuples(arrays(np.float64, n, elements=st.floats(0, 1)), arrays(bool, n)))
)
def test_agrees_with_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    probability, unsafe = case
    # shifted off the ends of bins, where scikit-learn's belong to the lower bin
    probability = np.clip(probability, 0.001, 0.999) * 0.9971
    assert value(brier_score(probability, unsafe)) == pytest.approx(
        brier_score_loss(unsafe, probability, pos_label=True)
    )
    observed, confidence = calibration_curve(unsafe, probability, n_bins=15)
    curve = reliability(probability, unsafe, np.zeros(len(unsafe), dtype=np.int64))
    assert [point.confidence for point in curve] == pytest.approx(list(confidence))
    error = sum(point.n * abs(y - x) for point, x, y in zip(curve, confidence, observed, strict=True)) / len(unsafe)
    assert value(expected_calibration_error(probability, unsafe)) == pytest.approx(error)


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan")])
def test_what_is_no_probability_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="outside 0 to 1"):
        expected_calibration_error([0.5, bad], [True, False])
