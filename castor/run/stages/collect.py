"""Preference data from a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from castor.run.actors import Actors, rollout_workers
from castor.run.stages.stage import LANGUAGE_MODEL, Read, RowsRead, Stage

if TYPE_CHECKING:
    from castor.config.collect import Collect
    from castor.config.rollout import Rollout


class CollectStage(Stage):
    """Several responses to each prompt, paired and labelled."""

    field, makes = "collect", "rows"
    summary = "Preference data: responses of the SFT policy, judged and written as PKU-SafeRLHF rows."
    runner = "trainers.collect:run_collect"

    section: Collect

    def models(self) -> Iterator[Read]:
        """The policy to sample from."""
        yield Read("policy", self.section.policy, LANGUAGE_MODEL)

    def rows(self) -> Sequence[RowsRead]:
        """The prompts."""
        return [RowsRead("prompts", self.section.prompts, "prompts")]

    @property
    def rollout(self) -> Rollout:
        """Its section's."""
        return self.section.rollout

    def actors(self) -> list[Actors]:
        """Rollout workers."""
        return [rollout_workers(self.section.policy, self.section.rollout)]
