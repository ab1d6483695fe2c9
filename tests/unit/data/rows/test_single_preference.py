"""One preference made of two."""

import pytest

from castor.config.data import DataSource
from castor.data.rows.load import load_preferences
from castor.data.rows.schemas import PreferenceRow
from castor.data.rows.single_preference import single_preference
from castor.data.sources.record import RowError
from castor.data.sources.report import RowReport


def row(better, safer, safe_0, safe_1, prompt="p"):
    return PreferenceRow(prompt, "a", "b", safe_0, safe_1, better_response_id=better, safer_response_id=safer)


@pytest.mark.parametrize(
    ("given", "better"),
    [
        (row(0, 1, False, True), 1),
        (row(1, 0, True, False), 0),
        (row(0, 1, True, True), 0),
        (row(1, 0, False, False), 1),
    ],
)
def test_harm_comes_first_where_just_one_is_safe(given, better):
    made = single_preference(given, "harmless_first")
    assert made.better_response_id == better
    assert made.safer_response_id == given.safer_response_id


def test_a_mixture_takes_half_of_each_and_does_not_depend_on_the_order():
    rows = [row(0, 1, True, True, f"prompt {n}") for n in range(400)]
    chosen = [single_preference(each, "mixture").better_response_id for each in rows]
    assert 150 < sum(chosen) < 250
    swapped = PreferenceRow("prompt 0", "b", "a", True, True, better_response_id=1, safer_response_id=0)
    assert single_preference(swapped, "mixture").better_response_id == 1 - chosen[0]


@pytest.mark.parametrize(
    ("given", "rule"), [(row(0, None, True, True), "mixture"), (row(0, 1, None, True), "harmless_first")]
)
def test_a_missing_label_is_a_bad_row(given, rule):
    with pytest.raises(RowError, match="missing label"):
        single_preference(given, rule)


def test_a_source_gives_it():
    def load(**options):
        return load_preferences(DataSource(limit=200, **options), RowReport(), need=("better",))

    plain, first = load(), load(single_preference="harmless_first")
    differing = [(a, b) for a, b in zip(plain, first, strict=True) if a.better_response_id != b.better_response_id]
    assert differing
    assert all(b.better_response_id == b.safer_response_id for _, b in differing)
