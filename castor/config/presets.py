"""What the presets in configs/ set, option by option."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import castor
from castor.config.base import Section
from castor.config.differences import written
from castor.config.extend import EXTENDS
from castor.config.reference import ROOTS, Key, Parts, keys
from castor.config.yaml_core import parse

FOLDER = Path(castor.__file__).parents[1] / "configs" if castor.__file__ else Path("configs")
"""Beside the code in a checkout; where Castor is installed without them, no preset is known."""

_Known = dict[tuple[Parts, type[Section]], Key]
Settings = dict[Parts, dict[str, list[str]]]
"""By the path of an option: the values that presets give it, and the names of those that do."""


def preset_settings(root: type[Section], folder: Path = FOLDER) -> Settings:
    """What every preset for `root` says itself; what it takes over from a file it extends is told of that file."""
    known = {(key.path, key.where): key for key in keys(root)}
    settings: Settings = {}
    for file in sorted(folder.rglob("*.yaml")):
        values = parse(file.read_text(encoding="utf-8"))
        values.pop(EXTENDS, None)
        if root is not _root(values):
            continue
        name = file.relative_to(folder).with_suffix("").as_posix()
        for path, value in _set(values, (), (root,), known):
            presets = settings.setdefault(path, {}).setdefault(written(value), [])
            if name not in presets:
                presets.append(name)
    return settings


def _root(values: dict[str, Any]) -> type[Section] | None:
    """Whose config it is: the first section that knows all its keys. None for another program's file."""
    return next((root for root in ROOTS.values() if values.keys() <= root.model_fields.keys()), None)


def _set(
    values: dict[str, Any], above: Parts, sections: tuple[type[Section], ...], known: _Known
) -> Iterator[tuple[Parts, Any]]:
    for name, value in values.items():
        path = (*above, name)
        key = next((known[path, section] for section in sections if (path, section) in known), None)
        if key is None:  # extends: NAME in an entry
            continue
        entries = value if isinstance(value, list) else [value]
        if not key.sections or not all(isinstance(entry, dict) for entry in entries):
            yield path, value
            continue
        for entry in entries:
            for part in entry.values() if key.named else [entry]:
                if isinstance(part, dict):
                    yield from _set(part, key.below, key.sections, known)
