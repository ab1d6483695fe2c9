"""A moderation model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castor.run.stages.stage import Rows
from castor.run.stages.supervised import SupervisedStage

if TYPE_CHECKING:
    from castor.config.moderation import Moderation
    from castor.models.head_kind import HeadKind


class ModerationStage(SupervisedStage):
    """Harm categories and severity of a question with its answer."""

    field, makes = "moderation", "moderation model"
    summary = "Train the moderation models of CONFIG."
    runner = "trainers.supervised.stages:run_moderation"

    section: Moderation

    @property
    def row_kind(self) -> Rows:
        """Single responses."""
        return "qa"

    @property
    def head(self) -> HeadKind:
        """The categories of its taxonomy."""
        return self.section.taxonomy
