"""Raw rows from a data set of the Hugging Face hub, or from a local folder the `datasets` library can load."""

from collections.abc import Iterator

from castor.data.files import Record
from castor.errors import CastorError


def read_hub(id: str, name: str | None, split: str, revision: str | None) -> Iterator[Record]:
    """The rows of one split, in order. `id` is a hub id or a local folder; `name` is the data set's configuration.

    Raises CastorError when the hub cannot be reached or has no such data set, configuration, split or revision,
    and for data sets that are loaded by a script of their own, which `datasets` no longer runs.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(id, name=name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if isinstance(error, RuntimeError) and "scripts are no longer supported" not in str(error):
            raise
        wanted = f"{id} (split {split!r}" + (f", name {name!r}" if name else "")
        wanted += (f", revision {revision!r}" if revision else "") + ")"
        cause = str(error.__cause__ or error).strip() or type(error).__name__
        raise CastorError(
            f"cannot load the data set {wanted}: {cause.splitlines()[0]}; check these names and the network, or"
            " download the data set elsewhere and give the path of its .jsonl, .json or .parquet file as source"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield Record(f"{id}[{split}]:row {number}", dict(row))
