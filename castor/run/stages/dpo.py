"""A policy from preference rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from castor.run.stages.stage import LANGUAGE_MODEL, Read, Rows
from castor.run.stages.supervised import SupervisedStage

if TYPE_CHECKING:
    from castor.config.dpo import DPO


class DPOStage(SupervisedStage):
    """Direct preference optimisation."""

    field, makes = "dpo", "language model"
    summary = "Train the policies of CONFIG that learn from preference rows alone: DPO, SafeDPO, SACPO."
    runner = "trainers.supervised.stages:run_dpo"
    start_kinds = LANGUAGE_MODEL

    section: DPO

    @property
    def row_kind(self) -> Rows:
        """Pairs."""
        return "preferences"

    def models(self) -> Iterator[Read]:
        """What it starts from, and its reference where that is another."""
        yield from super().models()
        if self.section.reference is not None:
            yield Read("reference", self.section.reference, LANGUAGE_MODEL)
