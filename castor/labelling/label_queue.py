"""Pairs of responses that wait for a person's labels, and the same pairs with them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from castor.data.rows.schemas import parse_row
from castor.data.sources.files import read_records
from castor.data.sources.record import RowError
from castor.io.errors import CastorError

LABELS = ("is_response_0_safe", "is_response_1_safe", "better_response_id", "safer_response_id")


def unlabelled_pairs(prompt: str, responses: Sequence[str], rng: random.Random, count: int) -> list[dict[str, Any]]:
    """At most `count` pairs of different responses as PKU-SafeRLHF rows whose labels are null, drawn at random.

    Blank and repeated responses are left out, so there may be fewer pairs, or none.
    """
    distinct = list(dict.fromkeys(response for response in responses if response.strip()))
    candidates = [pair for pair in itertools.combinations(distinct, 2) if pair[0].strip() != pair[1].strip()]
    rows = []
    for pair in rng.sample(candidates, min(count, len(candidates))):
        first, second = rng.sample(pair, 2)
        rows.append({"prompt": prompt, "response_0": first, "response_1": second, **dict.fromkeys(LABELS)})
    return rows


def read_labelled(path: Path, queue: Path) -> tuple[list[dict[str, Any]], int]:
    """The labelled rows, and how many pairs of the queue have none: a pair may be left out, or have only nulls.

    Raises CastorError, naming the line, for a row that is not of the queue, lacks one of its labels or contradicts
    itself, and when no row is labelled.
    """
    waiting = {_pair(record.raw) for record in read_records(queue) if not isinstance(record.raw, RowError)}
    total, rows = len(waiting), []
    for location, raw in read_records(path):
        if isinstance(raw, RowError):
            raise CastorError(f"{location}: {raw.reason} ({raw.detail}): correct the line")
        try:
            row = parse_row(raw)
        except RowError as error:
            raise CastorError(f"{location}: {error.reason} ({error.detail}): correct the row, or take it out") from None
        labels = {label: getattr(row, label, None) for label in LABELS}
        missing = [label for label, value in labels.items() if value is None]
        if len(missing) == len(LABELS):
            continue
        if missing:
            raise CastorError(f"{location} has no {', '.join(missing)}: fill it in, or take the row out")
        if _pair(raw) not in waiting:
            raise CastorError(f"{location} is no pair of {queue}, or is there twice: label the rows of that file")
        waiting.remove(_pair(raw))
        rows.append(raw | labels)
    if not rows:
        raise CastorError(f"{path} holds no labelled row: fill in {', '.join(LABELS)} of the rows of {queue}")
    return rows, total - len(rows)


def _pair(raw: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(raw.get(name) for name in ("prompt", "response_0", "response_1"))
