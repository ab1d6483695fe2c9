"""Raw rows from local files: JSON Lines, JSON and Parquet, each also compressed with gzip or xz."""

import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from castor.data.rows import RowError
from castor.errors import CastorError

FORMATS = (".jsonl", ".json", ".parquet")
COMPRESSIONS = (".gz", ".xz")
_UTF8_MARK = b"\xef\xbb\xbf"
_BATCH_ROWS = 1024
_EXCERPT_BYTES = 80
_BLANK = re.compile(r"\s*")


class Record(NamedTuple):
    """One raw row and where it stands (`file:line`, or `file:row N` where lines mean nothing; both count from 1).

    `raw` is a RowError when this row cannot even be read while its neighbours can.
    """

    location: str
    raw: dict[str, Any] | RowError


def is_data_file(name: str) -> bool:
    """Whether `name` ends like a file that `read_records` reads."""
    return _format(Path(name)) is not None


def read_records(path: Path | str) -> Iterator[Record]:
    """The rows of a file, in order, read as they are asked for.

    .jsonl: one object a line; blank lines are skipped. .json: an array of objects, an object with one list of objects,
    or several such documents one after the other. .parquet: any columns; a category column is a struct of booleans.

    A JSON line that cannot be parsed is a Record with a RowError. Raises CastorError for a file that is missing, cut
    short, not what its name says, or of an unknown kind.
    """
    path = Path(path)
    kind = _format(path)
    if kind is None:
        raise CastorError(
            f"{path} is of an unknown kind; give a {', '.join(FORMATS)} file, plain or with {' or '.join(COMPRESSIONS)}"
        )
    if not path.is_file():
        raise CastorError(f"there is no file {path}; check the path given as source")
    reader = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}[kind]
    try:
        with _open(path) as stream:
            yield from reader(path, stream)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise CastorError(f"{path} is cut short or damaged ({error}); copy or download it again") from error


def _format(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def _open(path: Path) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]  # a GzipFile reads like an IO[bytes]
        case ".xz":
            return lzma.open(path, "rb")
        case _:
            return open(path, "rb")


def _read_jsonl(path: Path, stream: IO[bytes]) -> Iterator[Record]:
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


def _read_json(path: Path, stream: IO[bytes]) -> Iterator[Record]:
    content = stream.read().removeprefix(_UTF8_MARK)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CastorError(f"{path}:{line} is not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    rows = (row for document in _json_documents(path, text) for row in _rows_in(path, document))
    for number, row in enumerate(rows, start=1):
        yield _record(f"{path}:row {number}", row)


def _json_documents(path: Path, text: str) -> Iterator[Any]:
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


def _rows_in(path: Path, document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        if "prompt" in document:
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


def _read_parquet(path: Path, stream: IO[bytes]) -> Iterator[Record]:
    # Parquet is read from its end, so a compressed file is unpacked whole.
    source: Any = io.BytesIO(stream.read()) if path.suffix.lower() in COMPRESSIONS else stream
    number = 0
    try:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield _record(f"{path}:row {number}", row)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise CastorError(
            f"{path} cannot be read as Parquet after row {number} ({error}); copy or download it again"
        ) from error


def _record(location: str, value: Any) -> Record:
    if isinstance(value, dict):
        return Record(location, value)
    return Record(location, RowError("wrong type", f"the row is a {type(value).__name__}, not an object"))
