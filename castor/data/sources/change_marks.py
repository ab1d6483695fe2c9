"""A mark of the data behind a name that changes when the data do, made without reading them where possible."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from castor.config.data import SYNTHETIC, is_function
from castor.config.model import stage_of
from castor.data.sources.file_names import is_url
from castor.io.files import sha256_file
from castor.io.user_function import add_to_import_path

_URL_DETAILS = {"etag", "size", "mtime", "lastmodified", "modified", "updated", "created", "contentmd5", "versionid"}


def input_state(name: str) -> Any:
    """A JSON value that changes when what `name` stands for changes; None where that cannot be seen.

    `name` is what a config gives as a source of rows or as a model. A file: its hash. A folder: names, sizes and times
    of all its files but its README.md. A URL: what its file system says of size, time and etag. `module:function`: the
    hash of the module's source text (not of what it imports). A data set or model of the hub, the synthetic corpus and
    `stage:NAME` have None: the config alone decides them.
    """
    if name == SYNTHETIC or stage_of(name) is not None:
        return None
    if is_url(name):
        return _url_state(name)
    if is_function(name):
        return _module_hash(name.partition(":")[0])
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder_state(path)
    return sha256_file(path) if path.is_file() else None


def _url_state(url: str) -> dict[str, str] | None:
    """None for a URL that cannot be opened: reading it raises the error that says why."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        details = filesystem.info(path)
    except (ImportError, ValueError, OSError):
        return None
    known = {name.lower().replace("-", "").replace("_", ""): value for name, value in details.items()}
    return {name: str(known[name]) for name in sorted(_URL_DETAILS & known.keys()) if known[name] is not None}


def _module_hash(module: str) -> str | None:
    add_to_import_path()
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):  # calling the function raises the error that says why
        return None
    origin = None if spec is None or spec.origin is None else Path(spec.origin)
    return sha256_file(origin) if origin is not None and origin.is_file() else None


def _folder_state(folder: Path) -> list[tuple[str, int, int]]:
    card = folder / "README.md"  # meant for people, who edit it
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != card)
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
