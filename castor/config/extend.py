"""Config files that build on others: `extends`, at the top of a file and in a run.

- `extends: FILE` (or a list of files) at the top: the files, relative to the one that names them, are laid over each
  other in order, and the file itself over the result.
- Laid over: mappings are merged key by key; anything else (a number, a text, a list) is replaced. `null` removes what
  lies below, so that the option has its default again.
- `extends: NAME` in an entry of `rlhf`, `moderation` or `dpo`: it starts as a copy of the entry NAME that lies below.
- The key `*` speaks of every mapping that lies below in its place, such as all runs under `rlhf`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from castor.io.errors import CastorError
from castor.io.files import local_path

EXTENDS, EVERY = "extends", "*"
NAMED = ("rlhf", "moderation", "dpo")  # sections whose entries have names of the user's choice

Values = dict[str, Any]


def laid_over(below: Values, path: Path, read: Callable[[Path], Values], seen: tuple[Path, ...] = ()) -> Values:
    """`below` with the files that `path` extends and `path` itself laid over it; `read` gives the mapping of one file.

    Raises CastorError for a file that extends itself, and where `extends` names nothing.
    """
    if path.resolve() in seen:
        raise CastorError(f"{path} extends itself, by way of {seen[-1]}: remove one of the two extends")
    values = read(path)
    names = values.pop(EXTENDS, [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CastorError(f"{path}: extends must be a file, or a list of files")
    for name in names:
        below = laid_over(below, path.parent / local_path(name), read, (*seen, path.resolve()))
    return merged(below, _entries_copied(below, values, path))


def merged(below: Values, above: Values) -> Values:
    """`above` laid over `below`, what it says of every section first. Neither is changed."""
    result = dict(below)
    if EVERY in above:
        every = above[EVERY]
        if not isinstance(every, dict):
            raise CastorError(f"the key '*' stands for every section in its place and needs keys of its own: {every!r}")
        result |= {name: merged(part, every) for name, part in below.items() if isinstance(part, dict)}
    for key, value in above.items():
        if key == EVERY:
            continue
        if value is None and key in result:
            del result[key]
        elif isinstance(value, dict):
            part = result.get(key)
            result[key] = merged(part if isinstance(part, dict) else {}, value)
        else:
            result[key] = value
    return result


def without_removed(values: Values) -> Values:
    """Without what an override has set to null of the sections `NAMED`: entries, or a whole section."""
    result = {key: value for key, value in values.items() if value is not None or key not in NAMED}
    for section in NAMED:
        if isinstance(entries := values.get(section), dict):
            result[section] = {name: entry for name, entry in entries.items() if entry is not None}
    return result


def _entries_copied(below: Values, values: Values, path: Path) -> Values:
    """`values`, with the entry that `extends: NAME` names under each entry that has it."""
    result = dict(values)
    for section in NAMED:
        entries, known = values.get(section), below.get(section)
        if not isinstance(entries, dict):
            continue
        known = known if isinstance(known, dict) else {}
        result[section] = {}
        for name, entry in entries.items():
            if isinstance(entry, dict) and EXTENDS in entry:
                other = str(entry[EXTENDS])
                if not isinstance(known.get(other), dict):
                    raise CastorError(
                        f"{path}: {section}.{name} extends {other!r}, which is none of the entries of the extended "
                        f"files: {', '.join(known) or 'there are none'}"
                    )
                entry = merged(known[other], {key: value for key, value in entry.items() if key != EXTENDS})
            result[section][name] = entry
    return result
