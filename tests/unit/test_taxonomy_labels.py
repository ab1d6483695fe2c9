"""Label matrices of rows' categories."""

import pytest

from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES
from castor.taxonomy_labels import label_matrix


def test_a_row_has_the_columns_of_its_categories():
    labels = label_matrix([{"Drugs", "Animal Abuse"}, set(), ["Violence"]], PKU_CATEGORIES)
    assert (labels.shape, labels.dtype) == ((3, 19), bool)
    assert [[PKU_CATEGORIES[column] for column in row.nonzero()[0]] for row in labels] == [
        ["Drugs", "Animal Abuse"],
        [],
        ["Violence"],
    ]


def test_a_name_of_the_other_taxonomy_is_refused():
    with pytest.raises(ValueError, match="'Drugs' is no category of this taxonomy"):
        label_matrix([{"Drugs"}], BEAVERTAILS_CATEGORIES)
