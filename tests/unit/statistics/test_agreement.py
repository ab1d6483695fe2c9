"""Agreement between judges: ratio, kappa, and what counts for nothing."""

import numpy as np
import pytest

from castor.statistics.agreement import Verdicts, agreements

YES, NO = True, False


def verdicts(said: list[bool], missing: tuple[int, ...] = ()) -> Verdicts:
    given = np.ones(len(said), dtype=bool)
    given[list(missing)] = False
    return Verdicts(np.array(said), given)


def test_ratio_and_kappa_by_hand() -> None:
    # both yes 3, both no 4, one each way 1 and 2: agreement 0.7; expected 0.4 * 0.5 + 0.6 * 0.5 = 0.5
    first = verdicts([YES] * 3 + [NO] * 4 + [YES] + [NO] * 2)
    second = verdicts([YES] * 3 + [NO] * 4 + [NO] + [YES] * 2)
    (found,) = agreements({"labels": first, "model": second}, np.arange(10), "unsafe")
    assert (found.first, found.second, found.question, found.excluded) == ("labels", "model", "unsafe", 0)
    assert found.ratio is not None
    assert found.kappa is not None
    assert found.ratio.value == pytest.approx(0.7)
    assert found.kappa.value == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert found.ratio.low < 0.7 < found.ratio.high
    assert (found.ratio.n, found.ratio.prompts) == (10, 10)


def test_items_without_a_verdict_count_for_nobody() -> None:
    first = verdicts([YES, NO, YES, NO], missing=(0,))
    second = verdicts([NO, NO, YES, YES], missing=(3,))
    third = verdicts([YES, NO, YES, NO])
    judges = {"a": first, "b": second, "c": third}
    found = {(each.first, each.second): each for each in agreements(judges, np.arange(4), "unsafe")}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found["a", "b"].excluded == 2
    assert found["a", "b"].ratio is not None
    assert (found["a", "b"].ratio.value, found["a", "b"].ratio.n) == (1.0, 2)
    assert found["a", "c"].excluded == 1
    assert found["b", "c"].ratio is not None
    assert found["b", "c"].ratio.value == pytest.approx(2 / 3)


def test_two_judges_who_always_say_one_thing_have_no_kappa() -> None:
    (found,) = agreements({"a": verdicts([NO] * 5), "b": verdicts([NO] * 5)}, np.arange(5), "unsafe")
    assert found.ratio is not None
    assert found.ratio.value == 1.0
    assert found.kappa is None


def test_judges_with_nothing_in_common_have_no_ratio() -> None:
    first, second = verdicts([YES, YES], missing=(0,)), verdicts([YES, YES], missing=(1,))
    (found,) = agreements({"a": first, "b": second}, np.arange(2), "less harmful")
    assert found.ratio is None
    assert found.excluded == 2
