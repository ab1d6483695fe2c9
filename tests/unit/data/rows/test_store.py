"""Rows on disk that behave like a list."""

import pickle
from dataclasses import replace

import pytest

from castor.data.rows.schemas import PreferenceRow, QARow
from castor.data.rows.store import RowStore
from castor.io.errors import CastorError

QA = [
    QARow("p é", "a"),
    QARow("p", "a", True, frozenset(), 0, (("u", "v"), ("w", "x"))),
    QARow("p", "b", False, frozenset({"controversial_topics,politics", "self_harm"}), 3),
]
PAIR = PreferenceRow("p", "a", "b", True, False, frozenset(), frozenset({"Drugs"}), 0, 2, None, 0, (("u", "v"),))


def test_a_store_gives_back_the_rows_it_was_given(tmp_path):
    store = RowStore.write(tmp_path / "qa.arrow", QARow, iter(QA))
    assert list(store) == QA
    assert (len(store), store[0], store[-1], store[1:]) == (3, QA[0], QA[2], QA[1:])
    assert list(RowStore.write(tmp_path / "pairs.arrow", PreferenceRow, [PAIR])) == [PAIR]
    with pytest.raises(IndexError):
        store[3]


def test_rows_are_found_across_batches_and_processes(tmp_path):
    rows = [replace(QA[index % 3], response=str(index)) for index in range(1000)]
    store = pickle.loads(pickle.dumps(RowStore.write(tmp_path / "qa.arrow", QARow, rows)))
    assert list(store) == rows
    assert [store[index] for index in (0, 255, 256, 511, 512, 999, -1000)] == [
        rows[index] for index in (0, 255, 256, 511, 512, 999, 0)
    ]
    assert len(RowStore.write(tmp_path / "qa.arrow", QARow, [])) == 0


def test_a_failed_write_leaves_the_old_store(tmp_path):
    def failing():
        yield QA[0]
        raise CastorError("bad row")

    store = RowStore.write(tmp_path / "qa.arrow", QARow, QA)
    with pytest.raises(CastorError, match="bad row"):
        RowStore.write(tmp_path / "qa.arrow", QARow, failing())
    assert list(RowStore(store.path)) == QA
    assert [path.name for path in tmp_path.iterdir()] == ["qa.arrow"]


def test_what_is_no_store_is_an_error(tmp_path):
    (tmp_path / "qa.arrow").write_bytes(b"nonsense")
    with pytest.raises(CastorError, match=r"qa\.arrow is no store of rows"):
        RowStore(tmp_path / "qa.arrow")
    with pytest.raises(CastorError, match=r"gone\.arrow is no store of rows"):
        RowStore(tmp_path / "gone.arrow")
