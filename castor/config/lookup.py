"""Options by what somebody writes of them: a dotted name, a part of one, or one with names of a config in it."""

import difflib
from collections.abc import Iterable, Sequence

from castor.config.reference import NAME, Key, Parts


def find(query: str, known: Sequence[Key]) -> list[Key]:
    """The options that `query` names; empty if there is none.

    In a whole name, a name of the user's choice may stand as it is, as NAME, or be left out: `rlhf.ppo.steps`,
    `rlhf.NAME.steps` and `rlhf.steps` are one option. Without such an option, `query` may be the end of a name:
    `optimizer.lr` is the learning rate of every optimiser. The number of an entry of a list, as findings have it in
    `sft.data.0.source`, is passed over.
    """
    parts = tuple(part for part in query.split(".") if not part.isdigit())
    whole = [(fit, key) for key in known if (fit := _fit(parts, key.path, key.named)) is not None]
    if whole:
        best = max(fit for fit, _ in whole)
        return [key for fit, key in whole if fit == best]
    return [key for key in known if _is_end(parts, key)]


def _fit(parts: Parts, path: Parts, named: bool) -> int | None:
    """How many of `parts` stand literally in `path`, all of which they name; None where they do not name it."""
    if not parts:
        return 0 if all(part == NAME for part in path) else None
    if not path:
        return 0 if named and len(parts) == 1 else None
    fits = []
    if path[0] in (NAME, parts[0]):
        rest = _fit(parts[1:], path[1:], named)
        fits += [] if rest is None else [rest + (path[0] != NAME)]
    if path[0] == NAME:
        rest = _fit(parts, path[1:], named)
        fits += [] if rest is None else [rest]
    return max(fits, default=None)


def _is_end(parts: Parts, key: Key) -> bool:
    starts = (start for start, part in enumerate(key.path) if parts and part == parts[0])
    return any(_fit(parts, key.path[start:], key.named) is not None for start in starts)


def below(key: Key, known: Iterable[Key]) -> list[Key]:
    """The options that lie in `key`, not those further down."""
    return [each for each in known if each.path[:-1] == key.below]


def nearest(query: str, known: Sequence[Key]) -> str | None:
    """The name nearest to a query that names nothing: of the option it goes wrong at, if it starts right."""
    parts = query.split(".")
    for length in range(len(parts) - 1, 0, -1):
        start = ".".join(parts[:length])
        names = [each.path[-1] for key in find(start, known) for each in below(key, known)]
        if near := difflib.get_close_matches(parts[length], names, n=1, cutoff=0.5):
            return f"{start}.{near[0]}"
    names = [each.path[-1] for each in known]
    if near := difflib.get_close_matches(parts[-1], names, n=1, cutoff=0.5):
        return next(each.dotted for each in known if each.path[-1] == near[0])
    return None
