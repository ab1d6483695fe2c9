"""Class balance, harm categories and severities of the responses of one set."""

from __future__ import annotations

from collections import Counter

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from castor.data.rows.schemas import QARow
from castor.statistics.bootstrap import Measure
from castor.statistics.prompt_counts import Cells, Draws, phi
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, Severity

SEVERITIES = tuple(level.name.lower() for level in Severity)


class CategoryCount(BaseModel):
    """One harm category."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    n: int = Field(description="Responses in the category.")
    of_labelled: Measure | None = Field(description="Share of the responses that have category labels.")
    of_harmful: Measure | None = Field(description="Share of the responses in at least one category.")
    severities: list[int] = Field(description="Responses of the category at severity 0 to 3, where one is given.")


class HarmCounts(BaseModel):
    """What the safety labels of a set say. Responses count as often as they stand in the rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    responses: int
    safe: int
    unsafe: int
    safe_share: Measure | None = Field(description="Share labelled safe among those with is_safe.")
    labelled: int = Field(description="Responses with category labels.")
    categories: list[CategoryCount] = Field(description="Every category of the taxonomy in use, in its order.")
    categories_each: dict[int, int] = Field(description="Unsafe labelled responses by their number of categories.")
    together: list[list[int]] = Field(description="[c][c] responses in both categories; the diagonal holds each one's.")
    correlation: list[list[float | None]] = Field(
        description="[c][c] phi of two categories over labelled responses; None where one is empty or holds all."
    )
    severities: list[int] = Field(description="Responses at severity 0 to 3.")


class HarmCollector:
    """Takes in responses one by one; `cells` receives what the shares need."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._count: Counter[str] = Counter()
        self._categories: Counter[frozenset[str]] = Counter()
        self._each: Counter[int] = Counter()
        self._severities = [0] * len(Severity)
        self._severity_of: Counter[tuple[str, int]] = Counter()

    def add(self, prompt: bytes, answer: QARow) -> None:
        """Take in one response."""
        self._count["responses"] += 1
        if answer.is_safe is not None:
            self._count["safe" if answer.is_safe else "unsafe"] += 1
            self._cells.add(prompt, "is_safe")
            self._cells.add(prompt, "safe", float(answer.is_safe))
        if answer.severity_level is not None:
            self._severities[answer.severity_level] += 1
        if answer.category is None:
            return
        self._categories[answer.category] += 1
        self._cells.add(prompt, "labelled")
        if answer.is_safe is False or answer.category:
            self._each[len(answer.category)] += 1
        if answer.category:
            self._cells.add(prompt, "harmful")
        for name in answer.category:
            self._cells.add(prompt, f"category {name}")
            if answer.severity_level is not None:
                self._severity_of[name, answer.severity_level] += 1

    def result(self, draws: Draws) -> HarmCounts:
        """The counts, with intervals from `draws`."""
        names = taxonomy_of(frozenset().union(*self._categories))
        together, correlation = self._tables(names)
        return HarmCounts(
            responses=self._count["responses"],
            safe=self._count["safe"],
            unsafe=self._count["unsafe"],
            safe_share=draws.share("safe", "is_safe"),
            labelled=self._categories.total(),
            categories=[
                CategoryCount(
                    name=name,
                    n=together[index][index],
                    of_labelled=draws.share(f"category {name}", "labelled"),
                    of_harmful=draws.share(f"category {name}", "harmful"),
                    severities=[self._severity_of[name, level] for level in Severity],
                )
                for index, name in enumerate(names)
            ],
            categories_each=dict(sorted(self._each.items())),
            together=together,
            correlation=correlation,
            severities=self._severities,
        )

    def _tables(self, names: tuple[str, ...]) -> tuple[list[list[int]], list[list[float | None]]]:
        """Co-occurrence counts and phi of every two categories."""
        sets = list(self._categories)
        holds = np.array([[name in categories for name in names] for categories in sets], dtype=np.float64)
        holds = holds.reshape(len(sets), len(names))
        times = np.array([self._categories[categories] for categories in sets], dtype=np.float64)
        both = (holds * times[:, None]).T @ holds
        each = both.diagonal()
        first, second = each[:, None] - both, each[None, :] - both
        table = phi(both, first, second, times.sum() - both - first - second)
        correlation = [[None if np.isnan(value) else float(value) for value in line] for line in table]
        return both.astype(int).tolist(), correlation


def taxonomy_of(names: frozenset[str]) -> tuple[str, ...]:
    """The taxonomy that holds all of `names`: BeaverTails' 14, PKU-SafeRLHF's 19, both one after the other, or none."""
    used = [taxonomy for taxonomy in (BEAVERTAILS_CATEGORIES, PKU_CATEGORIES) if names & set(taxonomy)]
    return tuple(name for taxonomy in used for name in taxonomy)
