"""Good rows from any source. Every bad row is dropped and counted by reason, or is an error with `strict`.

`stream_*` give rows one at a time, for a `store` or a count; `load_*` give the same rows as a list. A stream that ends
raises CastorError when no, or hardly any, row was usable; one that is not read to its end does not know.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from castor.config.data import DataSource
from castor.data.rows.fields import described
from castor.data.rows.readings import unread_fields
from castor.data.rows.safety_pairs import safety_pairs
from castor.data.rows.schemas import AnyRow, PreferenceRow, PromptRow, QARow, parse_prompt_row, parse_row
from castor.data.rows.single_preference import single_preference
from castor.data.sources.read import Kind, raw_records
from castor.data.sources.record import Record, RowError
from castor.data.sources.report import RowReport, require_usable

PreferenceLabel = Literal["better", "safer", "safe_flags"]
QALabel = Literal["is_safe", "category", "severity_level"]
Row = TypeVar("Row")


class GoodRow(NamedTuple, Generic[Row]):
    """A good row: where it stands, as it was read, and what was made of it."""

    location: str
    raw: dict[str, Any]
    row: Row


def stream_preferences(
    source: DataSource, report: RowReport, need: Collection[PreferenceLabel] = ()
) -> Iterator[PreferenceRow]:
    """Preference rows in the order of the source; QA rows that share a prompt follow as safety pairs (safety_pairs.py).

    `need` names the labels the caller cannot do without: `better` and `safer` (the ids), `safe_flags` (both is_safe
    flags). A row without one is dropped as "missing label". `source.limit` counts the rows returned. QA rows wait in
    memory until the source ends.

    Raises CastorError when the source cannot be read, no (or hardly any) row is usable, or a row is bad under `strict`.
    """
    answers: list[QARow] = []

    def parse(raw: dict[str, Any]) -> PreferenceRow | None:
        row = _row_with_responses(raw)
        if isinstance(row, QARow):
            _require_pairable(row, source, need)
            answers.append(row)
            return None
        if source.single_preference is not None:
            row = single_preference(row, source.single_preference)
        _require_preference(row, need)
        return row

    def paired() -> Iterator[PreferenceRow]:  # begins when the source has ended, so `answers` and `kept` are final
        limit = None if source.limit is None else source.limit - report.kept
        yield from _paired(answers, source, report, need, limit)

    rows = _good_rows(raw_records(source, "preference", report), source, report, parse)
    return _usable(chain((good.row for good in rows), paired()), source, report)


def stream_qa(source: DataSource, report: RowReport, need: Collection[QALabel] = ()) -> Iterator[QARow]:
    """QA rows in the order of the source, for moderation; a preference row gives two, one for each response.

    A row without a label named in `need` is dropped as "missing label". `source.limit` counts the rows of the source.

    Raises CastorError when the source cannot be read, no (or hardly any) row is usable, or a row is bad under `strict`.
    """

    def parse(raw: dict[str, Any]) -> tuple[QARow, ...]:
        answers = _row_with_responses(raw).answers()
        for answer in answers:
            _require_labels(answer, need)
        return answers

    rows = _good_rows(raw_records(source, "qa", report), source, report, parse)
    return _usable(chain.from_iterable(good.row for good in rows), source, report)


def stream_demonstrations(source: DataSource, report: RowReport) -> Iterator[QARow]:
    """Prompts with the response to imitate, in the order of the source (SFT and the PTX term).

    QA rows are taken as they are, whatever their labels. A preference row gives its better response, or its safer one
    when it has no better_response_id; a row with neither id is dropped.

    Raises CastorError when the source cannot be read, no (or hardly any) row is usable, or a row is bad under `strict`.
    """

    def parse(raw: dict[str, Any]) -> QARow:
        row = _row_with_responses(raw)
        if isinstance(row, QARow):
            return row
        chosen = row.safer_response_id if row.better_response_id is None else row.better_response_id
        if chosen is None:
            raise RowError("missing label", "neither better_response_id nor safer_response_id says what to imitate")
        return row.qa(chosen)

    rows = _good_rows(raw_records(source, "demonstration", report), source, report, parse)
    return _usable((good.row for good in rows), source, report)


def stream_prompts(source: DataSource, report: RowReport) -> Iterator[str]:
    """The texts of `stream_prompt_rows`."""
    return (row.prompt for row in stream_prompt_rows(source, report))


def stream_prompt_rows(source: DataSource, report: RowReport) -> Iterator[PromptRow]:
    """The distinct prompts of rows of any kind, in the order they first appear.

    A rollout begins with one prompt, so prompts in the middle of a conversation are set aside and counted.

    Raises CastorError when the source cannot be read, no (or hardly any) row is usable, or a row is bad under `strict`.
    """
    known: set[str] = set()

    def parse(raw: dict[str, Any]) -> PromptRow | None:
        row = parse_prompt_row(raw)
        if row.history:
            report.set_aside["multi-turn prompts"] += 1
            return None
        if row.prompt in known:
            report.set_aside["repeated prompts"] += 1
            return None
        known.add(row.prompt)
        return row

    rows = _good_rows(raw_records(source, "prompt", report), source, report, parse)
    return _usable((good.row for good in rows), source, report)


def stream_every_kind(source: DataSource, report: RowReport, kind: Kind = "preference") -> Iterator[GoodRow[AnyRow]]:
    """Rows of every kind as they stand, to inspect a source; this stream does not ask whether the rows are enough.

    `kind` is what the synthetic corpus is to make. `source.limit` counts good rows. Raises CastorError when the source
    cannot be read, or a row is bad under `strict`.
    """
    return _good_rows(raw_records(source, kind, report), source, report, parse_row)


def load_preferences(
    source: DataSource, report: RowReport, need: Collection[PreferenceLabel] = ()
) -> list[PreferenceRow]:
    """`stream_preferences` as a list."""
    return list(stream_preferences(source, report, need))


def load_qa(source: DataSource, report: RowReport, need: Collection[QALabel] = ()) -> list[QARow]:
    """`stream_qa` as a list."""
    return list(stream_qa(source, report, need))


def load_prompts(source: DataSource, report: RowReport) -> list[str]:
    """`stream_prompts` as a list."""
    return list(stream_prompts(source, report))


def load_prompt_rows(source: DataSource, report: RowReport) -> list[PromptRow]:
    """`stream_prompt_rows` as a list."""
    return list(stream_prompt_rows(source, report))


def _good_rows(
    records: Iterable[Record], source: DataSource, report: RowReport, parse: Callable[[dict[str, Any]], Row | None]
) -> Iterator[GoodRow[Row]]:
    """Parse records until `source.limit` rows are good. `parse` returns None for a row it has accounted for itself."""
    for location, raw in records:
        try:
            if isinstance(raw, RowError):
                raise raw
            row = parse(raw)
        except RowError as error:
            report.drop(location, error, raw if isinstance(raw, dict) else None, source.strict)
            continue
        if (unread := unread_fields(raw)) is not None:
            report.unread[unread] += 1
        if row is not None:
            report.keep(row)
            yield GoodRow(location, raw, row)
            if report.kept == source.limit:
                return


def _row_with_responses(raw: dict[str, Any]) -> PreferenceRow | QARow:
    row = parse_row(raw)
    if isinstance(row, PromptRow):
        raise RowError("missing field", f"neither response nor response_0 and response_1; {described(raw)}")
    return row


def _paired(
    answers: list[QARow], source: DataSource, report: RowReport, need: Collection[PreferenceLabel], limit: int | None
) -> Iterator[PreferenceRow]:
    """Safety pairs of `answers`. Answers outside every pair are good rows without a use: set aside, not dropped."""
    pairs = safety_pairs(answers, source.helpfulness)
    usable = (pair for pair in pairs if "better" not in need or pair.better_response_id is not None)
    used = set()
    for pair in islice(usable, limit):
        used |= {(pair.key, text) for text in (pair.response_0, pair.response_1)}
        yield pair
    kept = sum((answer.key, answer.response) in used for answer in answers)
    report.kept += kept
    if kept < len(answers):
        report.set_aside["QA rows in no safety pair"] += len(answers) - kept


def _require_pairable(row: QARow, source: DataSource, need: Collection[PreferenceLabel]) -> None:
    if row.is_safe is None:
        raise RowError("missing label", "a QA row without is_safe cannot be paired")
    if "better" in need and source.helpfulness is None:
        raise RowError("missing label", "QA rows have no helpfulness label; helpfulness: longer names a stand-in")


def _require_preference(row: PreferenceRow, need: Collection[PreferenceLabel]) -> None:
    if "better" in need and row.better_response_id is None:
        raise RowError("missing label", "better_response_id is absent or null")
    if "safer" in need and row.safer_response_id is None:
        raise RowError("missing label", "safer_response_id is absent or null")
    if "safe_flags" in need and None in (row.is_response_0_safe, row.is_response_1_safe):
        raise RowError("missing label", "is_response_0_safe or is_response_1_safe is absent or null")


def _require_labels(row: QARow, need: Collection[QALabel]) -> None:
    for label in need:
        if getattr(row, label) is None:
            raise RowError("missing label", f"{label} is absent or null")


def _usable(rows: Iterable[Row], source: DataSource, report: RowReport) -> Iterator[Row]:
    """`rows`; then an error when the source gave none, or hardly any of those it has."""
    yield from rows
    require_usable(report, source.source)
