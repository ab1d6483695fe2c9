"""Labels of people as their programs write them."""

import json

import pytest

from castor.io.errors import CastorError
from castor.io.files import write_jsonl
from castor.labelling.label_queue import LABELS, read_labelled

PAIRS = [{"prompt": f"p{i}", "response_0": "a", "response_1": "b", **dict.fromkeys(LABELS)} for i in range(2)]


def labelled(tmp_path, **labels):
    write_jsonl(tmp_path / "queue.jsonl", PAIRS)
    (tmp_path / "labelled.jsonl").write_text(json.dumps(PAIRS[0] | labels) + "\n")
    return read_labelled(tmp_path / "labelled.jsonl", tmp_path / "queue.jsonl")


def test_labels_of_a_spreadsheet_are_kept_as_truth_values_and_integers(tmp_path):
    (row,), waiting = labelled(
        tmp_path, is_response_0_safe="TRUE", is_response_1_safe="no", better_response_id=1.0, safer_response_id="0"
    )
    assert [row[label] for label in LABELS] == [True, False, 1, 0]
    assert [type(row[label]) for label in LABELS] == [bool, bool, int, int]
    assert waiting == 1


def test_a_missing_value_of_a_spreadsheet_is_no_label(tmp_path):
    filled = {"is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 1}
    with pytest.raises(CastorError, match=r"labelled\.jsonl:1 has no safer_response_id"):
        labelled(tmp_path, **filled, safer_response_id=float("nan"))
    with pytest.raises(CastorError, match="holds no labelled row"):
        labelled(tmp_path, **dict.fromkeys(LABELS, "NA"))
