"""Good rows from any source, as lists. Every bad row is dropped and counted by reason, or is an error with `strict`."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from castor.config.data import SYNTHETIC, DataSource
from castor.data.files import Record, is_data_file, read_records
from castor.data.hub import read_hub
from castor.data.hygiene import RowReport
from castor.data.pairing import safety_pairs
from castor.data.rows import PreferenceRow, QARow, RowError, detect_schema, parse_preference, parse_prompt, parse_qa
from castor.errors import CastorError

PreferenceLabel = Literal["better", "safer", "safe_flags"]
QALabel = Literal["is_safe", "category", "severity_level"]
Row = TypeVar("Row")

STAGE = "stage:"
STAGE_ROWS = "rows.jsonl"
SYNTHETIC_ROWS = 2000  # what the synthetic corpus makes when a source sets no limit
MIN_KEPT_SHARE = 0.01  # fewer good rows than this share point at a wrong file or schema, not at dirty data


def load_preferences(
    source: DataSource, report: RowReport, run_dir: Path | None, need: Collection[PreferenceLabel] = ()
) -> list[PreferenceRow]:
    """Preference rows in the order of the source; QA rows that share a prompt follow as safety pairs (see `pairing`).

    `need` names the labels the caller cannot do without: `better` and `safer` (the ids), `safe_flags` (both is_safe
    flags). A row without one is dropped as "missing label". `source.limit` counts the rows returned.

    Raises CastorError when the source cannot be read, no (or hardly any) row is usable, or a row is bad under `strict`.
    """
    answers: list[QARow] = []

    def parse(raw: dict[str, Any]) -> PreferenceRow | None:
        if detect_schema(raw) == "preference":
            row = parse_preference(raw)
            _require_preference(row, need)
            return row
        answer = parse_qa(raw)
        if answer.is_safe is None:
            raise RowError("missing label", "a QA row without is_safe cannot be paired")
        if "better" in need and source.helpfulness is None:
            raise RowError("missing label", "QA rows have no helpfulness label; helpfulness: longer names a stand-in")
        answers.append(answer)
        return None

    rows = _good_rows(source, report, _records(source, run_dir, "preference"), parse)
    rows += _paired(answers, source, report, need, None if source.limit is None else source.limit - len(rows))
    return _enough(rows, source, report)


def load_qa(source: DataSource, report: RowReport, run_dir: Path | None, need: Collection[QALabel] = ()) -> list[QARow]:
    """QA rows in the order of the source, for moderation; a preference row gives two, one for each response.

    A row without a label named in `need` is dropped as "missing label". `source.limit` counts the rows of the source.
    Raises CastorError as `load_preferences`.
    """

    def parse(raw: dict[str, Any]) -> list[QARow]:
        if detect_schema(raw) == "preference":
            pair = parse_preference(raw)
            answers = [pair.qa(0), pair.qa(1)]
        else:
            answers = [parse_qa(raw)]
        for answer in answers:
            _require_labels(answer, need)
        return answers

    groups = _good_rows(source, report, _records(source, run_dir, "qa"), parse)
    return _enough([row for group in groups for row in group], source, report)


def load_demonstrations(source: DataSource, report: RowReport, run_dir: Path | None) -> list[QARow]:
    """Prompts with the response to imitate, in the order of the source (SFT and the PTX term).

    QA rows are taken as they are, whatever their labels. A preference row gives its better response, or its safer one
    when it has no better_response_id; a row with neither id is dropped. Raises CastorError as `load_preferences`.
    """

    def parse(raw: dict[str, Any]) -> QARow:
        if detect_schema(raw) == "qa":
            return parse_qa(raw)
        row = parse_preference(raw)
        chosen = row.safer_response_id if row.better_response_id is None else row.better_response_id
        if chosen is None:
            raise RowError("missing label", "neither better_response_id nor safer_response_id says what to imitate")
        return row.qa(chosen)

    return _enough(_good_rows(source, report, _records(source, run_dir, "demonstration"), parse), source, report)


def load_prompts(source: DataSource, report: RowReport, run_dir: Path | None) -> list[str]:
    """The distinct prompts of rows of any kind, in the order they first appear.

    Raises CastorError as `load_preferences`.
    """
    seen: set[str] = set()

    def parse(raw: dict[str, Any]) -> str | None:
        prompt = parse_prompt(raw)
        if prompt in seen:
            report.set_aside["repeated prompts"] += 1
            return None
        seen.add(prompt)
        return prompt

    return _enough(_good_rows(source, report, _records(source, run_dir, "prompt"), parse), source, report)


def _good_rows(
    source: DataSource, report: RowReport, records: Iterable[Record], parse: Callable[[dict[str, Any]], Row | None]
) -> list[Row]:
    """Parse records until `source.limit` rows are good. `parse` returns None for a row it has accounted for itself."""
    rows: list[Row] = []
    for location, raw in records:
        try:
            if isinstance(raw, RowError):
                raise raw
            row = parse(raw)
        except RowError as error:
            report.drop(location, error, raw if isinstance(raw, dict) else None, source.strict)
            continue
        if row is not None:
            report.kept += 1
            rows.append(row)
            if len(rows) == source.limit:
                break
    return rows


def _paired(
    answers: list[QARow], source: DataSource, report: RowReport, need: Collection[PreferenceLabel], limit: int | None
) -> list[PreferenceRow]:
    """Safety pairs of `answers`. Answers outside every pair are good rows without a use: set aside, not dropped."""
    pairs = safety_pairs(answers, source.helpfulness)
    usable = (pair for pair in pairs if "better" not in need or pair.better_response_id is not None)
    rows = list(islice(usable, limit))
    used = {(pair.prompt, text) for pair in rows for text in (pair.response_0, pair.response_1)}
    kept = sum((answer.prompt, answer.response) in used for answer in answers)
    report.kept += kept
    if kept < len(answers):
        report.set_aside["QA rows in no safety pair"] += len(answers) - kept
    return rows


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


def _enough(rows: list[Row], source: DataSource, report: RowReport) -> list[Row]:
    read = report.kept + len(report.dropped)
    if rows and report.kept >= MIN_KEPT_SHARE * read:
        return rows
    how_many = "no usable rows" if not rows else "hardly any usable rows"
    message = f"{source.source} has {how_many} for this use: {report.summary()}"
    if report.dropped:
        first = report.dropped[0]
        message += f"; the first dropped one: {first.location}: {first.reason} ({first.detail})"
    raise CastorError(f"{message}; mend the rows or choose another source")


def _records(source: DataSource, run_dir: Path | None, kind: str) -> Iterator[Record]:
    """The raw rows of `source`; `kind` chooses what the synthetic corpus makes."""
    name = source.source
    if name == SYNTHETIC:
        return _synthetic(source, kind)
    if name.startswith(STAGE):
        return read_records(_stage_rows(name, run_dir))
    path = Path(name).expanduser()
    if path.is_file() or (is_data_file(name) and not path.is_dir()):
        return read_records(path)
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise CastorError(f"there is no file or folder {name}; check the path given as source")
    return read_hub(str(path), source.name, source.split, source.revision)


def _stage_rows(name: str, run_dir: Path | None) -> Path:
    stage = name.removeprefix(STAGE)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", stage):
        raise CastorError(f"{name!r} names no stage; write stage: and the stage's name, such as stage:collect")
    if run_dir is None:
        raise CastorError(
            f"{name} means the rows of a stage of this run, but there is no run folder; give a file instead"
        )
    path = run_dir / stage / STAGE_ROWS
    if not path.is_file():
        raise CastorError(f"stage {stage} has written no rows yet (no file {path}); run that stage first")
    return path


def _synthetic(source: DataSource, kind: str) -> Iterator[Record]:
    from castor.data.synthetic import corpus

    make: Callable[..., Iterable[Any]] = {
        "preference": corpus.preference_rows,
        "qa": corpus.qa_rows,
        "demonstration": corpus.demonstrations,
        "prompt": corpus.prompts,
    }[kind]
    made = make(source.synthetic, source.split, source.limit or SYNTHETIC_ROWS)
    for number, row in enumerate(made, start=1):
        yield Record(f"{SYNTHETIC}/{source.split}:row {number}", {"prompt": row} if isinstance(row, str) else row)
