"""Supervised fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castor.run.stages.stage import LANGUAGE_MODEL, Rows
from castor.run.stages.supervised import SupervisedStage

if TYPE_CHECKING:
    from castor.config.supervised import SFT


class SFTStage(SupervisedStage):
    """A policy that imitates demonstrations."""

    field, makes = "sft", "language model"
    summary = "Supervised fine-tuning."
    runner = "trainers.supervised.stages:run_sft"
    start_kinds = LANGUAGE_MODEL

    section: SFT

    @property
    def row_kind(self) -> Rows:
        """Prompts with the response to imitate."""
        return "demonstrations"
