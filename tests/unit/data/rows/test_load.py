import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from castor.config.data import DataSource
from castor.data.rows.load import load_preferences, load_prompts, load_qa, stream_demonstrations
from castor.data.rows.safety_pairs import MAX_PAIRS_PER_PROMPT, safety_pairs
from castor.data.rows.schemas import QARow, parse_row
from castor.data.sources.files import read_records
from castor.data.sources.record import RowError
from castor.data.sources.report import RowReport, require_both_classes
from castor.io.errors import CastorError
from castor.io.files import write_jsonl
from castor.taxonomy import BEAVERTAILS_CATEGORIES

REAL = Path(__file__).parents[4].parent / "shared" / "data"
BEAVERTAILS = REAL / "beavertails" / "beavertails-30k-test-part.jsonl.gz"
TWO_ARRAYS = REAL / "beavertails" / "two-arrays.json"
EVALUATION = REAL / "beavertails-evaluation" / "BeaverTails-Evaluation.json"
needs_real_rows = pytest.mark.skipif(not REAL.is_dir(), reason="the real rows are not part of the project")


def pair(number, **changes):
    row = {
        "prompt": f"p{number}",
        "response_0": "yes",
        "response_1": "no",
        "better_response_id": 0,
        "safer_response_id": 1,
    }
    return row | {"is_response_0_safe": False, "is_response_1_safe": True} | changes


def qa(prompt, response, is_safe):
    return {"prompt": prompt, "response": response, "is_safe": is_safe}


def source_of(tmp_path, rows, **options):
    write_jsonl(tmp_path / "rows.jsonl", rows)
    return DataSource(source=str(tmp_path / "rows.jsonl"), **options)


BAD = [pair(0), pair(1, response_0="no"), pair(2, prompt=" "), pair(3, response_1="yes"), pair(4)]


def test_bad_rows_are_dropped_counted_and_listed(tmp_path):
    report = RowReport()
    rows = load_preferences(source_of(tmp_path, BAD), report)
    assert [row.prompt for row in rows] == ["p0", "p4"]
    assert report.reasons() == {"identical responses": 2, "empty prompt": 1}
    assert report.summary() == "kept 2 of 5 rows; dropped 2 identical responses, 1 empty prompt"
    report.write(tmp_path / "dropped.jsonl")
    assert report.summary().endswith(f"1 empty prompt (see {tmp_path / 'dropped.jsonl'})")
    listed = [record.raw for record in read_records(tmp_path / "dropped.jsonl")]
    assert listed[0] == {
        "location": f"{tmp_path / 'rows.jsonl'}:2",
        "reason": "identical responses",
        "detail": "response_0 and response_1 are the same text",
        "prompt": "p1",
        "response_0": "no",
        "response_1": "no",
    }


