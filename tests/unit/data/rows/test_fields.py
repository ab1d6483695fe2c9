"""Labels and missing values as JSON, Arrow, pandas and spreadsheet programs write them."""

import csv
import json
from decimal import Decimal

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from castor.config.data import DataSource
from castor.data.rows.load import load_preferences, load_qa
from castor.data.rows.schemas import PreferenceRow, QARow, parse_row
from castor.data.sources.record import RowError
from castor.data.sources.report import RowReport
from castor.taxonomy import BEAVERTAILS_CATEGORIES

PAIR = {"prompt": "p", "response_0": "a", "response_1": "b"}
ANSWER = {"prompt": "p", "response": "a"}
NAN = float("nan")
MISSING = [None, NAN, np.float64("nan"), pandas.NA, Decimal("nan")]
MISSING += ["", " ", "NA", "N/A", "#N/A", "NaN", "nan", "None", "null", "NULL", "<NA>"]
TRUE = [True, 1, 1.0, np.bool_(True), np.int64(1), np.float32(1), Decimal("1.0")]
TRUE += ["TRUE", "True", "true", " true ", "yes", "Yes", "1", "1.0"]
FALSE = [False, 0, 0.0, -0.0, np.bool_(False), "FALSE", "False", "false", "no", "NO", "0", "0.0"]


@pytest.mark.parametrize(("values", "truth"), [(TRUE, True), (FALSE, False), (MISSING, None)])
def test_truth_values(values, truth):
    for value in values:
        assert parse_row(ANSWER | {"is_safe": value}) == QARow("p", "a", truth)
        labels = {"self_harm": value, "animal_abuse": True}
        assert ("self_harm" in parse_row(ANSWER | {"category": labels}).category) is bool(truth)


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", "1.", " 1 ", np.int8(1), np.float64(1), Decimal("1.0")])
def test_integers(value):
    row = parse_row(PAIR | {"better_response_id": value, "response_0_severity_level": value})
    assert (row.better_response_id, row.response_0_severity_level) == (1, 1)
    assert type(row.better_response_id) is int


def test_missing_integers():
    for value in MISSING:
        assert parse_row(PAIR | {"better_response_id": value}) == PreferenceRow("p", "a", "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"better_response_id": 0.5}, "id out of range: better_response_id is 0.5, not 0 to 1"),
        ({"better_response_id": "0.5"}, "id out of range: better_response_id is 0.5, not 0 to 1"),
        ({"better_response_id": True}, "wrong type: better_response_id is True, not an integer"),
        ({"better_response_id": "TRUE"}, "wrong type: better_response_id is 'TRUE', not an integer"),
        ({"is_response_0_safe": 0.5}, "wrong type: is_response_0_safe is 0.5, not true or false"),
        ({"is_response_0_safe": "perhaps"}, "wrong type: is_response_0_safe is 'perhaps', not true or false"),
        ({"is_response_0_safe": {}}, "wrong type: is_response_0_safe is dict, not true or false"),
    ],
)
def test_a_value_that_is_not_understood_is_named(changes, message):
    with pytest.raises(RowError) as caught:
        parse_row(PAIR | changes)
    assert str(caught.value) == message


def test_words_for_missing_values_are_texts_where_texts_stand():
    assert parse_row({"prompt": "NA", "response": "None"}) == QARow("NA", "None")


def test_missing_categories_were_not_judged():
    unsafe = ANSWER | {"is_safe": False}
    other = dict.fromkeys(BEAVERTAILS_CATEGORIES, False)
    assert parse_row(unsafe | {"category": {"self_harm": True, "animal_abuse": None}}).category == {"self_harm"}
    assert parse_row(unsafe | {"category": {"self_harm": True, "no such name": None}}).category == {"self_harm"}
    assert parse_row(unsafe | {"category": other | {"self_harm": None}}).category == frozenset()
    assert parse_row(unsafe | {"category": [True] + [None] * 13}).category == {"animal_abuse"}
    assert parse_row(unsafe | {"category": ["self_harm", None]}).category == {"self_harm"}
    for nothing in ({"self_harm": None}, [None] * 14, [None], NAN, "None"):
        assert parse_row(unsafe | {"category": nothing}).category is None
    for empty in ({}, []):
        assert parse_row(unsafe | {"category": empty}).category == frozenset()
    both = {"category": {"self_harm": None}, "harm_category": {"Drugs": True}}  # of two data sets in one Parquet file
    assert parse_row(unsafe | both).category == {"Drugs"}


