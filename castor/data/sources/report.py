"""What happened to the rows of one source: kept, dropped and why."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castor.data.sources.record import RowError
from castor.io.errors import CastorError
from castor.io.files import write_jsonl

_TEXT_FIELDS = ("prompt", "response", "response_0", "response_1", "instruction", "output", "chosen", "rejected")
_TEXT_CHARS = 200
_MIN_KEPT_SHARE = 0.01  # fewer good rows than this share point at a wrong file or schema, not at dirty data


@dataclass(frozen=True)
class DroppedRow:
    """A row that was left out. `texts` are its text fields, shortened."""

    location: str
    reason: str
    detail: str
    texts: dict[str, str]


class RowReport:
    """Counts the rows of one source; use a new one for every load.

    Rows are kept, dropped (bad: listed one by one) or set aside (good, but of no use here: counted only).
    """

    def __init__(self) -> None:
        self.kept = 0
        self.dropped: list[DroppedRow] = []
        self.set_aside: Counter[str] = Counter()
        self.unread: Counter[tuple[str, str]] = Counter()  # good rows by (fields left unread, fields read instead)
        self.repeated = 0  # kept rows that are equal, labels and all, to an earlier one
        self._remarks: list[str] = []
        self._row_hashes: set[int] = set()
        self._written: Path | None = None

    @property
    def total(self) -> int:
        """Rows read so far."""
        return self.kept + len(self.dropped) + self.set_aside.total()

    @property
    def notes(self) -> list[str]:
        """What a reader of the counts must know about the source."""
        unread = [
            f"in {count:,} rows {read} were read and {fields} left out"
            for (fields, read), count in self.unread.most_common()
        ]
        return self._remarks + unread

    def remark(self, note: str) -> None:
        """Add a note on the source as a whole."""
        self._remarks.append(note)

    def keep(self, row: object) -> None:
        """Count a good row, and whether it repeats an earlier one (by its 64-bit hash)."""
        self.kept += 1
        code = hash(row)
        self.repeated += code in self._row_hashes
        self._row_hashes.add(code)

    def drop(self, location: str, error: RowError, raw: Mapping[str, Any] | None, strict: bool) -> None:
        """Leave out one row. With `strict`, raises CastorError instead."""
        if strict:
            raise CastorError(
                f"{location}: {error.reason} ({error.detail}); mend the row, or set strict: false to drop and count it"
            )
        texts = {
            field: text if len(text) <= _TEXT_CHARS else text[:_TEXT_CHARS] + "…"
            for field in _TEXT_FIELDS
            if isinstance(text := (raw or {}).get(field), str)
        }
        self.dropped.append(DroppedRow(location, error.reason, error.detail, texts))

    def reasons(self) -> Counter[str]:
        """Dropped rows by reason."""
        return Counter(row.reason for row in self.dropped)

    def write(self, path: Path | str) -> None:
        """Write the dropped rows as JSON Lines, atomically. If there are none, a file from before is removed."""
        path = Path(path)
        if not self.dropped:
            path.unlink(missing_ok=True)
            return
        write_jsonl(
            path, ({"location": r.location, "reason": r.reason, "detail": r.detail, **r.texts} for r in self.dropped)
        )
        self._written = path

    def summary(self) -> str:
        """One line: what was kept, dropped and set aside, and where the dropped rows are listed."""
        parts = [f"kept {self.kept:,} of {self.total:,} rows"]
        if self.dropped:
            listed = f" (see {self._written})" if self._written else ""
            parts.append(f"dropped {_counts(self.reasons())}{listed}")
        if self.set_aside:
            parts.append(f"set aside {_counts(self.set_aside)}")
        if self.repeated:
            parts.append(f"{self.repeated:,} of the kept rows repeat an earlier one")
        return "; ".join(parts + self.notes)


def require_usable(report: RowReport, name: str) -> None:
    """Raise CastorError when no row, or hardly any, is good: that points at a wrong file, not at dirty data."""
    if report.kept and report.kept >= _MIN_KEPT_SHARE * (report.kept + len(report.dropped)):
        return
    how_many = "hardly any usable rows" if report.kept else "no usable rows" if report.total else "no rows"
    message = f"{name} has {how_many}: {report.summary()}"
    if report.dropped:
        first = report.dropped[0]
        message += f"; the first dropped one: {first.location}: {first.reason} ({first.detail})"
    raise CastorError(f"{message}; mend the rows or choose another source")


def require_both_classes(flags: Iterable[bool | None], label: str, what: str) -> None:
    """Raise CastorError unless both true and false occur; `label` names the field and `what` the rows' use.

    A loss or a metric of two classes means nothing where one is missing.
    """
    found: set[bool] = set()
    for value in flags:
        found |= set() if value is None else {value}
        if len(found) == 2:  # seldom later than in the first few of many rows
            return
    only = f"is {str(found.pop()).lower()} in every row" if found else "is known in no row"
    raise CastorError(f"{what}: {label} {only}, and both classes are needed; add rows of the other class")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counter.most_common())
