"""The raw rows of a source, wherever they come from."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from castor.config.data import SYNTHETIC, SYNTHETIC_ROWS, DataSource, is_function
from castor.config.model import stage_of
from castor.data.sources.file_names import is_data_file, is_url
from castor.data.sources.files import read_records
from castor.data.sources.hub import is_saved_dataset, read_hub, read_saved
from castor.data.sources.record import Record, RowError
from castor.data.sources.report import RowReport
from castor.io.errors import CastorError
from castor.io.user_function import call_function, iterated, load_function

Kind = Literal["preference", "qa", "demonstration", "prompt"]


def raw_records(source: DataSource, kind: Kind, report: RowReport | None = None) -> Iterator[Record]:
    """The raw rows of `source`, in order; `kind` chooses what the synthetic corpus makes.

    A local file or folder is preferred to a data set of the same name. Raises CastorError when the source cannot be
    read, or its name means nothing.
    """
    name = source.source
    if name == SYNTHETIC:
        return _synthetic(source, kind)
    if stage_of(name) is not None:
        raise CastorError(f"{name} means the rows of a stage, and there is no run here: give the file of rows instead")
    if is_url(name):
        return read_records(name)
    if is_function(name):
        return _own_rows(source)
    path = Path(name).expanduser()
    if path.is_dir():
        saved = is_saved_dataset(path)
        return read_saved(path, source.split) if saved else read_hub(str(path), source.name, source.split, None, report)
    if path.is_file() or is_data_file(name):
        return read_records(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CastorError(f"there is no file or folder {name}; check the path given as source")
    return read_hub(name, source.name, source.split, source.revision, report)


def _own_rows(source: DataSource) -> Iterator[Record]:
    """What the function named `module:function` returns for the source: an iterable of rows."""
    rows = call_function(source.source, load_function(source.source), source)
    if not isinstance(rows, Iterable) or isinstance(rows, Mapping | str):
        raise CastorError(f"{source.source} returned {type(rows).__name__}; it must return an iterable of rows")
    for number, row in enumerate(iterated(source.source, rows), start=1):
        wrong = RowError("wrong type", f"the row is a {type(row).__name__}, not an object")
        yield Record(f"{source.source}:row {number}", dict(row) if isinstance(row, Mapping) else wrong)


def _synthetic(source: DataSource, kind: Kind) -> Iterator[Record]:
    from castor.synthetic import corpus

    make: Callable[..., Iterable[Any]] = {
        "preference": corpus.preference_rows,
        "qa": corpus.qa_rows,
        "demonstration": corpus.demonstrations,
        "prompt": corpus.prompts,
    }[kind]
    made = make(source.synthetic, source.split, source.limit or SYNTHETIC_ROWS)
    for number, row in enumerate(made, start=1):
        yield Record(f"{SYNTHETIC}/{source.split}:row {number}", {"prompt": row} if isinstance(row, str) else row)
