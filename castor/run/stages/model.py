"""A small model, made on the spot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from castor.run.stages.stage import Read, RowsRead, Stage, data_rows

if TYPE_CHECKING:
    from castor.config.demo_model import DemoModel


class ModelStage(Stage):
    """Make a small model and its tokenizer."""

    field, makes, summary = "model", "language model", ""
    runner = "trainers.demo_model:run_model"

    section: DemoModel

    def models(self) -> Iterator[Read]:
        """None."""
        return iter(())

    def rows(self) -> Sequence[RowsRead]:
        """The text its tokenizer learns from."""
        return data_rows(self.section.data, "demonstrations")

    @property
    def trains_on_rows(self) -> bool:
        """A tokenizer gives no answer away."""
        return False
