"""Raw rows from files: JSON Lines, JSON, Parquet and CSV, each also compressed, on this machine or behind a URL."""

import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from castor.data.sources.file_names import COMPRESSIONS, FORMATS, FileKind, file_kind, is_url
from castor.data.sources.record import Record, RowError
from castor.io.errors import CastorError

_UTF8_MARK = b"\xef\xbb\xbf"
_BATCH_ROWS = 1024
_EXCERPT_BYTES = 80
_BLANK = re.compile(r"\s*")
_CSV_CELL_BYTES = 2**30
_ROW_FIELDS = frozenset({"prompt", "messages", "chosen", "instruction"})  # an object with one of them is itself a row


def read_records(path: Path | str) -> Iterator[Record]:
    """The rows of a file or of any URL fsspec opens (s3://, https://, memory://, ...), read as they are asked for.

    .jsonl: one object a line; blank lines are skipped. .json: an array of objects, an object with one list of objects,
    or several such documents one after the other. .parquet: any columns.
    .csv: a header and comma-separated cells; a cell is a text, or null where it is empty.

    A JSON line that cannot be parsed is a Record with a RowError. Raises CastorError for a file that is missing, cut
    short, not what its name says, or of an unknown kind, and for a URL that cannot be opened.
    """
    name = str(path)
    kind = file_kind(name)
    if kind is None:
        endings = f"{', '.join(FORMATS)} file, plain or with {', '.join(COMPRESSIONS[:-1])} or {COMPRESSIONS[-1]}"
        raise CastorError(f"{name} is of an unknown kind; give a {endings}")
    try:
        with _open(name) as file, _unpacked(file, kind) as stream:
            yield from _READERS[kind.format](name, stream)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise CastorError(f"{name} is cut short or damaged ({error}); copy or download it again") from error
    except OSError as error:
        if kind.compression != ".zst" and not is_url(name):
            raise
        raise CastorError(f"{name} cannot be read to its end ({error}); copy it to this machine again") from error


def _open(name: str) -> IO[bytes]:
    if not is_url(name):
        if not Path(name).is_file():
            raise CastorError(f"there is no file {name}; check the path given as source")
        return open(name, "rb")
    import fsspec

    try:
        return fsspec.open(name, "rb").open()
    except (ImportError, ValueError) as error:  # a protocol that is unknown, or whose package is missing
        raise CastorError(f"{name} cannot be opened: {error}; copy the file here and give its path") from error
    except FileNotFoundError as error:
        raise CastorError(f"there is nothing at {name}; check the URL given as source") from error


def _unpacked(file: IO[bytes], kind: FileKind) -> IO[bytes]:
    """The content of an open file. Parquet is read from its end, so a compressed one is unpacked whole."""
    stream: Any = file
    match kind.compression:
        case ".gz":
            stream = gzip.GzipFile(fileobj=file, mode="rb")
        case ".xz":
            stream = lzma.LZMAFile(file, "rb")  # noqa: SIM115  # the caller closes it
        case ".zst":
            stream = io.BufferedReader(pa.CompressedInputStream(file, "zstd"))
    if kind.compression and kind.format == ".parquet":
        with stream:
            return io.BytesIO(stream.read())
    return stream


def _read_jsonl(path: str, stream: IO[bytes]) -> Iterator[Record]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(_UTF8_MARK)
        if not line.strip():
            continue
        location = f"{path}:{number}"
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, or nested beyond reason
            if not line.endswith(b"\n"):
                raise CastorError(
                    f"{location} ends in the middle of a row, so the file was cut short; write it again"
                ) from error
            excerpt = line[:_EXCERPT_BYTES].decode("utf-8", errors="backslashreplace").strip()
            yield Record(location, RowError("malformed line", f"{error}; the line begins {excerpt!r}"))
            continue
        yield _record(location, value)


def _read_json(path: str, stream: IO[bytes]) -> Iterator[Record]:
    content = stream.read().removeprefix(_UTF8_MARK)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CastorError(f"{path}:{line} is not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    rows = (row for document in _json_documents(path, text) for row in _rows_in(path, document))
    for number, row in enumerate(rows, start=1):
        yield _record(f"{path}:row {number}", row)


def _json_documents(path: str, text: str) -> Iterator[Any]:
    """The JSON values of `text`, one after the other (`json.loads` takes only one)."""
    decoder = json.JSONDecoder()
    position = _skip_blank(text, 0)
    while position < len(text):
        try:
            document, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise CastorError(
                f"{path}:{error.lineno} is not JSON ({error.msg}, column {error.colno}); copy the file again, in case"
                " it was cut short, or name it .jsonl if every line is an object of its own"
            ) from error
        yield document
        position = _skip_blank(text, position)


def _skip_blank(text: str, position: int) -> int:
    blank = _BLANK.match(text, position)
    return blank.end() if blank else position


def _rows_in(path: str, document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        if not _ROW_FIELDS.isdisjoint(document):
            return [document]
        lists = [
            value for value in document.values() if isinstance(value, list) and all(isinstance(v, dict) for v in value)
        ]
        if len(lists) == 1:
            return lists[0]
        keys = ", ".join(repr(key) for key in list(document)[:8])
        raise CastorError(
            f"{path} holds an object with {len(lists)} lists of rows (keys: {keys or 'none'}), not one;"
            " write an array of rows"
        )
    raise CastorError(f"{path} holds a {type(document).__name__}, not rows; write an array of objects")


def _read_parquet(path: str, stream: IO[bytes]) -> Iterator[Record]:
    number = 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield _record(f"{path}:row {number}", row)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise CastorError(
            f"{path} cannot be read as Parquet after row {number} ({error}); copy or download it again"
        ) from error


def _read_csv(path: str, stream: IO[bytes]) -> Iterator[Record]:
    csv.field_size_limit(_CSV_CELL_BYTES)  # the default of 128 KiB is less than a long conversation
    rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), strict=True)
    try:
        for row in rows:
            location = f"{path}:{rows.line_num}"
            if None in row or None in row.values():
                cells = len(rows.fieldnames or ())
                yield Record(location, RowError("malformed line", f"the row has not the {cells} cells of the header"))
                continue
            yield Record(location, {name: cell or None for name, cell in row.items()})
    except UnicodeDecodeError as error:
        raise CastorError(f"{path} is not UTF-8 after line {rows.line_num}; convert the file to UTF-8") from error
    except csv.Error as error:
        raise CastorError(f"{path} is not CSV after line {rows.line_num} ({error}); it may be cut short") from error


_READERS: dict[str, Callable[[str, IO[bytes]], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def _record(location: str, value: Any) -> Record:
    if isinstance(value, dict):
        return Record(location, value)
    return Record(location, RowError("wrong type", f"the row is a {type(value).__name__}, not an object"))
