"""Label matrices carried over from one taxonomy to the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, beavertails_to_pku, pku_to_beavertails
from castor.taxonomy_labels import RELATION, RelatedScores, label_matrix, related_scores, translate_labels

rows = st.integers(0, 6)
fourteen = rows.flatmap(lambda n: arrays(np.bool_, (n, 14)))
nineteen = rows.flatmap(lambda n: arrays(np.bool_, (n, 19)))


def names(labels, taxonomy):
    return [{name for name, held in zip(taxonomy, row, strict=True) if held} for row in labels]


@given(fourteen, nineteen)
def test_a_matrix_is_translated_row_by_row_as_sets_are(beavertails, pku):
    assert names(translate_labels(beavertails), PKU_CATEGORIES) == [
        beavertails_to_pku(row) for row in names(beavertails, BEAVERTAILS_CATEGORIES)
    ]
    assert names(translate_labels(pku), BEAVERTAILS_CATEGORIES) == [
        pku_to_beavertails(row) for row in names(pku, PKU_CATEGORIES)
    ]
    assert (translate_labels(translate_labels(pku)) >= pku).all()
    assert (translate_labels(beavertails).any(1) == beavertails.any(1)).all()


@given(nineteen)
def test_the_true_labels_translated_are_never_wrong(pku):
    scores = related_scores(translate_labels(pku), pku)
    assert scores == (RelatedScores(1.0, 1.0, 1.0) if pku.any() else RelatedScores(None, None, None))


def test_scores_by_hand():
    actual = label_matrix([{"Discriminatory Behavior"}, {"Drugs", "Animal Abuse"}, set()], PKU_CATEGORIES)
    predicted = label_matrix(
        [{"hate_speech,offensive_language"}, {"animal_abuse", "privacy_violation"}, {"self_harm"}],
        BEAVERTAILS_CATEGORIES,
    )
    # right: hate speech (shares cases with discrimination) and animal abuse; found: discrimination and animal abuse
    scores = related_scores(predicted, actual)
    assert (scores.precision, scores.recall) == (2 / 4, 2 / 3)
    assert scores.f1 == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert related_scores(actual, actual) == RelatedScores(1.0, 1.0, 1.0)


def test_translating_would_punish_a_right_prediction():
    actual = label_matrix([{"Insulting Behavior"}], PKU_CATEGORIES)
    predicted = label_matrix([{"hate_speech,offensive_language"}], BEAVERTAILS_CATEGORIES)
    assert translate_labels(predicted).sum() == 2
    assert related_scores(predicted, actual).precision == 1.0


def test_the_relation_has_the_shape_of_its_taxonomies():
    assert RELATION.shape == (14, 19)
    assert RELATION.any(0).all()
    assert RELATION.any(1).all()


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match=r"not bool \[rows, 14 or 19\]"):
        translate_labels(np.zeros((2, 15), dtype=bool))
    with pytest.raises(ValueError, match="labels are float64"):
        translate_labels(np.zeros((2, 14)))
    with pytest.raises(ValueError, match="2 rows of predictions do not go with 1 rows"):
        related_scores(np.zeros((2, 14), dtype=bool), np.zeros((1, 19), dtype=bool))
    with pytest.raises(ValueError, match="'Drugs' is no category of this taxonomy"):
        label_matrix([{"Drugs"}], BEAVERTAILS_CATEGORIES)
