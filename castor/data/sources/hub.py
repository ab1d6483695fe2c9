"""Raw rows from a data set of the Hugging Face hub, or from a local folder the `datasets` library can load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from castor.data.sources.known_sets import find_set, misspelt_id, require_config, require_split, unknown_name
from castor.data.sources.record import Record
from castor.data.sources.report import RowReport
from castor.io.errors import CastorError

if TYPE_CHECKING:
    from datasets import Dataset


def read_hub(
    id: str, name: str | None, split: str, revision: str | None, report: RowReport | None = None
) -> Iterator[Record]:
    """The rows of one split, in order, memory-mapped. `id` is a hub id, a set known by name, or a local folder.

    `name` is the data set's configuration, or one of its folders where known_sets.py has them. A known set is read at
    its pinned revision; where there is none, `report` notes that the newest one is read.

    Raises CastorError when the hub cannot be reached or has no such data set, configuration, split or revision,
    and for data sets that need a script of their own, which `datasets` does not run.
    """
    folder = None
    if not Path(id).is_dir():
        finding = unknown_name(id) or (misspelt_id(id) if revision is None else None)
        if finding is not None:
            raise CastorError(finding)
        if (named := find_set(id)) is not None:
            id = named.id
            require_split(named, split)
            if name is not None:
                require_config(named, name)
                folder = named.folders.get(name)
            if revision is None and named.revision is None and report is not None:
                report.remark("no pinned revision is known, so the newest one is read; set revision to repeat it")
            revision = named.revision if revision is None else named.revisions.get(revision, revision)
    yield from _records(_load(id, None if folder else name, folder, split, revision), f"{id}[{split}]")


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote this folder with `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_saved(folder: Path, split: str) -> Iterator[Record]:
    """The rows of a folder written by `save_to_disk`, in order, memory-mapped; `split` chooses where it holds several.

    Raises CastorError when the folder is damaged or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        rows = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise CastorError(f"{folder} cannot be read as a saved data set ({error}); save or copy it again") from error
    if isinstance(rows, DatasetDict):
        if split not in rows:
            raise CastorError(f"{folder} has no split {split!r}; set split to one of {', '.join(rows)}")
        rows = rows[split]
    yield from _records(rows, f"{folder}[{split}]")


def _load(id: str, name: str | None, folder: str | None, split: str, revision: str | None) -> Dataset:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(id, name=name, data_dir=folder, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if isinstance(error, RuntimeError) and "scripts are no longer supported" not in str(error):
            raise
        wanted = f"{id} (split {split!r}" + (f", name {name!r}" if name else "")
        wanted += (f", folder {folder!r}" if folder else "") + (f", revision {revision!r}" if revision else "") + ")"
        cause = str(error.__cause__ or error).strip() or type(error).__name__
        raise CastorError(
            f"cannot load the data set {wanted}: {cause.splitlines()[0]}; check these names and the network, or use"
            " local files: download the data set elsewhere and give the path of its .jsonl, .json, .parquet or .csv"
            " file, or of a folder that save_to_disk wrote, as source"
        ) from error


def _records(rows: Dataset, place: str) -> Iterator[Record]:
    for number, row in enumerate(rows, start=1):
        yield Record(f"{place}:row {number}", dict(row))
