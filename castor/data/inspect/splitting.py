"""Splits by prompt: rows whose prompts are the same but for case, whitespace and punctuation stay together."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from castor.config.data import DataSource
from castor.data.inspect.check import source_name
from castor.data.inspect.leaks import prompt_digest
from castor.data.rows.fields import plain
from castor.data.rows.load import stream_every_kind
from castor.data.rows.schemas import Key
from castor.data.sources.read import Kind
from castor.data.sources.report import RowReport, require_usable
from castor.io.errors import CastorError
from castor.io.files import atomic_write


def split_names(count: int) -> list[str]:
    """Names of `count` splits: train and test, with validation between them where there are three."""
    usual = {1: ["train"], 2: ["train", "test"], 3: ["train", "validation", "test"]}
    return usual.get(count) or [f"part_{index}" for index in range(count)]


def split_source(
    source: DataSource, folder: Path, shares: Sequence[float], seed: int, kind: Kind = "preference"
) -> tuple[dict[Path, int], RowReport]:
    """Write the good rows of `source` as they were read, NaN as null, to one JSON Lines file a split, in their order.

    Prompts are ordered by a hash of `seed` and dealt out so that each split's number of *rows* comes as near to its
    share as whole prompts allow. The source is read twice and never held in memory. Returns the rows of each file.

    Raises CastorError for shares that are not positive or do not sum to 1, a split that would be empty or would
    overwrite the source, a row JSON cannot hold, and a source that cannot be read or has hardly any usable row.
    """
    if len(shares) < 2 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        given = " ".join(f"{share:g}" for share in shares)
        raise CastorError(f"shares {given} are not two or more positive numbers with sum 1; write --shares 0.9 0.1")
    paths = [folder / f"{name}.jsonl" for name in split_names(len(shares))]
    if Path(source.source).expanduser().resolve() in [path.resolve() for path in paths]:
        raise CastorError(f"the splits would overwrite their source {source.source}; give another --out folder")
    report = RowReport()
    sizes = Counter(_group(good.row.key, seed) for good in stream_every_kind(source, report, kind))
    require_usable(report, source_name(source))
    split_of = _deal(sizes, shares)
    written = dict.fromkeys(paths, 0)
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_write(path)) for path in paths]
        for good in stream_every_kind(source, RowReport(), kind):
            split = split_of[_group(good.row.key, seed)]
            try:
                line = json.dumps(_without_nan(good.raw), ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise CastorError(
                    f"{good.location} holds a value JSON cannot ({error}); convert that column first"
                ) from error
            files[split].write(line + "\n")
            written[paths[split]] += 1
    return written, report


def _without_nan(value: Any) -> Any:
    """`value` with null for what is missing and Python's own types, at any depth."""
    value = plain(value)
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value


def _group(key: Key, seed: int) -> bytes:
    """A prompt's place in the order in which prompts are dealt out."""
    return hashlib.blake2b(prompt_digest(key), digest_size=16, salt=seed.to_bytes(16, "little")).digest()


def _deal(sizes: Counter[bytes], shares: Sequence[float]) -> dict[bytes, int]:
    """The split of every group: the one in whose stretch of the rows, laid end to end, the group's middle falls."""
    total, ends, done = sizes.total(), [], 0.0
    for share in shares:
        done += share
        ends.append(done)
    ends[-1] = 2.0  # rounding of the sum must not leave the last rows without a split
    split_of, before = {}, 0
    for group in sorted(sizes):
        middle = (before + sizes[group] / 2) / total
        split_of[group] = next(index for index, end in enumerate(ends) if middle < end)
        before += sizes[group]
    empty = set(range(len(shares))) - set(split_of.values())
    if empty:
        names = ", ".join(split_names(len(shares))[index] for index in sorted(empty))
        raise CastorError(
            f"{len(sizes):,} different prompts are too few for these shares: {names} would be empty;"
            " choose more even shares"
        )
    return split_of
