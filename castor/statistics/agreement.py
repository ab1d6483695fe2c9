"""Agreement between judges: the share of items on which two give the same verdict (BeaverTails sec. 4.1), and kappa."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from castor.statistics.bootstrap import Measure, measure
from castor.statistics.classification import kappa, share

Question = Literal["unsafe", "more helpful", "less harmful"]


@dataclass(frozen=True)
class Verdicts:
    """What one judge said of every item. Items without a verdict count neither for nor against anyone."""

    said: NDArray[np.bool_]  # [items] True: unsafe (or: the second response of the pair)
    given: NDArray[np.bool_]  # [items] whether there is a verdict
    failures: dict[str, int] = field(default_factory=dict)  # items without one, by reason
    ties: int = 0  # pairs judged equal, also when only the order of the responses decided


class Agreement(BaseModel):
    """Two judges on one question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: Question = Field(description="What was asked: is it unsafe, or which of two is preferable and in what.")
    first: str
    second: str
    ratio: Measure | None = Field(description="Share of items with the same verdict, over items both gave one for.")
    kappa: Measure | None = Field(description="Cohen's kappa; null where both judges give one and the same verdict.")
    excluded: int = Field(ge=0, description="Items left out because one of the two gave no verdict.")


def agreements(
    judges: Mapping[str, Verdicts], prompts: NDArray[np.integer], question: Question, seed: int = 0
) -> list[Agreement]:
    """Every two judges on the same items; `prompts` [items] is an integer for the prompt of each."""
    found = []
    for (first, a), (second, b) in itertools.combinations(judges.items(), 2):
        both = a.given & b.given
        one, other = a.said[both], b.said[both]
        statistics = {"ratio": share(one == other), "kappa": kappa(one, other, 2)}
        figures = measure(statistics, prompts[both], seed=seed)[""]
        found.append(Agreement(question=question, first=first, second=second, excluded=int((~both).sum()), **figures))
    return found