@pytest.mark.parametrize("spelt", [json.dumps, str, repr])
def test_objects_and_lists_in_a_text(spelt):
    labels = {"self_harm": True, "animal_abuse": False}
    raw = ANSWER | {"category": spelt(labels), "history": spelt([["u", "v's"]])}
    assert parse_row(raw) == QARow("p", "a", None, frozenset({"self_harm"}), history=(("u", "v's"),))
    assert parse_row(ANSWER | {"category": spelt(["self_harm"])}).category == {"self_harm"}
    with pytest.raises(RowError, match=r"unknown category: category names '\{oops'"):
        parse_row(ANSWER | {"category": "{oops"})


def test_lists_of_numpy_as_pandas_reads_them_from_parquet():
    raw = {"messages": np.array([{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}])}
    assert parse_row(raw | {"category": np.array(["self_harm"], dtype=object)}).category == {"self_harm"}
    history = np.array([np.array(["u", "v"], dtype=object), None], dtype=object)[:1]
    assert parse_row(ANSWER | {"history": history}) == QARow("p", "a", history=(("u", "v"),))


IDS = [{**PAIR, "better_response_id": value} for value in (0.0, 1.0, NAN, 0.5)]


def write_csv(path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(IDS[0]))
        writer.writeheader()
        writer.writerows([*IDS[:2], PAIR, IDS[3]])  # an empty cell for what is missing


WRITERS = {
    "rows.csv": write_csv,
    "rows.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in IDS)),
    "rows.json": lambda path: path.write_text(json.dumps(IDS)),
    "rows.parquet": lambda path: pq.write_table(pa.Table.from_pylist(IDS), path),
    "pandas.csv": lambda path: pandas.DataFrame(IDS).to_csv(path, index=False),
    "pandas.jsonl": lambda path: pandas.DataFrame(IDS).to_json(path, orient="records", lines=True),
    "pandas.parquet": lambda path: pandas.DataFrame(IDS).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_ids_as_floats_in_every_format(tmp_path, name):
    WRITERS[name](tmp_path / name)
    report = RowReport()
    rows = load_preferences(DataSource(source=str(tmp_path / name)), report)
    assert [row.better_response_id for row in rows] == [0, 1, None]
    assert [(row.reason, row.detail) for row in report.dropped] == [
        ("id out of range", "better_response_id is 0.5, not 0 to 1")
    ]


def test_a_spreadsheet_of_answers(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "prompt,response,is_safe,category,severity_level\n"
        "a,b,TRUE,,0\nc,d,FALSE,self_harm,3.0\ne,f,no,\"{'self_harm': True, 'animal_abuse': None}\",N/A\ng,h,NA,,\n"
    )
    rows = load_qa(DataSource(source=str(tmp_path / "rows.csv")), RowReport())
    harm = frozenset({"self_harm"})
    assert rows[:2] == [QARow("a", "b", True, None, 0), QARow("c", "d", False, harm, 3)]
    assert rows[2:] == [QARow("e", "f", False, harm), QARow("g", "h")]


def test_keys_that_other_rows_lack_are_null_in_arrow(tmp_path):
    rows = [
        ANSWER | {"is_safe": False, "category": {"self_harm": True}},
        ANSWER | {"is_safe": False, "category": {"animal_abuse": True}},
        PAIR | {"better_response_id": 1},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}], "is_safe": True},
    ]
    columns = dict.fromkeys(name for row in rows for name in row)  # Arrow's from_pylist takes those of the first row
    table = pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])
    pq.write_table(table, tmp_path / "rows.parquet")
    report = RowReport()
    found = load_qa(DataSource(source=str(tmp_path / "rows.parquet")), report)
    assert report.summary() == "kept 4 of 4 rows"
    assert [row.category for row in found[:2]] == [{"self_harm"}, {"animal_abuse"}]
    assert found[2:] == [QARow("p", "a"), QARow("p", "b"), QARow("p", "a", True)]
