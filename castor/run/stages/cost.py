"""The cost model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castor.run.stages.stage import Rows
from castor.run.stages.supervised import SupervisedStage

if TYPE_CHECKING:
    from castor.config.preference import Cost
    from castor.models.head_kind import HeadKind


class CostStage(SupervisedStage):
    """Harm, from pairs or from safety labels alone."""

    field, makes = "cost", "cost model"
    summary = "Train the cost model."
    runner = "trainers.supervised.stages:run_cost"

    section: Cost

    @property
    def row_kind(self) -> Rows:
        """Pairs, or with `loss: sign` single responses."""
        return "qa" if self.section.loss == "sign" else "preferences"

    @property
    def head(self) -> HeadKind:
        """A cost."""
        return "cost"
