"""Wilson's interval against scipy's, two-sided and one-sided."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from castor.statistics.wilson import wilson_interval


@given(st.integers(1, 400), st.data(), st.floats(0.6, 0.999))
def test_the_ends_are_scipys(count, data, confidence):
    successes = data.draw(st.integers(0, count))
    two_sided = wilson_interval(successes, count, stats.norm.ppf((1 + confidence) / 2))
    theirs = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    assert two_sided == pytest.approx((theirs.low, theirs.high), rel=1e-12, abs=1e-15)
    _, upper = wilson_interval(successes, count, stats.norm.ppf(confidence))
    theirs = stats.binomtest(successes, count, alternative="less").proportion_ci(confidence, method="wilson")
    assert upper == pytest.approx(theirs.high, rel=1e-12)


def test_a_share_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no responses"):
        wilson_interval(0, 0, 1.96)
