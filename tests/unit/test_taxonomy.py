"""The two harm taxonomies and the relation between them."""

import gzip
import json
from pathlib import Path

import pytest

from castor.io.errors import CastorError
from castor.taxonomy import (
    BEAVERTAILS_CATEGORIES,
    PKU_CATEGORIES,
    Severity,
    beavertails_to_pku,
    pku_to_beavertails,
)

REAL_ROWS = Path(__file__).parents[2].parent / "shared" / "data" / "beavertails" / "beavertails-30k-test-part.jsonl.gz"


def test_sizes_and_order():
    assert len(set(BEAVERTAILS_CATEGORIES)) == len(BEAVERTAILS_CATEGORIES) == 14
    assert len(set(PKU_CATEGORIES)) == len(PKU_CATEGORIES) == 19
    assert BEAVERTAILS_CATEGORIES[2] == "controversial_topics,politics"
    assert (PKU_CATEGORIES[0], PKU_CATEGORIES[18]) == ("Endangering National Security", "Animal Abuse")
    assert [severity.value for severity in Severity] == [0, 1, 2, 3]


def test_the_relation_is_total_onto_and_its_own_inverse():
    for pku in PKU_CATEGORIES:
        related = pku_to_beavertails([pku])
        assert related
        assert all(pku in beavertails_to_pku([beavertails]) for beavertails in related)
    for beavertails in BEAVERTAILS_CATEGORIES:
        related = beavertails_to_pku([beavertails])
        assert related
        assert all(beavertails in pku_to_beavertails([pku]) for pku in related)


def test_unions_and_the_empty_set():
    assert pku_to_beavertails([]) == frozenset()
    both = pku_to_beavertails(["Animal Abuse", "Drugs"])
    assert both == {"animal_abuse", "drug_abuse,weapons,banned_substance"}
    assert beavertails_to_pku(["animal_abuse"]) == {"Animal Abuse"}


@pytest.mark.parametrize(
    ("translate", "name", "nearest"),
    [
        (pku_to_beavertails, "Animal Abus", "Animal Abuse"),
        (pku_to_beavertails, "cyber crime", "Cybercrime"),
        (beavertails_to_pku, "self harm", "self_harm"),
        (beavertails_to_pku, "politics", "controversial_topics,politics"),
    ],
)
def test_an_unknown_category_names_the_nearest(translate, name, nearest):
    with pytest.raises(CastorError) as caught:
        translate([name])
    assert isinstance(caught.value, KeyError)
    assert f"the nearest one is {nearest!r}" in str(caught.value)


def test_a_single_string_is_not_taken_for_a_collection():
    with pytest.raises(TypeError, match="not the single string"):
        pku_to_beavertails("Drugs")


@pytest.mark.skipif(not REAL_ROWS.exists(), reason="the real rows are not here")
def test_real_rows_have_these_keys_in_this_order():
    with gzip.open(REAL_ROWS, "rt", encoding="utf-8") as lines:
        assert tuple(json.loads(next(lines))["category"]) == BEAVERTAILS_CATEGORIES
