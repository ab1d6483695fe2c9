"""The page of `castor data stats`: what a data set holds, each figure beside the table of its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from markupsafe import Markup

from castor.data.inspect.harm_counts import SEVERITIES, HarmCounts
from castor.data.inspect.lengths import LengthBias, LengthSummary
from castor.data.inspect.preference_agreement import MIN_RANKED, Relation
from castor.data.inspect.statistics import DataStatistics
from castor.io.files import write_text
from castor.reports import data_plots
from castor.reports.page import render
from castor.reports.wording import interval, number
from castor.statistics.bootstrap import Measure

LABEL_TITLES = {"better_response_id": "more helpful", "safer_response_id": "less harmful"}
PAIRS_SHOWN = 12
RANKED = (
    f"Where a prompt has {MIN_RANKED} or more compared responses, they are ranked by wins less losses under either"
    " preference; mean τ-b and Spearman's ρ are over those prompts."
)
NOT_RANKED = f"No prompt has {MIN_RANKED} compared responses, so nothing can be ranked within a prompt."
Cell = str | tuple[str, str]
"""What a table cell says, and what stands small below it."""


@dataclass(frozen=True)
class Table:
    """Numbers under named columns; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    folded: bool = False  # behind a click


@dataclass(frozen=True)
class Section:
    """One question about the data set: a figure, its numbers, how to read them, or why there are none."""

    title: str
    note: str = ""
    svg: Markup | None = None
    tables: list[Table] = field(default_factory=list)
    missing: str = ""


def write_data_page(path: str | Path, statistics: DataStatistics) -> None:
    """Write the page as one HTML file that loads nothing from elsewhere."""
    page = render(
        "data.html.j2",
        title=f"Castor data: {statistics.source}",
        statistics=statistics,
        headline=headline(statistics),
        warnings=warnings(statistics),
        rows=_rows(statistics),
        sections=[
            _relation(statistics.relations),
            _preferences(statistics),
            _balance(statistics.harm),
            _categories(statistics),
            _correlation(statistics.harm),
            _severity(statistics.harm),
            _lengths(statistics),
            _repeats(statistics),
        ],
    )
    write_text(path, page)


def headline(statistics: DataStatistics) -> str:
    """The answer to the page's first question, in one sentence."""
    tau = statistics.relations[0].tau if statistics.relations else None
    if tau is not None:
        share = number((1 + tau.value) / 2, True)
        if tau.low > 0:
            return f"Helpfulness and harmlessness go together: they choose the same response in {share} of pairs"
        if tau.high < 0:
            return f"Helpfulness and harmlessness pull apart: they choose the same response in {share} of pairs"
        return f"Helpfulness and harmlessness are not measurably related: the same response in {share} of pairs"
    safe = statistics.harm.safe_share
    if safe is not None:
        return f"{statistics.kept:,} rows, {number(safe.value, True)} of the labelled responses safe"
    return f"{statistics.kept:,} rows, {statistics.prompts:,} prompts"


def warnings(statistics: DataStatistics) -> list[str]:
    """What a person should know before training on this."""
    harm, found = statistics.harm, []
    if statistics.dropped:
        found.append(f"{sum(statistics.dropped.values()):,} of {statistics.rows:,} rows were dropped as bad.")
    if harm.safe + harm.unsafe and not (harm.safe and harm.unsafe):
        found.append(f"One class only: every labelled response is {'safe' if harm.safe else 'unsafe'}.")
    for label, share in statistics.first_preferred.items():
        if share is not None and not share.low <= 0.5 <= share.high:
            found.append(
                f"The {LABEL_TITLES[label]} response comes first in {number(share.value, True)} of pairs"
                f" ({interval(share, True)}): shuffle the positions before training on them."
            )
    for label, count in statistics.repeats.contradictions.items():
        found.append(f"{count:,} texts that stand more than once have contradictory {label}.")
    return found


def _rows(statistics: DataStatistics) -> Table:
    counts = [("rows read", statistics.rows), ("kept", statistics.kept)]
    counts += [(f"dropped: {reason}", n) for reason, n in statistics.dropped.items()]
    counts += [(f"{kind} rows", n) for kind, n in statistics.kinds.items()]
    counts += [("different prompts", statistics.prompts), ("  after normalising", statistics.prompts_normalised)]
    counts += [("responses", statistics.harm.responses)]
    return Table(("", "count"), [(name, f"{n:,}") for name, n in counts])


