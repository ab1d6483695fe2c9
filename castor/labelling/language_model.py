"""Preference labels from a language model behind an OpenAI-compatible URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from castor.config.assess import ChatServer
from castor.data.rows.schemas import Exchange
from castor.scoring.chat_judge import judge_pairs, judge_safety


def annotate(
    server: ChatServer, rows: Sequence[dict[str, Any]], on: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """The rows with the labels the model gave: six requests a row, two for its safety flags, four for its preferences.

    What the model did not answer, and a tie, is null: a stage that needs that label drops and counts the row. A safe
    response ranks above an unsafe one whatever the model preferred, as in the papers. `on` is told how many requests
    are done, and of how many. Raises CastorError when the server cannot be reached.
    """
    pairs = [(Exchange(row["prompt"], row["response_0"]), Exchange(row["prompt"], row["response_1"])) for row in rows]
    answers = [answer for pair in pairs for answer in pair]
    total, every = 6 * len(rows), np.arange(len(rows))
    unsafe = judge_safety(server, answers, np.arange(len(answers)), lambda done, _: on(done, total))
    helpful = judge_pairs(server, pairs, "more helpful", every, lambda done, _: on(2 * len(rows) + done, total))
    harmless = judge_pairs(server, pairs, "less harmful", every, lambda done, _: on(4 * len(rows) + done, total))
    labelled = []
    for i, row in enumerate(rows):
        safe = [not unsafe.said[j] if unsafe.given[j] else None for j in (2 * i, 2 * i + 1)]
        safer = int(harmless.said[i]) if harmless.given[i] else None
        if set(safe) == {True, False}:
            safer = safe.index(True)
        better = int(helpful.said[i]) if helpful.given[i] else None
        labels = (None if flag is None else bool(flag) for flag in safe)
        flags = dict(zip(("is_response_0_safe", "is_response_1_safe"), labels, strict=True))
        labelled.append({**row, **flags, "better_response_id": better, "safer_response_id": safer})
    return labelled