def test_listed_texts_are_short_and_no_list_is_left_when_nothing_was_dropped(tmp_path):
    report = RowReport()
    report.drop("here", RowError("empty prompt", ""), {"prompt": "", "response": "x" * 1000}, strict=False)
    report.write(tmp_path / "dropped.jsonl")
    assert len(next(read_records(tmp_path / "dropped.jsonl")).raw["response"]) == 201
    RowReport().write(tmp_path / "dropped.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_strict_stops_at_the_first_bad_row(tmp_path):
    with pytest.raises(CastorError, match=r"rows\.jsonl:2: identical responses .*strict: false"):
        load_preferences(source_of(tmp_path, BAD, strict=True), RowReport())


def test_limit_counts_good_rows(tmp_path):
    report = RowReport()
    assert len(load_preferences(source_of(tmp_path, BAD, limit=2), report)) == 2
    assert (report.kept, len(report.dropped)) == (2, 3)


def test_a_malformed_line_counts_as_a_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{oops\n" + json.dumps(pair(1)) + "\n")
    report = RowReport()
    assert len(load_preferences(DataSource(source=str(tmp_path / "rows.jsonl")), report)) == 1
    assert report.reasons() == {"malformed line": 1}


@pytest.mark.parametrize(
    ("need", "field"),
    [("better", "better_response_id"), ("safer", "safer_response_id"), ("safe_flags", "is_response_0_safe")],
)
def test_needed_labels(tmp_path, need, field):
    source = source_of(tmp_path, [pair(0), pair(1, **{field: None})])
    report = RowReport()
    assert [row.prompt for row in load_preferences(source, report, need=(need,))] == ["p0"]
    assert report.reasons() == {"missing label": 1}
    assert field in report.dropped[0].detail
    assert len(load_preferences(source, RowReport())) == 2


def test_nothing_left_says_why(tmp_path):
    with pytest.raises(
        CastorError, match=r"no usable rows: kept 0 of 1 rows; dropped 1 missing label; .*rows\.jsonl:1"
    ):
        load_preferences(source_of(tmp_path, [pair(0, safer_response_id=None)]), RowReport(), need=("safer",))
    with pytest.raises(CastorError, match="has no rows: kept 0 of 0 rows"):
        load_prompts(source_of(tmp_path, []), RowReport())
    with pytest.raises(CastorError, match="the row has 'question', 'answer'"):
        list(stream_demonstrations(source_of(tmp_path, [{"question": "i", "answer": "o"}]), RowReport()))


def test_hardly_any_row_left_is_an_error(tmp_path):
    rows = [pair(0)] + [pair(i, prompt="") for i in range(100)]
    with pytest.raises(CastorError, match=r"hardly any usable rows: kept 1 of 101"):
        load_preferences(source_of(tmp_path, rows), RowReport())
    assert len(load_preferences(source_of(tmp_path, rows[:-1]), RowReport())) == 1


QA_ROWS = [
    qa("a", "unsafe one", False),
    qa("b", "alone", True),
    qa("a", "safe", True),
    qa("a", "another unsafe one", False),
    qa("c", "safe 1", True),
    qa("c", "safe 2", True),
]


def test_qa_rows_become_safety_pairs(tmp_path):
    report = RowReport()
    rows = load_preferences(source_of(tmp_path, QA_ROWS), report, need=("safer", "safe_flags"))
    assert [(r.prompt, r.response_0, r.response_1, r.safer_response_id) for r in rows] == [
        ("a", "unsafe one", "safe", 1),
        ("a", "safe", "another unsafe one", 0),
    ]
    assert {r.better_response_id for r in rows} == {None}
    assert report.summary() == "kept 3 of 6 rows; set aside 3 QA rows in no safety pair"
    assert len(load_preferences(source_of(tmp_path, QA_ROWS, limit=1), RowReport())) == 1


def test_longer_is_a_stand_in_for_helpful_only_when_asked_for(tmp_path):
    with pytest.raises(CastorError, match="helpfulness: longer"):
        load_preferences(source_of(tmp_path, QA_ROWS), RowReport(), need=("better",))
    source = source_of(tmp_path, [*QA_ROWS, qa("d", "12", True), qa("d", "34", False)], helpfulness="longer")
    assert [r.better_response_id for r in load_preferences(source, RowReport())] == [0, 1, None]
    assert [r.better_response_id for r in load_preferences(source, RowReport(), need=("better",))] == [0, 1]


def test_pairs_of_a_prompt_are_all_safe_with_unsafe_up_to_the_cap():
    def pairs(safe, unsafe):
        texts = [QARow("p", f"{s}{i}", s == "safe") for s, n in (("safe", safe), ("unsafe", unsafe)) for i in range(n)]
        return [(r.response_0, r.response_1) for r in safety_pairs(texts, None)]

    assert set(pairs(2, 3)) == {(f"safe{i}", f"unsafe{j}") for i in range(2) for j in range(3)}
    capped = pairs(3, 10)
    assert len(capped) == len(set(capped)) == MAX_PAIRS_PER_PROMPT
    assert sorted(Counter(safe for safe, _ in capped).values()) == [2, 3, 3]


def test_texts_labelled_both_ways_are_left_out_and_repeats_count_once():
    texts = [("x", True), ("x ", False), ("y", True), ("y", True), ("z", False)]
    rows = list(safety_pairs([QARow("p", text, safe) for text, safe in texts], None))
    assert [(r.response_0, r.response_1, r.safer_response_id) for r in rows] == [("y", "z", 0)]


def test_demonstrations_take_the_better_then_the_safer_response(tmp_path):
    rows = [pair(0), pair(1, better_response_id=None), pair(2, better_response_id=None, safer_response_id=None)]
    report = RowReport()
    loaded = list(stream_demonstrations(source_of(tmp_path, [*rows, {"prompt": "q", "response": "a"}]), report))
    assert loaded == [QARow("p0", "yes", False), QARow("p1", "no", True), QARow("q", "a")]
    assert report.reasons() == {"missing label": 1}


def test_qa_of_either_schema(tmp_path):
    rows = load_qa(source_of(tmp_path, [pair(0), qa("q", "a", None), qa("q", "b", True)]), RowReport(), ("is_safe",))
    assert rows == [QARow("p0", "yes", False), QARow("p0", "no", True), QARow("q", "b", True)]


def test_prompts_are_unique_in_order(tmp_path):
    report = RowReport()
    rows = [{"prompt": "b"}, pair(1), {"prompt": "b", "response": ""}, {"prompt": ""}]
    assert load_prompts(source_of(tmp_path, rows), report) == ["b", "p1"]
    assert report.summary() == "kept 2 of 4 rows; dropped 1 empty prompt; set aside 1 repeated prompts"


def test_rows_of_a_stage_need_a_run():
    with pytest.raises(CastorError, match="stage:collect means the rows of a stage, and there is no run here"):
        load_prompts(DataSource(source="stage:collect"), RowReport())


@pytest.mark.parametrize("name", ["gone.jsonl.gz", "./gone", "/gone", "a/b/c"])
def test_a_missing_path_is_not_looked_up_on_the_hub(name):
    with pytest.raises(CastorError, match=f"there is no file.* {name}; check the path"):
        load_prompts(DataSource(source=name), RowReport())


def test_a_folder_is_loaded_like_a_hub_set(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_jsonl(tmp_path / "set" / "test.jsonl", [pair(0), pair(1)])
    source = DataSource(source=str(tmp_path / "set"), split="test")
    assert [row.prompt for row in load_preferences(source, RowReport())] == ["p0", "p1"]


def chat(*turns):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def test_conversations_are_paired_and_grouped_by_everything_said_before(tmp_path):
    rows = [chat("a", "b", "p", "yes") | {"is_safe": False}, chat("a", "c", "p", "no") | {"is_safe": True}]
    with pytest.raises(CastorError, match="set aside 2 QA rows in no safety pair"):
        load_preferences(source_of(tmp_path, rows), RowReport())
    rows.append(chat("a", "b", "p", "no") | {"is_safe": True})
    (pair_row,) = load_preferences(source_of(tmp_path, rows), RowReport())
    assert (pair_row.history, pair_row.safer_response_id) == ((("a", "b"),), 1)


def test_prompts_in_the_middle_of_a_conversation_are_set_aside(tmp_path):
    report = RowReport()
    assert load_prompts(source_of(tmp_path, [chat("a", "b", "p"), chat("q")]), report) == ["q"]
    assert report.summary() == "kept 1 of 2 rows; set aside 1 multi-turn prompts"


def test_repeated_rows_are_kept_and_counted(tmp_path):
    report = RowReport()
    assert len(load_qa(source_of(tmp_path, [qa("p", "a", True)] * 3 + [qa("p", "a", False)]), report)) == 4
    assert report.summary() == "kept 4 of 4 rows; 2 of the kept rows repeat an earlier one"


def test_both_classes_are_required_by_name():
    require_both_classes([True, None, False], "is_safe", "cost")
    with pytest.raises(CastorError, match="cost: is_safe is true in every row, and both classes are needed"):
        require_both_classes([True, True], "is_safe", "cost")
    with pytest.raises(CastorError, match="is_safe is known in no row"):
        require_both_classes([None], "is_safe", "cost")


@needs_real_rows
def test_real_beavertails_rows_are_all_good_and_pair_up():
    source = DataSource(source=str(BEAVERTAILS))
    report = RowReport()
    rows = load_qa(source, report, need=("is_safe", "category"))
    assert (len(rows), report.dropped) == (2057, [])
    assert Counter(row.is_safe for row in rows) == {False: 1188, True: 869}
    with gzip.open(BEAVERTAILS, "rt", encoding="utf-8") as lines:
        violence = sum(json.loads(line)["category"]["violence,aiding_and_abetting,incitement"] for line in lines)
    assert sum("violence,aiding_and_abetting,incitement" in (row.category or ()) for row in rows) == violence
    assert len(load_prompts(source, RowReport())) == 1721
    pairs = load_preferences(source, RowReport(), need=("safer", "safe_flags"))
    assert len(pairs) == 73
    assert all(
        pair.qa(pair.safer_response_id).is_safe and not pair.qa(1 - pair.safer_response_id).is_safe for pair in pairs
    )


@needs_real_rows
def test_real_concatenated_arrays_equal_the_first_rows_of_the_original():
    rows = [parse_row(record.raw) for record in read_records(TWO_ARRAYS)]
    assert len(rows) == 20
    assert set(rows) <= set(load_qa(DataSource(source=str(BEAVERTAILS)), RowReport()))


@needs_real_rows
def test_real_evaluation_prompts():
    report = RowReport()
    assert len(load_prompts(DataSource(source=str(EVALUATION)), report)) == 700
    assert report.summary() == "kept 700 of 700 rows"
    assert Counter(r.raw["category"] for r in read_records(EVALUATION)) == dict.fromkeys(BEAVERTAILS_CATEGORIES, 50)


@pytest.mark.parametrize("load", [load_preferences, load_qa, stream_demonstrations, load_prompts])
def test_the_synthetic_corpus_has_no_bad_rows(load):
    report = RowReport()
    assert len(list(load(DataSource(split="validation", limit=300), report))) == 300
    assert report.dropped == []