def _relation(relations: Sequence[Relation]) -> Section:
    title = "Are helpfulness and harmlessness independent?"
    if not relations:
        return Section(title, missing="No row has both preferences (better_response_id and safer_response_id).")
    ranked = relations[0].ranked_prompts > 0
    taus = {relation.group: relation.tau for relation in relations if relation.tau is not None}
    svg = data_plots.intervals("Kendall's tau of both preferences", "Kendall's τ", taus, 0.0, False) if taus else None
    rows = [
        (
            relation.group,
            f"{relation.pairs:,}",
            _cell(relation.agreement, True),
            _cell(relation.tau),
            _cell(relation.phi),
            *((f"{relation.ranked_prompts:,}", _cell(relation.kendall), _cell(relation.spearman)) if ranked else ()),
        )
        for relation in relations
    ]
    columns = (
        "group",
        "pairs",
        "same choice",
        "τ",
        "phi",
        *(("ranked prompts", "mean τ-b", "mean ρ") if ranked else ()),
    )
    note = (
        "τ is the share of pairs where the more helpful response is also the less harmful one, less the share where it"
        " is not: 0 says independent, 1 one and the same, below 0 that one is paid for with the other. Phi is the"
        " correlation (and τ-b) of the two 0/1 labels as they stand, so it also sees which response comes first."
        f" {RANKED if ranked else NOT_RANKED} A pair belongs to every category of either response. 95 % intervals"
        " resample prompts, not pairs."
    )
    return Section(title, note, svg, [Table(columns, rows)])


def _preferences(statistics: DataStatistics) -> Section:
    title, bias = "Does length decide the preferences?", statistics.lengths.bias
    if not bias:
        return Section(title, missing="No row has a preference.")
    shares = {LABEL_TITLES[label]: b.preferred_longer for label, b in bias.items() if b.preferred_longer is not None}
    svg = None
    if shares:
        svg = data_plots.intervals(
            "Length bias", "share of pairs whose preferred response is longer", shares, 0.5, True
        )
    rows = [_bias_row(label, found, statistics.first_preferred.get(label)) for label, found in bias.items()]
    columns = ("preferred", "pairs", "longer preferred", "extra words", "equal length", "comes first")
    note = (
        "A share above one half says that the longer response tends to be preferred; a score model can then learn"
        " length. Pairs of equally many words are left out of the share. The last column should hold one half."
    )
    return Section(title, note, svg, [Table(columns, rows)])


def _bias_row(label: str, bias: LengthBias, first: Measure | None) -> tuple[Cell, ...]:
    return (
        LABEL_TITLES[label],
        f"{bias.pairs:,}",
        _cell(bias.preferred_longer, True),
        _cell(bias.extra_words),
        f"{bias.equal:,}",
        _cell(first, True),
    )


def _balance(harm: HarmCounts) -> Section:
    title, labelled = "Class balance", harm.safe + harm.unsafe
    if not labelled:
        return Section(title, missing="No response has is_safe.")
    rows: list[Sequence[Cell]] = [
        ("safe", f"{harm.safe:,}", _cell(harm.safe_share, True)),
        ("unsafe", f"{harm.unsafe:,}", number(harm.unsafe / labelled, True)),
    ]
    if labelled < harm.responses:
        rows.append(("without is_safe", f"{harm.responses - labelled:,}", ""))
    tables = [Table(("is_safe", "responses", "share"), rows)]
    if harm.categories_each:
        total = sum(harm.categories_each.values())
        lines = [(str(n), f"{count:,}", number(count / total, True)) for n, count in harm.categories_each.items()]
        tables.append(Table(("categories", "responses", "share"), lines, "Categories of an unsafe response"))
    return Section(title, "Responses count as often as they stand in the rows.", None, tables)


def _categories(statistics: DataStatistics) -> Section:
    title, harm = "Harm categories", statistics.harm
    if statistics.prompt_categories and not harm.categories:
        rows = [(name, f"{n:,}") for name, n in statistics.prompt_categories.items()]
        note = "There are no responses here; these are the categories the prompts were written for."
        return Section(title, note, None, [Table(("category", "prompts"), rows)])
    if not harm.categories:
        return Section(title, missing="No response is labelled with a harm category.")
    found = sorted(harm.categories, key=lambda category: -category.n)
    shares = {category.name: category.of_harmful for category in found if category.of_harmful is not None}
    svg = None
    if shares:
        svg = data_plots.intervals("Category prevalence", "of harmful responses", shares, None, True)
    lines = [(c.name, f"{c.n:,}", _cell(c.of_labelled, True), _cell(c.of_harmful, True)) for c in found]
    note = f"Of {harm.labelled:,} labelled responses; one response may be in several categories."
    return Section(title, note, svg, [Table(("category", "responses", "of labelled", "of harmful"), lines)])


