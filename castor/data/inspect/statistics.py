"""The figures of `castor data stats`: one pass over a source, every interval from resampled prompts."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict, Field

from castor.config.data import DataSource
from castor.data.inspect.check import row_kind, source_name
from castor.data.inspect.harm_counts import HarmCollector, HarmCounts
from castor.data.inspect.leaks import digest, prompt_digest
from castor.data.inspect.lengths import LengthCollector, Lengths
from castor.data.inspect.preference_agreement import Relation, RelationCollector
from castor.data.inspect.repeats import Repeats
from castor.data.rows.load import stream_every_kind
from castor.data.rows.schemas import PreferenceRow, PromptRow
from castor.data.sources.read import Kind
from castor.data.sources.report import RowReport, require_usable
from castor.statistics.bootstrap import Measure
from castor.statistics.prompt_counts import Cells


class RepeatCounts(BaseModel):
    """Rows and texts that stand more than once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows_exact: int = Field(description="Rows whose texts an earlier row had letter by letter.")
    rows_normalised: int = Field(description="The same but for case, whitespace and punctuation; exact ones included.")
    answers: int = Field(description="Responses given before to the same prompt.")
    contradictions: dict[str, int] = Field(description="Texts with contradictory labels, by label.")


class DataStatistics(BaseModel):
    """Everything the page shows. `None` stands where the rows do not hold what a figure needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    rows: int = Field(description="Rows read.")
    kept: int = Field(description="Good rows; every figure below is of these.")
    dropped: dict[str, int] = Field(description="Bad rows by reason.")
    kinds: dict[str, int] = Field(description="Good rows by kind: preference, qa, demonstration, prompt.")
    prompts: int = Field(description="Different prompts, letter by letter.")
    prompts_normalised: int = Field(
        description="Different prompts, those that differ in case, whitespace or punctuation only taken as one."
    )
    prompt_categories: dict[str, int] = Field(description="Prompts without a response by the category written for.")
    first_preferred: dict[str, Measure | None] = Field(
        description="By preference label: share of pairs where response 0 is preferred; far from a half, it is a trap."
    )
    harm: HarmCounts
    lengths: Lengths
    relations: list[Relation] = Field(description="All pairs first; empty when no pair has both preferences.")
    repeats: RepeatCounts
    seed: int = Field(description="Seed of the bootstrap.")


def measure(source: DataSource, kind: Kind = "preference", seed: int = 0) -> DataStatistics:
    """Read `source` once and measure it. `kind` is what the synthetic corpus is to make.

    Raises CastorError when the source cannot be read or has hardly any usable row.
    """
    name, report = source_name(source), RowReport()
    kinds: Counter[str] = Counter()
    prompt_categories: Counter[str] = Counter()
    exact, prompts = set[bytes](), set[bytes]()
    cells, repeats = Cells(), Repeats()
    harm, lengths, relation = HarmCollector(cells), LengthCollector(cells), RelationCollector(cells)
    for good in stream_every_kind(source, report, kind):
        row = good.row
        prompt = prompt_digest(row.key)
        exact.add(digest(*row.key))
        prompts.add(prompt)
        kinds[row_kind(row)] += 1
        repeats.add(good)
        for answer in row.answers():
            harm.add(prompt, answer)
            lengths.add(answer)
        if isinstance(row, PreferenceRow):
            lengths.add_pair(prompt, row)
            relation.add(prompt, row)
            _count_positions(cells, prompt, row)
        elif isinstance(row, PromptRow):
            prompt_categories.update(row.category or ())
    require_usable(report, name)
    relation.rank()
    draws = cells.draw(seed)
    return DataStatistics(
        source=name,
        rows=report.total,
        kept=report.kept,
        dropped=dict(report.reasons()),
        kinds=dict(kinds),
        prompts=len(exact),
        prompts_normalised=len(prompts),
        prompt_categories=dict(sorted(prompt_categories.items())),
        first_preferred={
            label: draws.share(f"{label} first", f"{label} pairs")
            for label in ("better_response_id", "safer_response_id")
            if draws.total(f"{label} pairs")
        },
        harm=harm.result(draws),
        lengths=lengths.result(draws),
        relations=relation.result(draws),
        repeats=RepeatCounts(
            rows_exact=repeats.exact_duplicates,
            rows_normalised=repeats.normalised_duplicates,
            answers=repeats.repeated_answers,
            contradictions=dict(repeats.contradicted()),
        ),
        seed=seed,
    )


def _count_positions(cells: Cells, prompt: bytes, row: PreferenceRow) -> None:
    """How often response 0 is preferred; `LengthCollector` counts the pairs."""
    if row.better_response_id is not None:
        cells.add(prompt, "better_response_id first", float(row.better_response_id == 0))
    if row.safer_response_id is not None:
        cells.add(prompt, "safer_response_id first", float(row.safer_response_id == 0))
