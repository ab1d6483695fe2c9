"""What the name of a file says about it. Reads nothing."""

from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

FORMATS = (".jsonl", ".json", ".parquet", ".csv")
COMPRESSIONS = (".gz", ".xz", ".zst")


class FileKind(NamedTuple):
    """`format` is one of FORMATS; `compression` is one of COMPRESSIONS, or empty."""

    format: str
    compression: str


def is_url(name: str) -> bool:
    """Whether `name` is a URL such as s3://bucket/rows.jsonl rather than a local path."""
    return "://" in name


def file_kind(name: str) -> FileKind | None:
    """The kind of a path or URL, from its last suffixes; None for a kind that is not read."""
    if is_url(name):
        url = urlsplit(name.partition("::")[0])
        name = f"{url.netloc}{url.path}"
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return FileKind(suffixes[-1], compression) if suffixes and suffixes[-1] in FORMATS else None


def is_data_file(name: str) -> bool:
    """Whether a path or URL ends like a file that `files.read_records` reads."""
    return file_kind(name) is not None
