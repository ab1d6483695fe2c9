"""Mixtures of sources: how many rows of each, and which."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor.config.data import DataSource
from castor.data.rows.mixture import mix
from castor.io.errors import CastorError


def source(**options):
    return DataSource(source="rows.jsonl", **options)


def counts(sources, sizes, seed=0):
    parts = [[(number, row) for row in range(size)] for number, size in enumerate(sizes)]
    mixture = mix(sources, parts, seed)
    assert len(mixture) == len(list(mixture))
    return [Counter(row for part, row in mixture if part == number) for number in range(len(sizes))]


def test_without_options_sources_follow_each_other():
    mixture = mix([source(), source()], ["ab", "cd"], 0)
    assert "".join(mixture) == "abcd"
    assert (mixture[0], mixture[-1], mixture[1:3]) == ("a", "d", ["b", "c"])
    with pytest.raises(IndexError):
        mixture[4]


def test_a_proportion_keeps_its_share_in_order_and_by_seed():
    sources, rows = [source(proportion=0.25)], [list(range(1000))]
    kept = list(mix(sources, rows, 1))
    assert (len(kept), kept) == (250, sorted(kept))
    assert kept == list(mix(sources, rows, 1)) != list(mix(sources, rows, 2))
    assert len(mix([source(proportion=0.01)], [[7]], 0)) == 1


def test_weights_take_the_most_rows_at_which_no_source_runs_out():
    first, second = counts([source(weight=3), source(weight=1)], [300, 500])
    assert (first.total(), second.total()) == (300, 100)
    assert {*first.values(), *second.values()} == {1}
    assert second != counts([source(weight=3), source(weight=1)], [300, 500], seed=1)[1]


def test_a_source_with_replacement_repeats_its_rows_evenly():
    first, second = counts([source(weight=1), source(weight=1, replacement=True)], [25, 10])
    assert (first.total(), second.total(), len(second)) == (25, 25, 10)
    assert set(second.values()) == {2, 3}
    first, second = counts([source(weight=2, replacement=True), source(weight=1, replacement=True)], [10, 20])
    assert (first, second) == (Counter(dict.fromkeys(range(10), 4)), Counter(range(20)))


def test_a_proportion_comes_before_the_weight():
    first, second = counts([source(weight=1, proportion=0.5), source(weight=1)], [100, 80])
    assert (first.total(), second.total()) == (50, 50)


def test_mixtures_that_cannot_be_meant():
    with pytest.raises(CastorError, match="has no weight, but other sources beside it have"):
        mix([source(weight=1), source()], [[1], [2]], 0)
    with pytest.raises(CastorError, match=r"the weight 0\.001 of rows\.jsonl gives it no row"):
        counts([source(weight=1), source(weight=0.001)], [10, 10])


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0.1, 10), st.booleans()), min_size=1, max_size=4))
def test_shares_follow_the_weights(drawn):
    sources = [source(weight=weight, replacement=repeat) for _, weight, repeat in drawn]
    sizes = [size for size, _, _ in drawn]
    scales = [size / weight for size, weight, _ in drawn]
    plain = [scale for scale, (_, _, repeat) in zip(scales, drawn, strict=True) if not repeat]
    scale = min(plain) if plain else max(scales)
    if any(weight * scale < 1 for _, weight, _ in drawn):
        return
    for found, size, (_, weight, repeat) in zip(counts(sources, sizes), sizes, drawn, strict=True):
        assert np.isclose(found.total(), weight * scale, rtol=0, atol=1)
        if not repeat:
            assert found.total() <= size
            assert set(found.values()) == {1}
        assert max(found.values()) - min(found[row] for row in range(size)) <= 1


def test_where_keeps_the_chosen_places():
    """Across parts, also where a part gives nothing and where a row is given twice."""
    mixture = mix([source(weight=2, replacement=True), source(weight=1)], ["ab", "cd"], 0)
    assert sorted(mixture) == ["a", "a", "b", "b", "c", "d"]
    for wanted in ("abcd", "ad", "c", ""):
        kept = mixture.where(np.array([row in wanted for row in mixture]))
        assert list(kept) == [row for row in mixture if row in wanted] == [kept[i] for i in range(len(kept))]
