"""How long responses are, and how far either preference goes with length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from castor.data.rows.schemas import PreferenceRow, QARow
from castor.statistics.bootstrap import Measure
from castor.statistics.prompt_counts import Cells, Draws

BINS = 40
_LAST_PERCENTILE = 99.0


class LengthSummary(BaseModel):
    """Word counts of one group of responses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int
    mean: float
    percentiles: dict[int, float] = Field(description="The 5th, 25th, 50th, 75th and 95th.")
    longest: int
    histogram: list[int] = Field(description="Responses in each bin of `Lengths.edges`; the last holds the longer too.")


class LengthBias(BaseModel):
    """How one of the preferences goes with length."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: int = Field(description="Pairs that have this label.")
    equal: int = Field(description="Those among them whose responses have equally many words; left out of the share.")
    preferred_longer: Measure | None = Field(description="Share of the other pairs whose preferred response is longer.")
    extra_words: Measure | None = Field(description="Mean words of the preferred response less those of the other.")


class Lengths(BaseModel):
    """Lengths in words (runs of characters between white space)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    edges: list[int] = Field(description="Bin edges of the histograms, in words.")
    groups: dict[str, LengthSummary] = Field(description="all, and safe and unsafe where labelled.")
    bias: dict[str, LengthBias] = Field(description="By label: better_response_id, safer_response_id; empty without.")


def word_count(text: str) -> int:
    """Number of words of a text."""
    return len(text.split())


class LengthCollector:
    """Takes in responses and pairs one by one; `cells` receives what the shares need."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._lengths: dict[str, list[int]] = {"all": []}
        self._pairs: dict[str, list[int]] = {}

    def add(self, answer: QARow) -> None:
        """Take in one response."""
        length = word_count(answer.response)
        self._lengths["all"].append(length)
        if answer.is_safe is not None:
            self._lengths.setdefault("safe" if answer.is_safe else "unsafe", []).append(length)

    def add_pair(self, prompt: bytes, row: PreferenceRow) -> None:
        """Take in one pair."""
        lengths = word_count(row.response_0), word_count(row.response_1)
        for label, chosen in (
            ("better_response_id", row.better_response_id),
            ("safer_response_id", row.safer_response_id),
        ):
            if chosen is None:
                continue
            extra = lengths[chosen] - lengths[1 - chosen]
            counts = self._pairs.setdefault(label, [0, 0])
            counts[0] += 1
            counts[1] += extra == 0
            self._cells.add(prompt, f"{label} pairs")
            self._cells.add(prompt, f"{label} extra words", extra)
            if extra:
                self._cells.add(prompt, f"{label} unequal")
                self._cells.add(prompt, f"{label} longer", float(extra > 0))

    def result(self, draws: Draws) -> Lengths:
        """The summaries, with intervals from `draws`."""
        every = self._lengths["all"]
        last = float(np.percentile(every, _LAST_PERCENTILE)) if every else 0.0
        width = max(1, math.ceil(last / BINS))  # whole words, so that every bin holds equally many lengths
        edges = np.arange(0, last + 2 * width, width)
        return Lengths(
            edges=edges.astype(int).tolist(),
            groups={
                name: _summary(self._lengths[name], edges)
                for name in ("all", "safe", "unsafe")
                if self._lengths.get(name)
            },
            bias={
                label: LengthBias(
                    pairs=pairs,
                    equal=equal,
                    preferred_longer=draws.share(f"{label} longer", f"{label} unequal"),
                    extra_words=draws.mean(f"{label} extra words", f"{label} pairs"),
                )
                for label, (pairs, equal) in sorted(self._pairs.items())
            },
        )


def _summary(lengths: Sequence[int], edges: np.ndarray) -> LengthSummary:
    array = np.array(lengths)
    marks = (5, 25, 50, 75, 95)
    return LengthSummary(
        n=len(array),
        mean=float(array.mean()),
        percentiles=dict(zip(marks, (float(p) for p in np.percentile(array, marks)), strict=True)),
        longest=int(array.max()),
        histogram=np.histogram(np.minimum(array, edges[-1]), edges)[0].tolist(),
    )
