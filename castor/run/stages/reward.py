"""The reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castor.run.stages.stage import Rows
from castor.run.stages.supervised import SupervisedStage

if TYPE_CHECKING:
    from castor.config.preference import Reward
    from castor.models.head_kind import HeadKind


class RewardStage(SupervisedStage):
    """Helpfulness, from pairs."""

    field, makes = "reward", "reward model"
    summary = "Train the reward model."
    runner = "trainers.supervised.stages:run_reward"

    section: Reward

    @property
    def row_kind(self) -> Rows:
        """Pairs with the more helpful response."""
        return "preferences"

    @property
    def head(self) -> HeadKind:
        """A reward."""
        return "reward"
