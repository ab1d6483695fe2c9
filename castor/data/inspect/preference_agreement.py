"""Do helpfulness and harmlessness go together? Agreement and rank correlation of the two preferences of a set.

Both papers train on two preferences because they hold them to be separable, and leave open how far the two are
independent ("orthogonal") in their data. A value of tau near 0 says independent, below 0 that they pull apart.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import kendalltau, spearmanr

from castor.data.inspect.leaks import digest
from castor.data.rows.schemas import PreferenceRow
from castor.statistics.bootstrap import Measure
from castor.statistics.prompt_counts import Cells, Draws, Floats, phi

OVERALL = "all pairs"
SAFETY_PATTERNS = {2: "both responses safe", 1: "one safe, one unsafe", 0: "both responses unsafe"}
MIN_RANKED = 3  # two responses have one pair, whose agreement is counted already


class Relation(BaseModel):
    """How the two preferences of one group of pairs go together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str = Field(description="all pairs, a pattern of the two safety labels, or a harm category.")
    pairs: int = Field(description="Pairs with both labels.")
    agreement: Measure | None = Field(description="Share of them where the better response is the safer one.")
    tau: Measure | None = Field(
        description="Kendall's tau over the pairs, (agreeing - disagreeing) / pairs: 2 x agreement - 1."
    )
    phi: Measure | None = Field(
        description="Phi of the table better_response_id x safer_response_id, which is tau-b of the two 0/1 labels."
    )
    ranked_prompts: int = Field(description=f"Prompts with at least {MIN_RANKED} compared responses.")
    kendall: Measure | None = Field(
        description="Mean over those prompts of Kendall's tau-b between the responses' two scores, wins less losses"
        " over comparisons; prompts where one score is the same for all responses have none and are left out."
    )
    spearman: Measure | None = Field(description="The same with Spearman's rank correlation.")


class RelationCollector:
    """Takes in pairs one by one; `cells` receives what the figures need."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._categories: dict[str, None] = {}
        self._compared: defaultdict[bytes, list[tuple[bytes, bytes, int, int]]] = defaultdict(list)
        self._groups_of: defaultdict[bytes, set[str]] = defaultdict(set)

    def add(self, prompt: bytes, row: PreferenceRow) -> None:
        """Take in one pair; without both labels it says nothing here."""
        better, safer = row.better_response_id, row.safer_response_id
        if better is None or safer is None:
            return
        categories = (row.response_0_harm_category or frozenset()) | (row.response_1_harm_category or frozenset())
        self._categories.update(dict.fromkeys(categories))
        groups = [OVERALL, *categories]
        flags = row.is_response_0_safe, row.is_response_1_safe
        if None not in flags:
            groups.append(SAFETY_PATTERNS[sum(map(bool, flags))])
        for group in groups:
            self._cells.add(prompt, f"{group}: pairs")
            self._cells.add(prompt, f"{group}: better {better} safer {safer}")
        self._compared[prompt].append((digest(row.response_0), digest(row.response_1), better, safer))
        self._groups_of[prompt].update([OVERALL, *categories])

    def rank(self) -> None:
        """Rank the responses of every prompt; call it once, after the last pair and before the cells are drawn."""
        for prompt, pairs in self._compared.items():
            helpfulness, harmlessness = response_scores(pairs)
            if len(helpfulness) < MIN_RANKED:
                continue
            for group in self._groups_of[prompt]:
                self._cells.add(prompt, f"{group}: ranked prompts")
            if np.ptp(helpfulness) == 0 or np.ptp(harmlessness) == 0:
                continue
            tau = float(kendalltau(helpfulness, harmlessness).statistic)
            rho = float(spearmanr(helpfulness, harmlessness).statistic)
            for group in self._groups_of[prompt]:
                self._cells.add(prompt, f"{group}: correlated prompts")
                self._cells.add(prompt, f"{group}: kendall", tau)
                self._cells.add(prompt, f"{group}: spearman", rho)

    def result(self, draws: Draws) -> list[Relation]:
        """All pairs first, then the safety patterns, then the categories by name; groups without pairs are left out."""
        groups = [OVERALL, *SAFETY_PATTERNS.values(), *sorted(self._categories)]
        return [_relation(group, draws) for group in groups if draws.total(f"{group}: pairs")]


def response_scores(pairs: list[tuple[bytes, bytes, int, int]]) -> tuple[Floats, Floats]:
    """Two [responses] arrays: each response's wins less losses over its comparisons, by better and by safer.

    `pairs` holds (response 0, response 1, better id, safer id); responses are in order of first appearance.
    """
    place: dict[bytes, int] = {}
    for first, second, _, _ in pairs:
        place.setdefault(first, len(place))
        place.setdefault(second, len(place))
    wins, compared = np.zeros((2, len(place))), np.zeros(len(place))
    for first, second, *chosen in pairs:
        at = place[first], place[second]
        for label, winner in enumerate(chosen):
            wins[label, at[winner]] += 1
            wins[label, at[1 - winner]] -= 1
        compared[list(at)] += 1
    helpfulness, harmlessness = wins / compared
    return helpfulness, harmlessness


def _relation(group: str, draws: Draws) -> Relation:
    table = tuple(f"{group}: better {better} safer {safer}" for better in (0, 1) for safer in (0, 1))
    pairs = f"{group}: pairs"

    def agreement(both_0: Floats, apart: Floats, apart_too: Floats, both_1: Floats) -> Floats:
        total = both_0 + apart + apart_too + both_1
        return np.divide(both_0 + both_1, total, out=np.full(total.shape, np.nan), where=total > 0)

    return Relation(
        group=group,
        pairs=round(draws.total(pairs)),
        agreement=draws.measure(agreement, table, pairs, is_share=True),
        tau=draws.measure(lambda *cells: 2 * agreement(*cells) - 1, table, pairs),
        phi=draws.measure(phi, table, pairs),
        ranked_prompts=round(draws.total(f"{group}: ranked prompts")),
        kendall=draws.mean(f"{group}: kendall", f"{group}: correlated prompts"),
        spearman=draws.mean(f"{group}: spearman", f"{group}: correlated prompts"),
    )
