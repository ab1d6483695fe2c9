"""What `castor data check` finds in a source: rows kept and dropped, labels, repeats, and prompts shared elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from castor.config.data import SYNTHETIC, DataSource
from castor.data.inspect.leaks import Leak, PromptIndex
from castor.data.inspect.repeats import Repeats
from castor.data.rows.load import stream_every_kind
from castor.data.rows.schemas import AnyRow, PreferenceRow, PromptRow
from castor.data.sources.read import Kind
from castor.data.sources.report import RowReport, require_usable
from castor.io.files import write_json, write_jsonl

LABELS = ("better_response_id", "safer_response_id", "is_safe", "category", "severity_level")
"""The labels of both kinds of rows; the last three belong to a response, and a pair counts when both have theirs.
A prompt without a response may have the category it was written for."""


@dataclass
class SourceCheck:
    """The findings on one source."""

    name: str
    report: RowReport
    prompts: PromptIndex
    leaks: list[Leak]
    kinds: Counter[Kind] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)  # rows that have the label
    values: dict[str, Counter[Any]] = field(default_factory=dict)  # of the labels with two classes
    repeats: Repeats = field(default_factory=Repeats)

    def warnings(self) -> list[str]:
        """Sentences about what would hurt training though every row is well formed."""
        found = []
        for label, values in self.values.items():
            if len(values) == 1:
                value, count = next(iter(values.items()))
                found.append(f"one class only: {label} is {str(value).lower()} in all {count:,} places it stands")
        if len(self.kinds) > 1:
            found.append("rows of several kinds: " + ", ".join(f"{n:,} {kind}" for kind, n in self.kinds.most_common()))
        for label, count in self.repeats.contradicted().items():
            found.append(f"contradictory {label} on {count:,} texts that stand more than once")
        for leak in self.leaks:
            if leak.rows:
                found.append(f"{leak.rows:,} rows have a prompt that is also in {leak.with_name}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """All counts, for JSON."""
        return {
            "source": self.name,
            "rows": self.report.total,
            "kept": self.report.kept,
            "dropped": dict(self.report.reasons()),
            "set_aside": dict(self.report.set_aside),
            "unread": {f"{fields} beside {read}": count for (fields, read), count in self.report.unread.items()},
            "kinds": dict(self.kinds),
            "labels": {label: self.labels[label] for label in LABELS},
            "values": {
                label: {str(value).lower(): n for value, n in values.items()} for label, values in self.values.items()
            },
            "prompts": len(self.prompts.exact),
            "prompts_normalised": len(self.prompts.normalised),
            "duplicates": self.repeats.exact_duplicates,
            "duplicates_normalised": self.repeats.normalised_duplicates,
            "repeated_answers": self.repeats.repeated_answers,
            "contradictions": dict(self.repeats.contradicted()),
            "leaks": [
                {"with": leak.with_name, "exact": leak.exact, "normalised": leak.normalised, "rows": leak.rows}
                for leak in self.leaks
            ],
            "warnings": self.warnings(),
        }


def row_kind(row: AnyRow) -> Kind:
    """preference (two responses), qa (one, with a label), demonstration (one, without) or prompt (none)."""
    if isinstance(row, PromptRow):
        return "prompt"
    if isinstance(row, PreferenceRow):
        return "preference"
    unlabelled = row.is_safe is None and row.category is None and row.severity_level is None
    return "demonstration" if unlabelled else "qa"


def source_name(source: DataSource) -> str:
    """How a source is called in reports: its name, and its split where it has splits."""
    if Path(source.source).expanduser().is_file():
        return source.source
    name = f"{source.source}/{source.name}" if source.name else source.source
    return f"{name}[{source.split}]" + (f"@{source.revision}" if source.revision else "")


def index_prompts(source: DataSource, kind: Kind) -> PromptIndex:
    """The prompts of a source's good rows. Raises CastorError when it cannot be read or has none."""
    report, index = RowReport(), PromptIndex(source_name(source))
    for good in stream_every_kind(source, report, kind):
        index.add(good.row.key, good.location)
    require_usable(report, index.name)
    return index


def check_source(source: DataSource, kind: Kind = "preference", earlier: Sequence[PromptIndex] = ()) -> SourceCheck:
    """Read all of `source` once and say what is in it; prompts are looked up in every set of `earlier`.

    `kind` is what the synthetic corpus is to make. Raises CastorError when the source cannot be read or has hardly any
    usable row, and for a bad row under `strict`.
    """
    name = source_name(source)
    report = RowReport()
    check = SourceCheck(name, report, PromptIndex(name), [Leak(name, other.name) for other in earlier])
    for good in stream_every_kind(source, report, kind):
        check.kinds[row_kind(good.row)] += 1
        check.prompts.add(good.row.key, good.location)
        check.repeats.add(good)
        _count_labels(check, good.row)
        for leak, other in zip(check.leaks, earlier, strict=True):
            leak.look(good.row.key, good.location, other)
    return check


def write_check(check: SourceCheck, folder: Path) -> list[Path]:
    """Write check.json and the offending rows (dropped, contradictions, duplicates, leaks: .jsonl).

    Returns the files written; a list of which there is nothing now is removed.
    """
    write_json(folder / "check.json", check.as_dict())
    check.report.write(folder / "dropped.jsonl")
    shared = [{"shared_by": leak.with_name, **prompt} for leak in check.leaks for prompt in leak.prompts]
    lists = {
        "contradictions.jsonl": check.repeats.contradictions,
        "duplicates.jsonl": check.repeats.duplicates,
        "leaks.jsonl": shared,
    }
    for name, rows in lists.items():
        if rows:
            write_jsonl(folder / name, rows)
        else:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in ("check.json", "dropped.jsonl", *lists) if (folder / name).exists()]


def default_folder(source: DataSource) -> Path:
    """The folder for the findings on a source where none is given."""
    name = source_name(source) if source.source != SYNTHETIC else f"synthetic-{source.split}"
    return Path("runs", "data-check", "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-."))


def _count_labels(check: SourceCheck, row: AnyRow) -> None:
    answers = row.answers()
    if isinstance(row, PreferenceRow):
        for label, chosen in zip(LABELS[:2], (row.better_response_id, row.safer_response_id), strict=True):
            if chosen is not None:
                check.labels[label] += 1
                check.values.setdefault(label, Counter())[chosen] += 1
    if isinstance(row, PromptRow):
        check.labels["category"] += row.category is not None
    for label in LABELS[2:]:
        check.labels[label] += bool(answers) and all(getattr(answer, label) is not None for answer in answers)
    for answer in answers:
        if answer.is_safe is not None:
            check.values.setdefault("is_safe", Counter())[answer.is_safe] += 1