def _correlation(harm: HarmCounts) -> Section:
    title, names = "Which categories come together", [category.name for category in harm.categories]
    if not names:
        return Section(title, missing="No response is labelled with a harm category.")
    svg = data_plots.correlation_map("Correlation of harm categories", names, harm.correlation)
    known = [
        (value, first, second)
        for first, second in combinations(range(len(names)), 2)
        if (value := harm.correlation[first][second]) is not None
    ]
    known.sort(key=lambda entry: -abs(entry[0]))
    top = [
        (f"{names[first]} + {names[second]}", number(value), f"{harm.together[first][second]:,}")
        for value, first, second in known[:PAIRS_SHOWN]
    ]
    header = ("", *(str(index + 1) for index in range(len(names))))
    grid = [(f"{i + 1} {name}", *(f"{n:,}" for n in harm.together[i])) for i, name in enumerate(names)]
    phis = [
        (f"{i + 1} {name}", *("–" if value is None else number(value) for value in harm.correlation[i]))
        for i, name in enumerate(names)
    ]
    tables = [
        Table(("strongest pairs", "phi", "together"), top),
        Table(header, grid, "All co-occurrence counts", folded=True),
        Table(header, phis, "All correlations (phi)", folded=True),
    ]
    note = (
        "Phi over all labelled responses: above 0 (orange), two categories come together more often than chance;"
        " below 0 (blue), less often. Empty squares: a category without a response."
    )
    return Section(title, note, svg, tables)


def _severity(harm: HarmCounts) -> Section:
    title = "Severity ladder"
    if not sum(harm.severities):
        return Section(title, missing="No response has a severity level.")
    graded = [category for category in harm.categories if sum(category.severities)]
    graded.sort(key=lambda category: _mean_severity(category.severities), reverse=True)
    counts = {"all responses": harm.severities, **{category.name: category.severities for category in graded}}
    rows = [(name, *(f"{n:,}" for n in levels), f"{_mean_severity(levels):.2f}") for name, levels in counts.items()]
    note = "Categories by mean severity (none 0, minor 1, moderate 2, severe 3), the gravest on top."
    svg = data_plots.severity_bars("Severity ladder", SEVERITIES, counts)
    return Section(title, note, svg, [Table(("", *SEVERITIES, "mean"), rows)])


def _mean_severity(levels: Sequence[int]) -> float:
    return sum(level * n for level, n in enumerate(levels)) / sum(levels)


def _lengths(statistics: DataStatistics) -> Section:
    title, groups = "How long responses are", statistics.lengths.groups
    if not groups:
        return Section(title, missing="There are no responses here.")

    def row(name: str, group: LengthSummary) -> tuple[str, ...]:
        marks = (f"{value:,.0f}" for value in group.percentiles.values())
        return (name, f"{group.n:,}", number(group.mean), *marks, f"{group.longest:,}")

    columns = (
        "responses",
        "count",
        "mean",
        *(f"{mark}\N{NO-BREAK SPACE}%" for mark in groups["all"].percentiles),
        "longest",
    )
    table = Table(columns, [row(name, group) for name, group in groups.items()])
    note = "In words. Dashed lines are medians; the last bin of the figure holds every longer response."
    svg = data_plots.length_histogram("Response lengths", statistics.lengths)
    return Section(title, note, svg, [table])


def _repeats(statistics: DataStatistics) -> Section:
    repeats = statistics.repeats
    rows: list[Sequence[Cell]] = [
        ("rows with the texts of an earlier row", f"{repeats.rows_exact:,}"),
        ("the same but for case, whitespace and punctuation", f"{repeats.rows_normalised:,}"),
        ("responses given before to the same prompt", f"{repeats.answers:,}"),
        *((f"texts with contradictory {label}", f"{n:,}") for label, n in repeats.contradictions.items()),
    ]
    note = "The second line counts the first in. A pair with its responses swapped is the same pair."
    return Section("Duplicates and contradictions", note, None, [Table(("", "count"), rows)])


def _cell(measure: Measure | None, is_share: bool = False) -> Cell:
    return "–" if measure is None else (number(measure.value, is_share), interval(measure, is_share))
