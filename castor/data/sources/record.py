"""One raw row, and what makes a row bad."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

Reason = Literal[
    "malformed line",
    "missing field",
    "wrong type",
    "invalid text",
    "empty prompt",
    "empty response",
    "identical responses",
    "malformed conversation",
    "different conversations",
    "unknown category",
    "label vector of the wrong width",
    "category_id contradicts the category",
    "id out of range",
    "severity out of range",
    "safer response is the unsafe one",
    "is_safe contradicts the categories",
    "missing label",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class RowError(ValueError):
    """One row cannot be used. `reason` is one of REASONS and is counted; `detail` says what this row has."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Record(NamedTuple):
    """One raw row and where it stands (`file:line`, or `file:row N` where lines mean nothing; both count from 1).

    `raw` is a RowError when this row cannot even be read while its neighbours can.
    """

    location: str
    raw: dict[str, Any] | RowError
