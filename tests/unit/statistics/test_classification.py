"""Figures of reward, cost and moderation models: worked by hand, and against scikit-learn."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from castor.statistics import classification as ours
from castor.statistics.bootstrap import Statistic


def value(statistic: Statistic) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(statistic.of(statistic.terms.sum(axis=0)))


def test_equal_scores_rank_nothing() -> None:
    assert value(ours.ranking_accuracy([2.0, 1.0, 0.5, -1.0], [1.0, 1.0, 0.6, -3.0])) == 2 / 4


def test_a_cost_of_zero_has_neither_sign() -> None:
    costs, safe = [-1.0, 0.0, 0.0, 2.0, 1.0, -0.5], [True, True, False, False, True, False]
    assert value(ours.sign_accuracy(costs, safe)) == 2 / 6


def test_verdicts_by_hand() -> None:
    # 3 hits, 1 false alarm, 2 misses, 4 rightly left alone
    flagged = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=bool)
    unsafe = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0], dtype=bool)
    found = {name: value(statistic) for name, statistic in ours.binary(flagged, unsafe).items()}
    assert found == pytest.approx(
        {"accuracy": 0.7, "f1": 6 / 9, "precision": 3 / 4, "recall": 3 / 5, "false_positive_rate": 1 / 5}
    )


def test_label_vectors_by_hand() -> None:
    predicted = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=bool)
    actual = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=bool)
    overall, each = ours.labels(predicted, actual, ("a", "b", "c"))
    assert value(overall["exact_match"]) == 2 / 4
    assert value(each["a"]) == pytest.approx(4 / 5)
    assert value(each["b"]) == pytest.approx(2 / 3)
    assert np.isnan(value(each["c"]))  # neither occurs nor is predicted
    assert value(overall["macro_f1"]) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert value(overall["micro_f1"]) == pytest.approx(6 / 8)


def test_severities_by_hand() -> None:
    found = {name: value(statistic) for name, statistic in ours.severity([0, 1, 2, 3, 3], [0, 1, 3, 3, 0], 4).items()}
    assert found["severity_accuracy"] == 3 / 5
    assert found["severity_accuracy_unsafe"] == 2 / 3
    # disagreement 1 + 9; expected: row margins (1, 1, 1, 2), column margins (2, 1, 0, 2) over 5
    expected = sum(r * c * (i - j) ** 2 for i, r in enumerate((1, 1, 1, 2)) for j, c in enumerate((2, 1, 0, 2))) / 5
    assert found["severity_kappa"] == pytest.approx(1 - 10 / expected)


def test_majority_is_the_share_of_the_most_frequent_answer() -> None:
    answers = {"flag": [True, True, False], "vector": [[0, 1], [0, 1], [0, 1], [1, 1]]}
    assert ours.majority(answers) == {"flag": 2 / 3, "vector": 3 / 4}


@settings(max_examples=40)
@given(st.integers(3, 40).flatmap(lambda n: st.tuples(*(arrays(bool, (n, 4)) for _ in range(2)))))
def test_verdicts_and_labels_agree_with_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, actual = case
    flagged, unsafe = predicted.any(axis=1), actual.any(axis=1)
    found = ours.binary(flagged, unsafe)
    assert value(found["accuracy"]) == pytest.approx(sk.accuracy_score(unsafe, flagged))
    if flagged.any() or unsafe.any():
        assert value(found["f1"]) == pytest.approx(sk.f1_score(unsafe, flagged, zero_division=0.0))
    overall, each = ours.labels(predicted, actual, ("a", "b", "c", "d"))
    assert value(overall["exact_match"]) == pytest.approx(sk.accuracy_score(actual, predicted))
    occur = (predicted | actual).any(axis=0)
    scores = sk.f1_score(actual, predicted, average=None, zero_division=0.0)
    for statistic, score, exists in zip(each.values(), scores, occur, strict=True):
        assert value(statistic) == pytest.approx(score) if exists else np.isnan(value(statistic))
    if occur.any():
        assert value(overall["macro_f1"]) == pytest.approx(scores[occur].mean())
        assert value(overall["micro_f1"]) == pytest.approx(sk.f1_score(actual, predicted, average="micro"))


@settings(max_examples=40)
@given(
    st.integers(2, 40).flatmap(lambda n: st.tuples(*(arrays(np.int64, n, elements=st.integers(0, 3)) for _ in "ab")))
)
def test_kappa_agrees_with_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = case
    for weights in (None, "quadratic"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns where kappa does not exist
            theirs = sk.cohen_kappa_score(first, second, labels=[0, 1, 2, 3], weights=weights)
        mine = value(ours.kappa(first, second, 4, weights))  # type: ignore[arg-type]  # one of the literals
        assert np.isnan(mine) if np.isnan(theirs) else mine == pytest.approx(theirs)


def test_verdicts_out_of_range_and_vectors_of_another_width_are_errors() -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        ours.kappa([0, 1], [0, 2], 2)
    vectors = np.zeros((3, 2), dtype=bool)
    with pytest.raises(ValueError, match="3 labels"):
        ours.labels(vectors, vectors, ("a", "b", "c"))
