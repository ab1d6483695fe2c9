"""One pass over every row of a source, whatever kind of rows it has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

from castor.config.data import DataSource
from castor.data.rows.schemas import (
    PreferenceRow,
    PromptRow,
    QARow,
    detect_schema,
    parse_preference,
    parse_prompt_row,
    parse_qa,
)
from castor.data.sources.read import Kind, raw_records
from castor.data.sources.record import Record, RowError
from castor.data.sources.report import RowReport

LOOKAHEAD = 1000  # rows read before a row without any response is taken for a prompt, or for a damaged row

AnyRow = PreferenceRow | QARow | PromptRow


class ScannedRow(NamedTuple):
    """One good row: where it stands, as it was read, and parsed.

    Its kind is preference (two responses), qa (one, with a label), demonstration (one, without) or prompt (none).
    """

    location: str
    kind: Kind
    raw: dict[str, Any]
    row: AnyRow

    def answers(self) -> list[QARow]:
        """Every response of the row with its labels."""
        match self.row:
            case PreferenceRow():
                return [self.row.qa(0), self.row.qa(1)]
            case QARow():
                return [self.row]
            case _:
                return []


def scan(source: DataSource, report: RowReport, kind: Kind = "preference") -> Iterator[ScannedRow]:
    """The good rows of `source`, in order and one at a time; the others go to `report`.

    Rows are told apart by their fields. A row without a response is a prompt in a set of prompts only, and a damaged
    row where any of the first LOOKAHEAD rows has a response. `kind` is what the synthetic corpus is to make.
    `source.limit` counts good rows. Raises CastorError when the source cannot be read, or a row is bad under `strict`.
    """
    records = raw_records(source, None, kind, report)
    first = list(islice(records, LOOKAHEAD))
    prompts_only = not any(_has_response(record) for record in first)
    for location, raw in chain(first, records):
        try:
            if isinstance(raw, RowError):
                raise raw
            row = _parse(raw, prompts_only)
        except RowError as error:
            report.drop(location, error, raw if isinstance(raw, dict) else None, source.strict)
            continue
        report.keep(row)
        yield ScannedRow(location, _kind(row), raw, row)
        if report.kept == source.limit:
            return


def _has_response(record: Record) -> bool:
    if isinstance(record.raw, RowError):
        return False
    try:
        detect_schema(record.raw)
    except RowError:
        return False
    return True


def _parse(raw: dict[str, Any], prompts_only: bool) -> AnyRow:
    try:
        schema = detect_schema(raw)
    except RowError:
        if not prompts_only:
            raise
        return parse_prompt_row(raw)
    return parse_preference(raw) if schema == "preference" else parse_qa(raw)


def _kind(row: AnyRow) -> Kind:
    if isinstance(row, PromptRow):
        return "prompt"
    if isinstance(row, PreferenceRow):
        return "preference"
    unlabelled = row.is_safe is None and row.category is None and row.severity_level is None
    return "demonstration" if unlabelled else "qa"
