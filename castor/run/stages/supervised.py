"""What the stages on Ray Train have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from castor.run.actors import Actors, train_workers
from castor.run.stages.stage import ANY_MODEL, Kind, Read, Rows, RowsRead, Stage, data_rows, helper, most_rows

if TYPE_CHECKING:
    from castor.config.model import ModelOption
    from castor.config.supervised import Supervised


class SupervisedStage(Stage):
    """A model trained on rows."""

    section: Supervised
    start_kinds: ClassVar[frozenset[Kind]] = ANY_MODEL

    @property
    @abstractmethod
    def row_kind(self) -> Rows:
        """How its rows are read."""

    def models(self) -> Iterator[Read]:
        """What it starts from."""
        yield Read("model", self.section.model, self.start_kinds)

    def rows(self) -> Sequence[RowsRead]:
        """Its training rows, of which it holds some out."""
        return data_rows(self.section.data, self.row_kind)

    def starts_from(self) -> ModelOption:
        """Its model."""
        return self.section.model

    @property
    def steps(self) -> int | None:
        """At most: early stopping may take fewer."""
        return self.section.max_steps

    @property
    def longest(self) -> int:
        """Longer rows are dropped."""
        return self.section.max_length

    def findings(self) -> Iterator[str]:
        """Fewer rows than one batch takes, where their number is known."""
        most = [most_rows(source) for source in self.section.data]
        known = [number for number in most if number is not None]
        rows = sum(known) * (2 if self.row_kind == "qa" else 1)  # a preference row gives two responses
        if len(known) == len(most) and rows < self.section.batch_size:
            yield (
                f"{self.place}.data gives at most {rows} rows, fewer than one batch_size of {self.section.batch_size}: "
                "raise a limit, or lower batch_size"
            )

    def actors(self) -> list[Actors]:
        """Ray Train's workers and those that look after them."""
        return [
            train_workers(self.section, score=self.head is not None),
            helper("fit", "Ray Train's driver"),
            helper("TrainController", "Ray Train: restarts the workers"),
            helper("ProgressBoard", "newest step, for the progress bar"),
        ]
