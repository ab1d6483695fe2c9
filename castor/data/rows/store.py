"""Rows on disk that behave like a list: an Arrow file, memory-mapped, so that a set may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa

from castor.data.rows.fields import History
from castor.data.rows.parts import PartedRows
from castor.data.rows.schemas import PreferenceRow, QARow
from castor.io.errors import CastorError
from castor.io.files import atomic_write

Row = TypeVar("Row", QARow, PreferenceRow)

_BATCH_ROWS = 256  # one batch is what a reader holds at a time
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (QARow, PreferenceRow)}
_COLUMNS: dict[Any, pa.DataType] = {  # by the type of a row's field
    str: pa.large_string(),
    bool | None: pa.bool_(),
    int | None: pa.int8(),
    frozenset[str] | None: pa.list_(pa.string()),
    History: pa.list_(pa.list_(pa.large_string())),
}


class RowStore(PartedRows[Row], Generic[Row]):
    """The rows of one Arrow file. Memory use does not depend on how many there are.

    A copy sent to another process carries the path only, and opens the file there: it must be on a file system both
    can see.
    """

    def __init__(self, path: Path | str) -> None:
        """Raises CastorError when the file is missing, damaged, or was not written by `write`."""
        self.path = Path(path).absolute()  # another process need not share the working directory
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(self.path)))
        except (OSError, pa.ArrowException) as error:
            raise CastorError(f"{self.path} is no store of rows ({error}); run the stage again") from error
        name = (self._file.schema.metadata or {}).get(b"castor_rows", b"").decode()
        if name not in _KINDS:
            raise CastorError(f"{self.path} holds no rows of Castor; run the stage again")
        self.kind: type[Row] = _KINDS[name]
        batches = range(self._file.num_record_batches)
        super().__init__(self._file.get_batch(number).num_rows for number in batches)

    @classmethod
    def write(cls, path: Path | str, kind: type[Row], rows: Iterable[Row]) -> RowStore[Row]:
        """Write rows as they come, atomically; an existing store is replaced.

        Raises CastorError when the disk is full.
        """
        schema = _schema(kind)
        stream = iter(rows)
        with atomic_write(path, "wb") as handle, pa.ipc.new_file(handle, schema) as writer:
            while batch := list(islice(stream, _BATCH_ROWS)):
                writer.write_batch(_batch(batch, schema))
        return cls(path)

    def _row(self, part: int, place: int) -> Row:
        return self._rows(self._file.get_batch(part).slice(place, 1))[0]

    def __iter__(self) -> Iterator[Row]:
        for number in range(self._file.num_record_batches):
            yield from self._rows(self._file.get_batch(number))

    def __reduce__(self) -> tuple[type[RowStore[Row]], tuple[Path]]:
        return type(self), (self.path,)

    def _rows(self, batch: pa.RecordBatch) -> list[Row]:
        return [self.kind(**{name: _value(name, value) for name, value in row.items()}) for row in batch.to_pylist()]


def _schema(kind: type[Any]) -> pa.Schema:
    columns = [(field.name, _COLUMNS[field.type]) for field in fields(kind)]
    return pa.schema(columns, metadata={"castor_rows": kind.__name__})


def _batch(rows: Sequence[Any], schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for column in schema:
        values = [getattr(row, column.name) for row in rows]
        plain = [sorted(value) if isinstance(value, frozenset) else value for value in values]
        columns.append(pa.array(plain, column.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _value(name: str, value: Any) -> Any:
    if name == "history":
        return tuple((user, assistant) for user, assistant in value)
    return frozenset(value) if isinstance(value, list) else value
